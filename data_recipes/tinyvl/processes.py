"""Several processes on one machine, each with its share of every batch; gradients are averaged (gloo).

On two CPU cores, two processes of one thread each read about 1.8 times as many images as one process of two threads: at these sizes
most operations are too short to be split.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def launch(work: Callable[..., None], n: int, *args: Any) -> None:
    """Run `work(*args)` in `n` processes that see each other; in this one when n is 1."""
    if n == 1:
        work(*args)
        return
    from torch.multiprocessing.spawn import start_processes

    with tempfile.TemporaryDirectory() as folder:
        start_processes(_join, (work, n, Path(folder) / "meeting", args), nprocs=n, start_method="spawn")


def _join(rank: int, work: Callable[..., None], n: int, meeting: Path, args: tuple[Any, ...]) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # how torch ends us with our parent; nohup has it ignored
    torch.set_num_threads(max(1, (os.cpu_count() or n) // n))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n)
    try:
        work(*args)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: range) -> range:
    """The items of this process."""
    return items[rank() :: dist.get_world_size()] if dist.is_initialized() else items


def is_mine(item: int) -> bool:
    """Whether this process does the work numbered `item`."""
    return not dist.is_initialized() or item % dist.get_world_size() == dist.get_rank()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over processes, in one exchange."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over processes."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    add_up(grads)
    for grad in grads:
        grad /= dist.get_world_size()
