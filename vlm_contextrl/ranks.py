"""The processes of a run: one, or those that torchrun started.

Losses are shares of a sum over the whole update, whatever process computes them, so gradients of ranks are added, never averaged, and each
rank may have any number of micro-batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlm_contextrl.errors import InputError
from vlm_contextrl.lazy_rows import ChosenRows

Item = TypeVar("Item")
Made = TypeVar("Made")
PATIENCE = timedelta(hours=6)  # ranks wait for the longest rollout


class Ranks:
    """This process among all; every method but `part` and `is_first` must be called by all of them."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, torch.device(device)

    @classmethod
    def join(cls) -> Ranks:
        """Alone, or as RANK of WORLD_SIZE from torchrun's environment, on the CUDA device LOCAL_RANK if there is one."""
        local, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        if cuda and local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU: {torch.cuda.device_count()} found; lower --nproc_per_node"
            )
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world == 1:
            return cls(device=device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), world, device)

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's items; some ranks get one more than others."""
        return items[self.rank :: self.world]

    def each(self, rows: Sequence[Item], made: Callable[[Sequence[Item]], Sequence[Made]]) -> list[Made]:
        """What `made` gives for rows, one for each, of which every rank makes its part; on all ranks, in the order of the rows."""
        parts = self.gather(list(made(ChosenRows(rows, self.part(range(len(rows)))))))
        return [parts[i % self.world][i // self.world] for i in range(len(rows))]

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, made: Callable[[], Item]) -> Item:
        """What the first rank makes, on all of them."""
        found: Item = self.gather(made() if self.is_first else None)[0]
        return found

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Sums over all ranks."""
        return tuple(sum(column) for column in zip(*self.gather(numbers), strict=True))

    def total_by_name(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks; a rank without an entry counts as 0."""
        gathered = self.gather(numbers)
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0.0) for each in gathered) for name in names}

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks, once per update. Parameters without a gradient on any rank keep none."""
        if self.world == 1:
            return
        present = self.gather([p.grad is not None for p in parameters])
        trained = [p for p, *here in zip(parameters, *present, strict=True) if any(here)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])  # one message; adapters are small
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
