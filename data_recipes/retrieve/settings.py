"""What `pairs retrieve` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.features import EncoderSettings


class ParaphraseSettings(Record):
    """A text encoder that says which questions mean the same."""

    path: str = Field(
        description="text-embedding model: a folder (safetensors) or a hub id; tokens are averaged"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id; default: the newest")
    threshold: float = Field(0.95, gt=0, le=1, description="least cosine of two questions that mean the same")
    batch_size: int = Field(64, ge=1, description="questions per forward pass")
    trust_remote_code: bool = Field(False, description="allow code that comes with the model")


class RetrieveConfig(Record):
    """What `vlm-contextrl pairs retrieve` makes."""

    seed: int = Field(
        0,
        ge=0,
        description="which image of a pair is the context is a coin thrown from the seed and the two ids",
    )
    licence: str = Field("", description="licence of rows that name none")
    encoder: EncoderSettings = EncoderSettings()
    cache: Path | None = Field(
        None,
        description="folder that keeps image features for later runs; default: beside the output until it is complete",
    )
    block_by: str = Field(
        "query",
        min_length=1,
        description="only rows of one block are paired: those asked the same (`query`), or with equal values of this key of the provenance",
    )
    same_question: Literal["text", "words", "meaning"] = Field(
        "text",
        description="block_by=query: equal but for spaces; equal but for case, punctuation and articles; or paraphrases by an encoder",
    )
    paraphrase: ParaphraseSettings | None = Field(None, description="the encoder of same_question=meaning")
    options_in_any_order: bool = Field(
        False,
        description="the same options in another order are the same question; answers are then compared by text",
    )
    low: float = Field(0.8, ge=-1, le=1, description="least cosine of the two images")
    high: float = Field(
        1.0, ge=-1, le=1, description="largest cosine of the two images; equal pixels are refused in any case"
    )
    neighbours: int = Field(
        32, ge=1, description="nearest images with another answer that are looked at per row"
    )
    max_pairs_per_image: int = Field(2, ge=1, description="no image is in more pairs")
    index: Literal["exact", "faiss"] = Field(
        "exact", description="faiss (extra `search`) is faster in large blocks on a CPU, and misses a few"
    )
    device: str = Field("auto", description="of the exact search; auto: a GPU when there is one, else cpu")
    batch_size: int = Field(256, ge=1, description="rows that are read at once, and lost by a kill")

    @model_validator(mode="after")
    def _consistent(self) -> RetrieveConfig:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is over high {self.high}")
        if self.block_by != "query" and self.same_question != "text":
            raise ValueError(f"same_question has no effect with block_by={self.block_by}; remove one of them")
        if (self.same_question == "meaning") != (self.paraphrase is not None):
            raise ValueError(
                "same_question=meaning needs paraphrase.path, and paraphrase has no effect without it"
            )
        return self
