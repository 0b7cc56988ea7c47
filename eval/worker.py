"""One benchmark, probe or long text in a process of its own: `python -m vlm_contextrl.eval.worker JOB.json`, or the same under torchrun.

A crash takes one of them with it, not the run. It ends when the run does, however that ended: its standard input is a pipe whose other
end only the run holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_contextrl.child_processes import end_with_starter
from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.eval.asked import Kind
from vlm_contextrl.eval.benchmark_run import run_benchmark
from vlm_contextrl.eval.journal import expect
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.run_folders import read_object
from vlm_contextrl.eval.settings import EvalSettings


@dataclass(frozen=True)
class Job:
    """What one process does (kind, name and source: as in `Asked`). weights: content hashes of model and adapter."""

    name: str
    folder: str
    settings: dict[str, Any]
    weights: dict[str, str | None]
    kind: Kind = "benchmark"
    source: str = ""


def work(job: Job) -> None:
    """Do what is not done yet; at the end `result.json` is in the job's folder."""
    _WAYS[job.kind](job, EvalSettings.model_validate(job.settings), Path(job.folder))


def _benchmark(job: Job, settings: EvalSettings, folder: Path) -> None:
    run_benchmark(BENCHMARKS[job.name], folder, settings, job.weights)


def _probe(job: Job, settings: EvalSettings, folder: Path) -> None:
    from vlm_contextrl.eval.answering import load_model
    from vlm_contextrl.eval.selection import run_selection
    from vlm_contextrl.ranks import Ranks

    content = {**settings.model_dump(mode="json", include={"model", "adapter", "dtype"})}
    run_selection(
        job.source, load_model(settings, Ranks.join().device), out=folder, mode=settings.probe_mode,
        content={**content, **settings.what_shapes_answers(), "weights": job.weights}, data_root=settings.data_root,
        limit=settings.limit, batch_pairs=settings.batch_size, progress=lambda done, total: expect(folder, total),
    )  # fmt: skip


def _long_text(job: Job, settings: EvalSettings, folder: Path) -> None:
    from vlm_contextrl.eval.long_context import evaluate_longbench, evaluate_niah
    from vlm_contextrl.eval.text_answers import LongContextSettings
    from vlm_contextrl.ranks import Ranks

    text = LongContextSettings(
        model=settings.model, adapter=settings.adapter, dtype=settings.dtype, device=str(Ranks.join().device),
        batch_size=settings.batch_size, lengths=settings.niah_lengths, style=settings.style,
        max_new_tokens=settings.max_new_tokens, limit=settings.limit,
        **({"samples": settings.limit} if settings.limit else {}),
    )  # fmt: skip
    if job.name == "niah":
        evaluate_niah(text, folder)
    else:
        evaluate_longbench(text, settings.data_root, folder)


_WAYS: dict[Kind, Callable[[Job, EvalSettings, Path], None]] = {
    "benchmark": _benchmark,
    "probe": _probe,
    "long_text": _long_text,
}


def main() -> None:
    """Errors of the user's are one line and status 2, as on the command line."""
    end_with_starter()
    job = Job(**read_object(Path(sys.argv[1])))
    try:
        work(job)
    except ContextRLError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
