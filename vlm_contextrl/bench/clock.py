"""Time of a call and the memory that autograd keeps for its backward pass.

On a CPU it is process time of one thread, which other programs on the machine disturb little; on a GPU the time between two events.
Calls are run in turns, so that a slow minute hits all of them; the first turn warms up and is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]  # a float that it returns is taken as its seconds; anything else is ignored


class Stopwatch:
    """Seconds between `start` and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._began: Any = None

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()
        else:
            self._began = time.process_time()

    def stop(self) -> float:
        if self.device.type != "cuda":
            return float(time.process_time() - self._began)
        ended = torch.cuda.Event(enable_timing=True)
        ended.record()
        torch.cuda.synchronize(self.device)
        return float(self._began.elapsed_time(ended)) / 1000


def in_turns(
    calls: Mapping[str, Call], rounds: int, device: torch.device, done: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every call in every round. `done` is called after each round, the first included."""
    watch = Stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            watch.start()
            own = call()
            spent = own if isinstance(own, float) else watch.stop()
            if number:
                seconds[name].append(spent)
        done()
    return seconds


class SavedBytes:
    """Bytes of distinct storages that autograd keeps within the block, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._seen: dict[int, int] = {}
        self._kept: list[Tensor] = []  # a freed storage's address may be used again within the block

    def __enter__(self) -> SavedBytes:
        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own and storage.data_ptr() not in self._seen:
                self._seen[storage.data_ptr()] = storage.nbytes()
                self._kept.append(tensor)
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._kept.clear()

    @property
    def mib(self) -> float:
        return sum(self._seen.values()) / 2**20


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread within the block: process time then is the time that the work takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
