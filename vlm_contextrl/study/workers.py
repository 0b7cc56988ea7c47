"""Runs the cells that are not finished, several at a time, each in a process with threads (or a GPU) of its own.

A cell that fails is named with its reason, and the others go on. Nothing of a cell depends on how many run beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vlm_contextrl.child_processes import why_it_failed
from vlm_contextrl.demo_report import duration
from vlm_contextrl.result_files import write_json
from vlm_contextrl.study.budgets import total_steps
from vlm_contextrl.study.cells import Cell
from vlm_contextrl.study.settings import StudyConfig

POLL_S = 0.5
PROGRAM = (sys.executable, "-m", "vlm_contextrl.study.cell_process")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Slot = dict[str, str]  # environment of the cell that has it


@dataclass
class Running:
    """A cell at work."""

    cell: Cell
    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path
    task: TaskID
    began_s: float


def make_slots(study: StudyConfig, gpus: Sequence[str]) -> list[Slot]:
    """The places for cells: as many as asked for, else one per GPU, else as the cores allow. gpus: as CUDA_VISIBLE_DEVICES names them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = study.processes or len(gpus) or max(1, cores // study.threads)
    threads = dict.fromkeys(THREADS, str(study.threads)) | {"TOKENIZERS_PARALLELISM": "false"}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]


def run_cells(cells: Sequence[Cell], slots: Sequence[Slot], jobs: Path, console: Console) -> dict[str, str]:
    """Finish all cells; {name: reason} of those that failed. jobs: folder for what the processes are told and what they print."""
    waiting = [cell for cell in cells if not cell.is_finished]
    finished, free, failed = len(cells) - len(waiting), list(slots), dict[str, str]()
    jobs.mkdir(exist_ok=True)
    running: list[Running] = []
    with _board(console) as board, _ended(running):
        total = board.add_task("all cells", total=len(cells), completed=finished, now="")
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(0), free.pop(), jobs, board))
            time.sleep(POLL_S)
            for each in list(running):
                _show(each, board)
                status = each.process.poll()
                if status is None:
                    continue
                running.remove(each)
                free.append(each.slot)
                _let_go(each)
                board.remove_task(each.task)
                took = duration(time.monotonic() - each.began_s)
                if each.cell.is_finished:
                    finished += 1
                    console.print(f"{each.cell.name}: done in {took} ({finished} of {len(cells)})")
                else:
                    failed[each.cell.name] = why_it_failed(each.log, status)
                    console.print(f"{each.cell.name}: failed after {took}: {failed[each.cell.name]}")
                board.update(total, completed=finished)
    return {cell.name: failed[cell.name] for cell in cells if cell.name in failed}


def _start(cell: Cell, slot: Slot, jobs: Path, board: Progress) -> Running:
    job, log = jobs / f"{cell.name}.json", jobs / f"{cell.name}.log"
    write_json(job, cell.job())
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [*PROGRAM, str(job)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=os.environ | slot,
            start_new_session=True,  # Ctrl-C is for the study, which then lets go of the pipes
        )
    steps = total_steps(cell.config) if cell.trains else None
    task = board.add_task(cell.name, total=steps, now="")
    return Running(cell, slot, process, log, task, time.monotonic())


@contextmanager
def _ended(running: Sequence[Running]) -> Iterator[None]:
    """Whatever happens, no process is left behind."""
    try:
        yield
    finally:
        for each in running:
            _let_go(each)
        for each in running:
            each.process.wait()


def _let_go(each: Running) -> None:
    """Close the pipe; a process that is still at work ends with it."""
    assert each.process.stdin is not None
    each.process.stdin.close()


def _board(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _show(each: Running, board: Progress) -> None:
    if not each.cell.trains:
        board.update(each.task, now="measuring")
        return
    metrics = each.cell.records("metrics")
    if not metrics:
        return
    steps, reward = metrics[-1]["step"], metrics[-1].get("reward_mean", 0.0)
    now = "measuring" if steps == total_steps(each.cell.config) else f"reward {reward:.2f}"
    board.update(each.task, completed=steps, now=now)
