"""Where batches are computed: in this process, in several local ones, or on the machines of a Ray cluster.

An engine calls `task(batch)` for every batch number and yields the numbers as they are done; results are on disk (parts.py), so all
machines must see the same folders. A task travels to its worker once and keeps there what it loads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Literal

from vlm_contextrl.errors import ContextRLError, InputError, MissingExtraError, first_line

Task = Callable[[int], None]

_task: Task | None = None  # of this worker process


@dataclass(frozen=True)
class Engine:
    """name: `local` or `ray`; workers: processes, or Ray actors."""

    name: Literal["local", "ray"] = "local"
    workers: int = 1

    def run(self, task: Task, batches: Sequence[int]) -> Iterator[int]:
        """Batch numbers, each when it is done. Errors of a task are raised here; what is done stays done."""
        if not batches:
            return iter(())
        if self.name == "ray":
            return _on_ray(task, batches, min(self.workers, len(batches)))
        if self.workers == 1:
            return _here(task, batches)
        return _in_processes(task, batches, self.workers)


def _here(task: Task, batches: Sequence[int]) -> Iterator[int]:
    for batch in batches:
        task(batch)
        yield batch


def _in_processes(task: Task, batches: Sequence[int], workers: int) -> Iterator[int]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(task, threads))
    try:
        for done in as_completed([pool.submit(_do, batch) for batch in batches]):
            yield done.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process ended without a word (out of memory?); give the command again to go on, with fewer --workers if it repeats"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(task: Task, threads: int) -> None:
    global _task
    _task = task
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, which is later
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a killed run would write into the folder of the next one, then wait for ever and hold what they have loaded."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(batch: int) -> int:
    assert _task is not None
    _task(batch)
    return batch


def _on_ray(task: Task, batches: Sequence[int], workers: int) -> Iterator[int]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "--engine ray needs Ray, which is not installed: pip install 'vlm-contextrl[ray]'"
        ) from error
    import ray.data

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
        try:
            ray.init(log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray's own have no class in common
            raise ContextRLError(
                f"--engine ray: Ray did not start ({first_line(error)}); nothing is lost: try again, or leave the option out"
            ) from error
    worker: Any = _RayWorker
    numbers = ray.data.from_items([{"batch": batch} for batch in batches], override_num_blocks=len(batches))
    done = numbers.map(worker, fn_constructor_args=(task,), concurrency=workers)
    for row in done.iter_rows():
        if row["error"]:
            raise ContextRLError(row["error"])
        yield int(row["batch"])


class _RayWorker:
    """An actor of `ray.data`. An error of the user's comes back as its one line: Ray would wrap it in two tracebacks."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.task(int(row["batch"]))
        except ContextRLError as error:
            return {"batch": row["batch"], "error": str(error)}
        return {"batch": row["batch"], "error": ""}
