"""What shapes the answers of an evaluation, and therefore its cache key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vlm_contextrl.config import ModelSettings, Record
from vlm_contextrl.eval.judge import JudgeSettings
from vlm_contextrl.eval.stand_ins import BEHAVIOURS
from vlm_contextrl.prompts import Style


class EvalSettings(Record):
    """One evaluation: a model, how it is asked, where the questions come from."""

    model: str = Field(description="tinyvl, a folder, a hub id, or a stand-in: oracle, wrong, first")
    adapter: str | None = Field(None, description="adapter folder")
    merge: bool = Field(False, description="make the adapter part of the weights before answering")
    load_in_4bit: bool = Field(False, description="weights of the language model in 4 bits (nf4)")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the weights")
    attention: Literal["auto", "flash", "varlen", "flex", "two_part"] = Field(
        "auto", description="see packed_kernels.py"
    )
    min_pixels: int | None = Field(None, ge=1, description="lower bound on the pixels of an image")
    max_pixels: int | None = Field(None, ge=1, description="upper bound on the pixels of an image")
    chat_template: dict[str, Any] = Field({}, description="arguments of the chat template")
    style: Style = Field("reasoning", description="how a question asks for its answer")
    max_new_tokens: int = Field(2048, ge=1, description="longest answer, the same for every benchmark")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="what generates")
    batch_size: int = Field(8, ge=1, description="questions answered together; does not change the answers")
    data_root: Path | None = Field(None, description="local data instead of the hub")
    limit: int | None = Field(None, ge=1, description="the first N samples of each task")
    probe_mode: Literal["logits", "generation"] = Field(
        "logits",
        description="selection probes: compare the logits of the options, or read the letter of a reply",
    )
    niah_lengths: tuple[int, ...] = Field(
        (4096, 8192, 16384, 32768), min_length=1, description="niah: tokens per prompt, answer included"
    )
    judge: JudgeSettings | None = Field(None, description="judge of open answers that rules find wrong")

    @model_validator(mode="after")
    def _consistent(self) -> EvalSettings:
        if self.is_stand_in and (self.adapter or self.load_in_4bit):
            raise ValueError(
                f"model: {self.model} is a stand-in; it takes no adapter and no weights in 4 bits"
            )
        if self.merge and not self.adapter:
            raise ValueError("merge: there is no adapter to merge; name one or leave it out")
        if self.merge and self.load_in_4bit:
            raise ValueError(
                "merge: weights in 4 bits would lose the adapter to rounding; leave out one of the two"
            )
        if self.engine == "vllm" and self.load_in_4bit:
            raise ValueError("engine: vllm takes no weights in 4 bits here; choose transformers")
        return self

    @property
    def is_stand_in(self) -> bool:
        return self.model in BEHAVIOURS

    def model_settings(self) -> ModelSettings:
        """The same for the core's loader."""
        return ModelSettings(
            path=self.model, adapter=self.adapter, tuning="lora" if self.load_in_4bit else "full", dtype=self.dtype,
            quantization="nf4" if self.load_in_4bit else "none", attention=self.attention, min_pixels=self.min_pixels,
            max_pixels=self.max_pixels, chat_template=self.chat_template,
        )  # fmt: skip

    def what_shapes_answers(self) -> dict[str, Any]:
        """The settings that another answer could come from. Batch size and limit are not among them, nor what only probes or texts use."""
        left_out = {
            "batch_size",
            "data_root",
            "limit",
            "model",
            "adapter",
            "judge",
            "probe_mode",
            "niah_lengths",
        }
        return self.model_dump(mode="json", exclude=left_out)


def digest(value: Any) -> str:
    """sha256 of a JSON value, the order of keys left aside."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
