"""Settings of TinyVL: what it is made of and how it is pretrained."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TinyVLConfig(BaseModel):
    """What TinyVL is made of and how it is pretrained."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, description="seed of weights, scenes and order")
    size_px: int = Field(112, description="side of the rendered images")
    vocab_size: int = Field(1536, description="upper bound on the tokenizer's vocabulary")
    hidden: int = Field(192, description="hidden size of the language model (6 heads, 2 key-value heads)")
    layers: int = Field(4, description="layers of the language model")
    intermediate: int = Field(512, description="inner size of its MLP")
    vision_hidden: int = Field(160, description="hidden size of the vision tower (heads of 32)")
    vision_layers: int = Field(4, description="layers of the vision tower")
    vision_intermediate: int = Field(432, description="inner size of its MLP")
    vision_steps: int = Field(1000, description="optimizer steps of the vision stage")
    images_per_step: int = Field(64, description="images per step of the vision stage")
    fact_scenes: int = Field(5000, description="scenes from which the facts of the vision stage are counted")
    facts: int = Field(1024, description="most frequent facts that the vision stage learns")
    steps: int = Field(300, description="optimizer steps of the language stage")
    rows_per_step: int = Field(48, description="packed rows per optimizer step of the language stage")
    answer_steps: int = Field(900, description="optimizer steps of the answer stage")
    answer_rows_per_step: int = Field(32, description="packed rows per optimizer step of the answer stage")
    questions_per_scene: int = Field(3, description="questions beside the description of a scene")
    lookups_per_scene: int = Field(3, description="words of the description to find, beside the questions")
    two_image_share: float = Field(0.25, description="share of rows with two images")
    learning_rate: float = Field(3e-3, description="peak learning rate of the first two stages")
    answer_learning_rate: float = Field(2e-3, description="peak learning rate of the answer stage")
    warmup_steps: int = Field(100, description="linear warm-up")
    weight_decay: float = Field(0.02, description="decoupled weight decay of matrices")
    max_minutes: float = Field(
        0, description="end the language stage after this many minutes at the latest (0: no limit)"
    )
    save_every: int = Field(500, description="steps between intermediate saves")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="precision of matrix products while training"
    )
