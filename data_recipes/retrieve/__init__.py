"""Pairs by similarity search: look-alike images that are asked the same and answer differently (`vlm-contextrl pairs retrieve`)."""

from __future__ import annotations

from vlm_contextrl.data_recipes.retrieve.recipe import run
from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig

__all__ = ["RetrieveConfig", "run"]
