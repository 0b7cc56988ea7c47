"""Settings of TinyVL: what it is made of and how it is pretrained."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vlm_contextrl.data_recipes.render import DomainName


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
    vision_steps: int = Field(600, description="optimizer steps of the vision stage")
    images_per_step: int = Field(128, description="images per step of the vision stage")
    word_scenes: int = Field(3000, description="scenes whose descriptions give the words of the vision stage")
    lookups_per_image: int = Field(12, description="queries per image of the vision stage")
    steps: int = Field(1100, description="optimizer steps of the language stage")
    rows_per_step: int = Field(64, description="packed rows per optimizer step of the language stage")
    reading_steps: int = Field(300, description="of them, the first in which every token counts alike")
    questions_per_scene: int = Field(5, description="questions beside the description of a scene")
    lookups_per_scene: int = Field(4, description="queries of a scene, beside the questions")
    two_image_share: float = Field(0.2, description="share of rows with two images")
    instruction_steps: int = Field(640, description="optimizer steps of the instruction stage")
    instruction_learning_rate: float = Field(2e-3, description="its peak learning rate")
    instruction_domains: tuple[DomainName, ...] = Field(
        (
            "objects",
            "objects",
            "objects",
            "charts",
            "charts",
            "charts",
            "dials",
            "dials",
            "tables",
            "geometry",
        ),
        description="domains of its scenes, drawn uniformly (one named twice weighs double)",
    )
    instruction_two_image_share: float = Field(0.45, description="share of its rows with two images")
    learning_rate: float = Field(3e-3, description="peak learning rate")
    warmup_steps: int = Field(50, description="linear warm-up")
    weight_decay: float = Field(0.02, description="decoupled weight decay of matrices")
    processes: int = Field(2, ge=1, description="processes that share every batch")
    save_every: int = Field(200, description="steps between intermediate saves")
