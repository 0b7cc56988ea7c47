"""Run configuration: what a run is made of.

The resolved configuration is saved in the run directory. How records are read is in records.py, the terms of a loss are in
term_settings.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlm_contextrl.records import Record, load_config, validate
from vlm_contextrl.term_settings import (
    PolicyTerm,
    PolicyVariant,
    SelectionTerm,
    Stage,
    Term,
    check_length,
    check_terms,
)

__all__ = [
    "DataSettings",
    "LogSettings",
    "LoraSettings",
    "ModelSettings",
    "OptimSettings",
    "PolicyTerm",
    "PolicyVariant",
    "Record",
    "RolloutSettings",
    "RunConfig",
    "SelectionTerm",
    "load_config",
    "validate",
]


class LoraSettings(Record):
    """Low-rank adapters (arXiv 2106.09685)."""

    rank: int = Field(64, ge=1, description="rank of the adapters")
    alpha: int = Field(128, ge=1, description="scale numerator; the update is scaled by alpha / rank")
    vision: bool = Field(False, description="adapt the vision tower as well as the language model")


class ModelSettings(Record):
    """Which model is trained and how."""

    path: str = Field("tinyvl", description="`tinyvl`, a local folder (safetensors) or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    adapter: str | None = Field(None, description="adapter folder to start from")
    tuning: Literal["full", "lora"] = Field(
        "full", description="train all weights of the language model, or adapters"
    )
    lora: LoraSettings = LoraSettings()
    train_vision: bool = Field(
        False, description="full tuning: train the vision tower too (the paper freezes it)"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the stored weights")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="QLoRA: frozen weights of the language model in 4 bits, with double quantisation"
    )
    quantize_vision: bool = Field(False, description="nf4: the frozen vision tower in 4 bits, too")
    autocast: Literal["no", "bf16"] = Field("no", description="precision of matrix products")
    attention: Literal["auto", "flash", "varlen", "flex", "two_part"] = Field(
        "auto",
        description="attention over packed groups (packed_kernels.py); auto: the first that works here",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations of the language model in the backward pass"
    )
    min_pixels: int | None = Field(
        None, ge=1, description="lower bound on the pixels of an image (default: the model's own)"
    )
    max_pixels: int | None = Field(
        None, ge=1, description="upper bound on the pixels of an image (default: the model's own)"
    )
    chat_template: dict[str, Any] = Field(
        {}, description="arguments of the chat template, e.g. enable_thinking"
    )
    trust_remote_code: bool = Field(False, description="allow code that comes with the model")
    feature_cache_mib: float = Field(
        4096, gt=0, description="host memory for the features of a frozen vision tower"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ModelSettings:
        if self.quantization == "nf4" and self.tuning == "full":
            raise ValueError(
                "quantization: nf4 weights cannot be trained; set tuning to lora, or quantization to none"
            )
        if self.quantize_vision and self.quantization == "none":
            raise ValueError(
                "quantize_vision has no effect without quantization: nf4; remove one or set the other"
            )
        if self.train_vision and self.tuning == "lora":
            raise ValueError("train_vision has no effect on adapters; set lora.vision instead")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        return self


class DataSettings(Record):
    """Where questions and pairs come from. Paths are relative to the working directory."""

    questions: Path = Field(description="dataset folder of question rows")
    pairs: Path | None = Field(None, description="dataset folder of contrastive pairs")
    pair_source: Literal["given", "random"] = Field(
        "given",
        description="random: another pair's context with another answer takes the confounder's place (training_rows.py)",
    )
    pairs_as_questions: Literal["selection", "vqa"] | None = Field(
        None,
        description="pairs become questions among the others: which of both contexts supports the answer (selection), "
        "or the query asked of each context (vqa)",
    )
    pairs_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="how many of the rows they are, drawn by the seed; None: every pair takes part",
    )
    eval_questions: Path | None = Field(None, description="held-out questions for evaluation while training")
    eval_pairs: Path | None = Field(None, description="held-out pairs for the probe while training")
    prompt_style: Literal["direct", "reasoning", "plain"] = Field(
        "reasoning", description="how the answer is asked for (prompts.py)"
    )
    max_prompt_tokens: int = Field(16384, ge=1, description="longest prompt; a prompt is never truncated")
    on_overlong: Literal["error", "reject"] = Field(
        "error", description="longer prompts: stop, or write them to rejects.jsonl and go on"
    )


class RolloutSettings(Record):
    """Sampling of completions."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what decodes: the training model itself, or vLLM beside it (extra vllm)"
    )
    vllm_memory_share: float = Field(
        0.3, gt=0, lt=1, description="engine vllm: its share of the device's memory"
    )

    prompts_per_step: int = Field(256, ge=1, description="P: prompts per rollout")
    completions_per_prompt: int = Field(8, ge=2, description="G: completions per prompt, one group")
    max_new_tokens: int = Field(4096, ge=1, description="longest completion")
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; log-probabilities are taken at the same temperature"
    )
    sequences_at_once: int = Field(
        64,
        ge=1,
        description="completions decoded together (engine transformers): more is faster and takes more memory",
    )
    max_logp_gap: float = Field(
        0.1,
        gt=0,
        description="warn when rollout and training log-probabilities differ more (mean, nats per token)",
    )


