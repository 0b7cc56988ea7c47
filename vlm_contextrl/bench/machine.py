"""The clock of the bench, what the machine does at its best, and what a result was measured on.

On a CPU time is process time of one thread, which other programs on the machine disturb little; on a GPU it is the time between two
events. Calls are run in turns, so that a slow minute hits all of them; the first turn warms up and is not counted.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]
PACKAGES = ("vlm-contextrl", "torch", "transformers", "peft", "trl")


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
    calls: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    *,
    done: Callable[[], None] = lambda: None,
    time_themselves: Collection[str] = (),
) -> dict[str, list[float]]:
    """Seconds of every call in every round. done: called after each round, the first included. time_themselves: names of calls that
    return their seconds."""
    watch = Stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            watch.start()
            returned = call()
            spent = float(returned) if name in time_themselves else watch.stop()
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


@dataclass(frozen=True)
class Machine:
    """What the hardware does at its best, measured: FLOP/s of a matrix product, bytes/s of a copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float


def measured_machine(device: torch.device, dtype: torch.dtype, mib: int = 128) -> Machine:
    """Best of five square products, large enough to fill the device, and of five copies of `mib` MiB."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    seconds = in_turns(calls, 5, device)
    return Machine(2 * n**3 / min(seconds["product"]), 2 * mib * 2**20 / min(seconds["copy"]))


def hardware(device: torch.device, machine: Machine) -> dict[str, Any]:
    """Name of the processor that worked, threads, and its measured best."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "cuda events" if device.type == "cuda" else "process CPU time",
        "matmul_flops_per_s": machine.flops_per_s,
        "copy_bytes_per_s": machine.bytes_per_s,
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide the figures."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
