"""The process of one cell: `python -m vlm_contextrl.study.cell_process JOB.json`. Trains or goes on training, then measures.

It ends when the study does, however that ended: its standard input is a pipe whose other end only the study holds.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from vlm_contextrl.child_processes import end_with_starter
from vlm_contextrl.config import RunConfig, validate
from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.result_files import write_json
from vlm_contextrl.runlog import CONFIG
from vlm_contextrl.study.cells import MEASURES
from vlm_contextrl.study.data import Rows
from vlm_contextrl.study.measures import measure_sets


def work(job: dict[str, Any]) -> None:
    """Whatever the cell still lacks: `final/`, then `measures.json`."""
    config, run_dir = validate(RunConfig, job["config"], "job"), Path(job["run_dir"])
    final = run_dir / "final"
    if job["trains"] and not final.is_dir():
        from vlm_contextrl.trainer import train

        begun = (run_dir / CONFIG).is_file()
        if not begun and run_dir.exists():
            shutil.rmtree(run_dir)  # killed before the run had begun: nothing to go on from
        train(config, run_dir, resume=begun)
    run_dir.mkdir(parents=True, exist_ok=True)
    place = run_dir / MEASURES
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    missing = {  # a probe may have been added since
        name: Rows(**{kind: path and Path(path) for kind, path in rows.items()})
        for name, rows in job["measured"].items()
        if name not in known
    }
    for name, measured in measure_sets(
        config, final if job["trains"] else None, missing, run_dir / "measured"
    ):
        known[name] = measured
        write_json(place, known)


def main() -> None:
    """Errors of the user's are one line and status 2, as on the command line."""
    end_with_starter()
    path = Path(sys.argv[1])
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what a killed study left behind ends at once
        try:
            work(json.loads(path.read_text(encoding="utf-8")))
        except ContextRLError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