class OptimSettings(Record):
    """Optimizer (AdamW) and schedule."""

    learning_rate: float = Field(1e-6, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(0, ge=0, description="rollout steps of linear warm-up")
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float = Field(1.0, gt=0)
    prompts_per_update: int = Field(
        64, ge=1, description="prompts per optimizer update; prompts_per_step / this = updates per rollout"
    )
    tokens_per_micro_batch: int = Field(
        16384, ge=1, description="token budget of one forward; groups are never split"
    )
    max_skipped_updates: int = Field(
        10, ge=1, description="stop after this many updates in a row with a non-finite loss or gradient"
    )


class LogSettings(Record):
    """What is written, and where to besides the run directory."""

    save_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    eval_every: int = Field(
        0, ge=0, description="steps between evaluations on eval_questions and eval_pairs (0: never)"
    )
    samples_per_step: int = Field(
        4, ge=0, description="prompts whose completions go to samples.jsonl each step"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="where metrics go besides the run directory"
    )


class RunConfig(Record):
    """One training run."""

    name: str = Field(pattern=r"^[\w.-]*\w[\w.-]*$", description="the run directory is runs/NAME")
    seed: int = 0
    steps: int | None = Field(None, ge=1, description="rollout steps; or give epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the questions; or give steps")
    model: ModelSettings = ModelSettings()
    data: DataSettings
    rollout: RolloutSettings = RolloutSettings()
    optim: OptimSettings = OptimSettings()
    before: list[Stage] = Field([], description="stages that come before the objective, e.g. supervised ones")
    objective: list[Term] = Field(min_length=1, description="weighted terms of the loss")
    log: LogSettings = LogSettings()

    @property
    def stages(self) -> list[Stage]:
        """The run from its first step to its last: those before, then `steps` (or `epochs`) with `objective`."""
        return [*self.before, Stage(steps=self.steps, epochs=self.epochs, objective=self.objective)]

    @property
    def policy_term(self) -> PolicyTerm:
        """The term of the policy, of which there is exactly one."""
        return next(t for t in self.objective if isinstance(t, PolicyTerm))

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        check_length(self.steps, self.epochs)
        if self.rollout.prompts_per_step % self.optim.prompts_per_update:
            raise ValueError(
                f"rollout.prompts_per_step ({self.rollout.prompts_per_step}) must be a multiple of optim.prompts_per_update "
                f"({self.optim.prompts_per_update})"
            )
        if self.model.tuning == "full" and self.model.dtype != "float32":
            raise ValueError(
                "model.tuning: full with dtype: bfloat16 would round small updates away; expected float32 (with autocast: bf16)"
            )
        if self.rollout.engine == "vllm" and self.model.quantization != "none":
            raise ValueError(
                "rollout.engine: vllm cannot take weights in 4 bits; set model.quantization to none, or rollout.engine to transformers"
            )
        if self.log.eval_every and not (self.data.eval_pairs or self.data.eval_questions):
            raise ValueError(
                "log.eval_every needs data.eval_pairs or data.eval_questions; set one, or eval_every: 0"
            )
        names = [t.term for t in self.objective]
        if names.count("policy") != 1:
            raise ValueError(f"objective needs exactly one `policy` term, found {names.count('policy')}")
        check_terms(self.objective)
        for number, stage in enumerate(self.stages):
            if stage.takes_pairs and self.data.pairs is None:
                raise ValueError(
                    f"objective has a {stage.takes_pairs} term: data.pairs must name a folder of pairs"
                )
            if stage.policy and number < len(self.before):
                raise ValueError(
                    f"before.{number}: found a policy term, expected stages without rollouts; make two runs, the second with model.path "
                    "(or model.adapter) of the first"
                )
        if self.before and self.policy_term.kl_coef > 0:
            raise ValueError(
                "policy.kl_coef is over 0 after other stages: the KL would pull back to the model before them; set it to 0, or make two "
                "runs, the second with model.path (or model.adapter) of the first"
            )
        for setting in ("pairs_as_questions", "pair_source"):
            if getattr(self.data, setting) not in (None, "given") and self.data.pairs is None:
                raise ValueError(f"data.{setting} needs pairs: data.pairs must name a folder of pairs")
        if self.data.pairs_share is not None and self.data.pairs_as_questions is None:
            raise ValueError("data.pairs_share has no effect without data.pairs_as_questions")
        return self
