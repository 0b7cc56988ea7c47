"""The commands of `vlm-contextrl`, one module per group.

These modules load fast: what a command needs is imported inside it. The rooms beside the core (data_recipes,
eval, app) are never imported by name; `leaf` finds them when a command runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def leaf(target: str) -> Any:
    """The object that "package.module:name" names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
