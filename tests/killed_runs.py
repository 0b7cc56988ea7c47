"""Runs that die by SIGKILL once their work folder shows how far they are, and the command line in steps small enough to be caught at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE_S = 600
WATCHED = "WATCHED_BY_KILL_AT"  # the environment variable that tells a run what it will be killed at
IN_SMALL_PARTS = (
    "from tests.killed_runs import main_in_small_parts; main_in_small_parts()"  # a program: python -c
)


def kill_at(command: Sequence[str], work: Path, pattern: str, count: int, **environment: str) -> list[Path]:
    """Run a command until `count` paths below `work` match, then `kill -9` it; the matches that it leaves.

    The command runs in the repository root, so that it can import `tests`; a program that calls `wait_to_be_killed` is never too quick.
    """
    process = started(command, **{WATCHED: json.dumps([str(work), pattern, count])}, **environment)
    try:
        wait_until(lambda: len(list(work.glob(pattern))) >= count, process)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    return sorted(work.glob(pattern))


def wait_to_be_killed() -> None:
    """Between the steps of a run: once there is what `kill_at` waits for, the run goes no further."""
    if watched := os.environ.get(WATCHED):
        work, pattern, count = json.loads(watched)
        if len(list(Path(work).glob(pattern))) >= count:
            time.sleep(PATIENCE_S)


def started(command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """The command at work; pytest keeps what it says on stderr for a test that fails."""
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL)


def finish(command: Sequence[str], **environment: str) -> None:
    """The command from beginning to end."""
    surroundings = os.environ | environment
    subprocess.run(
        command, cwd=ROOT, env=surroundings, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=True
    )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Fails when the process ends before, or takes too long. Files that vanish while they are looked at are not there."""
    until_s = time.monotonic() + PATIENCE_S

    def is_reached() -> bool:
        try:
            return reached()
        except FileNotFoundError:
            return False

    while not is_reached():
        has_ended = process.poll() is not None
        assert not has_ended or is_reached(), "the process ended before"  # its last step may be the one
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
    """`vlm-contextrl` with small parts, that waits to be killed before every part and before every row of the result."""
    from vlm_contextrl import storage
    from vlm_contextrl.cli import main
    from vlm_contextrl.data_recipes.pipeline import parts

    small_parts(setattr)
    for kind, name in ((parts._Task, "__call__"), (storage._Intake, "accept")):
        setattr(kind, name, killable(getattr(kind, name)))
    main()


def killable(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, before which the run waits to be killed."""

    def called(*arguments: Any) -> Any:
        wait_to_be_killed()
        return call(*arguments)

    return called


def command(*arguments: object) -> list[str]:
    """`vlm-contextrl ARGUMENTS` as a process in small parts."""
    return [sys.executable, "-c", IN_SMALL_PARTS, *map(str, arguments)]
