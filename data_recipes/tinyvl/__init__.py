"""The recipe that makes the embedded model."""

from vlm_contextrl.data_recipes.tinyvl.pretraining import run
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig

__all__ = ["TinyVLConfig", "run"]
