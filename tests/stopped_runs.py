"""Training runs that are stopped from within, after a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Stopped(Exception):
    """Raised from on_step."""


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    """An `on_step` that ends the run after this step."""

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            raise Stopped

    return on_step
