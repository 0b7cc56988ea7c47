"""Runs that die by SIGKILL once their work folder shows how far they are, and the command line in steps small enough to be caught at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120
IN_SMALL_PARTS = (
    "from tests.killed_runs import main_in_small_parts; main_in_small_parts()"  # a program: python -c
)


def kill_at(command: Sequence[str], work: Path, pattern: str, count: int, **environment: str) -> list[Path]:
    """Run a command until `count` paths below `work` match, then `kill -9` it; the matches that it leaves.

    The command runs in the repository root, so that it can import `tests`.
    """
    process = started(command, **environment)
    wait_until(lambda: len(list(work.glob(pattern))) >= count, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return sorted(work.glob(pattern))


def started(command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """The command at work, its messages dropped."""
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Fails when the process ends before, or takes too long."""
    until_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until_s
        time.sleep(0.005)


def small_parts(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Parts of four (set_attribute: of a module): tiny inputs then have several, in every stage of `dedupe` and `decontaminate`."""
    from vlm_contextrl.data_recipes.curate import decontaminate, facts, near
    from vlm_contextrl.data_recipes.features import cache

    for module, name in (
        (facts, "ROWS_PER_PART"), (decontaminate, "IMAGES_PER_PART"), (near, "CANDIDATES_PER_PART"), (cache, "PART_IMAGES"),
    ):  # fmt: skip
        set_attribute(module, name, 4)


def main_in_small_parts() -> None:
    """`vlm-contextrl` with small parts, and with a pause before every part and before every row of the result."""
    from vlm_contextrl import storage
    from vlm_contextrl.cli import main
    from vlm_contextrl.data_recipes.pipeline import parts

    def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            time.sleep(0.04)
            return call(*arguments)

        return slow

    small_parts(setattr)
    for kind, name in ((parts._Task, "__call__"), (storage._Intake, "accept")):
        setattr(kind, name, slowly(getattr(kind, name)))
    main()


def command(*arguments: object) -> list[str]:
    """`vlm-contextrl ARGUMENTS` as a process in small parts."""
    return [sys.executable, "-c", IN_SMALL_PARTS, *map(str, arguments)]
