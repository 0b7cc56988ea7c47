"""Settings of composed pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vlm_contextrl.config import Record

Edit = Literal["replaced", "moved", "recoloured", "removed", "resized"]


class ComposeConfig(Record):
    """What `vlm-contextrl pairs compose` makes."""

    photographs: Path = Field(
        description="folder of photographs (PNG, JPEG, WEBP, GIF, BMP), searched with its subfolders"
    )
    cutouts: Path = Field(
        description="folder of labelled cut-outs: images with transparency, named after what they show; subfolders are categories"
    )
    count: int = Field(1000, ge=1, description="pairs to make")
    seed: int = Field(0, ge=0, description="pair i depends on the seed, on i and on the two folders only")
    size_px: int = Field(448, ge=112, le=2048, description="longer side of the pictures")
    edits: list[Edit] = Field(
        ["replaced", "moved", "recoloured", "removed", "resized"],
        min_length=1,
        description="what changes, drawn uniformly",
    )
    exclude: list[str] = Field(
        [], description="patterns of files to leave out, e.g. cutouts/symbols/*; a star takes slashes, too"
    )
    choice_share: float = Field(
        0.3, ge=0, le=1, description="share of multiple choice among the questions that allow it"
    )
    smallest: float = Field(
        0.12,
        ge=0.03,
        le=0.6,
        description="least size of an object: the square root of its share of the picture's area",
    )
    largest: float = Field(0.28, ge=0.03, le=0.6, description="greatest size of an object")
    min_cutout_px: int = Field(
        64, ge=16, description="least resolution of a cut-out: its object's longer side"
    )
    same_category: bool = Field(
        False,
        description="let a scene hold several labels of one category, which must then exclude each other (cat, dog; not bird, penguin)",
    )
    feather_px: float = Field(0.7, ge=0, le=3, description="standard deviation of the soft edge")
    light: float = Field(
        0.3, ge=0, le=1, description="how far an object is moved to the light around it, within bounds"
    )
    photograph_licence: str = Field("", description="licence of photographs that name none")
    cutout_licence: str = Field("", description="licence of cut-outs that name none")
    batch_size: int = Field(
        32, ge=1, description="pairs per part; a killed run goes on after the last whole part"
    )
    control_pairs: int = Field(
        400, ge=0, description="pairs on which the trace control is run; 0 leaves it out"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ComposeConfig:
        if len(set(self.edits)) < len(self.edits):
            raise ValueError("edits names one twice; name each once")
        if self.largest < 1.3 * self.smallest:
            raise ValueError(
                f"largest is {self.largest:g} and smallest {self.smallest:g}; expected largest to be at least 1.3 times smallest, "
                "so that objects can differ in size"
            )
        return self
