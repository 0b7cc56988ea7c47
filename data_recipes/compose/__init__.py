"""`pairs compose`: labelled cut-outs over photographs, with exact ground truth."""

from __future__ import annotations

from vlm_contextrl.data_recipes.compose.recipe import run
from vlm_contextrl.data_recipes.compose.settings import ComposeConfig

__all__ = ["ComposeConfig", "run"]
