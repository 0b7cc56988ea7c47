"""Muon in float32, matrices of one shape together.

    M <- mu M + G,   W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) orth(G + mu M)

orth() replaces the singular values of a matrix by about one (five Newton-Schulz steps). Sources: Muon and its coefficients, Keller
Jordan 2024; the scale that matches AdamW's, arXiv 2502.16982. `torch.optim.Muon` computes the same in bfloat16, which a CPU without
bfloat16 instructions emulates: 7 s a step for TinyVL on such a core.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl.data_recipes.tinyvl import processes

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Matrices [N, R, C] with all singular values near one, directions kept."""
    a, b, c = COEFFICIENTS
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x: Tensor = matrices_NRC.mT if tall else matrices_NRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the layers of a model; Nesterov momentum."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads
        """One update of every matrix that has a gradient. Processes share the work: each orthogonalises some shapes for all."""
        todo: list[tuple[list[Tensor], Tensor, dict[str, Any]]] = []
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for owner, parameters in enumerate(by_shape.values()):
                stacked = torch.stack(
                    [self._direction(parameter, group["momentum"]) for parameter in parameters]
                )
                mine = processes.is_mine(owner)
                todo.append(
                    (parameters, orthogonalise(stacked) if mine else torch.zeros_like(stacked), group)
                )
        processes.add_up([stacked for _, stacked, _ in todo])
        for parameters, stacked, group in todo:
            for parameter, update in zip(parameters, stacked, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)

    def _direction(self, parameter: Tensor, beta: float) -> Tensor:
        assert parameter.grad is not None
        momentum: Tensor = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(beta).add_(parameter.grad)
        return parameter.grad.add(momentum, alpha=beta)
