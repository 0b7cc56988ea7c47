"""Image features: one unit vector per image, kept by the image's content, and exact search for the nearest of them."""

from __future__ import annotations

from vlm_contextrl.data_recipes.features.cache import image_features
from vlm_contextrl.data_recipes.features.row_images import ImagesOf, row_images
from vlm_contextrl.data_recipes.features.search import neighbours
from vlm_contextrl.data_recipes.features.settings import EncoderSettings

__all__ = ["EncoderSettings", "ImagesOf", "image_features", "neighbours", "row_images"]
