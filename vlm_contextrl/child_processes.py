"""Processes that do one part of a larger job: they end with what started them, and say in their log why they failed.

The starter gives the child a pipe as standard input (`subprocess.PIPE`) and holds its other end. However the starter ends, the pipe closes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path


def end_with_starter() -> None:
    """From now on this process ends as soon as the one that holds the other end of its standard input does."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: a thread that waits in it breaks the end of the process
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def why_it_failed(log: Path, status: int) -> str:
    """The last `error: ` line that an ended process printed, else its status and its last words."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    last = next((line for line in reversed(lines) if line), "nothing was printed")
    return f"its process ended with status {status}: {last}; all of it is in {log}"
