"""Run configuration: typed records whose fields carry their documentation.

A YAML file holds values only. Unknown keys fail with the nearest name, rules that span fields live on the record, and the resolved
configuration is saved in the run directory. `key=value` overrides use dotted paths (`optim.learning_rate=1e-5`, `objective.1.weight=0.01`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm_contextrl.errors import ConfigError

PolicyVariant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class Record(BaseModel):
    """Strict base: no unknown keys, no silent change after the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Record):
    """Low-rank adapters (arXiv 2106.09685)."""

    rank: int = Field(64, ge=1, description="rank of the adapters")
    alpha: int = Field(128, ge=1, description="scale numerator; the update is scaled by alpha / rank")
    vision: bool = Field(False, description="adapt the vision tower as well as the language model")


class ModelSettings(Record):
    """Which model is trained and how."""

    path: str = Field("tinyvl", description="`tinyvl`, a local folder (safetensors) or a hub id")
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


class PolicyTerm(Record):
    """Policy gradient on sampled completions (objectives/policy.py)."""

    term: Literal["policy"]
    weight: float = Field(1.0, ge=0)
    variant: PolicyVariant = "grpo"
    clip_low: float | None = Field(
        None, ge=0, lt=1, description="the ratio stays above 1 - clip_low. None: as in the variant's paper"
    )
    clip_high: float | None = Field(
        None, ge=0, description="the ratio stays below 1 + clip_high. None: as in the variant's paper"
    )
    kl_coef: float = Field(0.0, ge=0, description="weight of the k3 estimate of KL(policy || reference)")
    advantage_scale: Literal["group", "batch", "none"] | None = Field(
        None, description="None: the variant's own"
    )
    rewards: dict[str, float] = Field(
        {"accuracy": 0.9, "format": 0.1}, min_length=1, description="built-in name or dotted path -> weight"
    )


class SelectionTerm(Record):
    """Context selection on contrastive pairs (objectives/selection_loss.py)."""

    term: Literal["selection_loss"]
    weight: float = Field(ge=0, description="lambda of the paper")
    clip: Literal["two_sided", "one_sided", "none"] = Field(
        "two_sided", description="which margins lose their gradient outside the clip"
    )
    clip_value: float = Field(5.0, gt=0, description="c: the margin is clipped to [-c, c] (logits)")
    orders: Literal["random", "both"] = Field(
        "random", description="one random option order per pair (paper), or the mean margin of both"
    )
    reverse: bool = Field(False, description="add (A', C-, C+) where the confounder's answer is known")
    pairs_per_update: int = Field(32, ge=1, description="contrastive instances per optimizer update")


Term = Annotated[PolicyTerm | SelectionTerm, Field(discriminator="term")]


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
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []


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
    objective: list[Term] = Field(min_length=1, description="weighted terms of the loss")
    log: LogSettings = LogSettings()

    @property
    def policy_term(self) -> PolicyTerm:
        """The term of the policy, of which there is exactly one."""
        return next(t for t in self.objective if isinstance(t, PolicyTerm))

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
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
        if any(isinstance(t, SelectionTerm) for t in self.objective) and self.data.pairs is None:
            raise ValueError("objective has a selection_loss term: data.pairs must name a folder of pairs")
        names = [t.term for t in self.objective]
        if names.count("policy") != 1:
            raise ValueError(f"objective needs exactly one `policy` term, found {names.count('policy')}")
        if len(set(names)) != len(names):
            raise ValueError("objective names a term twice")
        return self


R = TypeVar("R", bound=BaseModel)


def load_config(record: type[R], path: Path | None, overrides: Sequence[str] = ()) -> R:
    """Read a YAML file (or start empty), apply `key=value` overrides, validate. Raises ConfigError with one line."""
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: found {type(values).__name__} at the top level, expected keys and values"
            )
    for override in overrides:
        _apply(values, override)
    return validate(record, values, str(path) if path else "configuration")


def validate(record: type[R], values: dict[str, Any], where: str) -> R:
    """Validate plain values against a record; the first problem becomes one ConfigError line."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(record, error)}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, for example optim.learning_rate=1e-5")
    try:
        value = _scalar(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not readable as YAML") from None
    node: Any = values
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"override {override!r}: {key} does not lead to a setting") from None


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-5 as a string
            return float(value)
        except ValueError:
            return value
    return value


def _explain(record: type[BaseModel], error: ValidationError) -> str:
    # A mistyped key of a required field is two problems; the unknown key is the one to read.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(record, problem["loc"][:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}{more}"
    if problem["type"] == "missing":
        return f"{where} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{message}{more}" if where == "top level" else f"{where}: {message}{found}{more}"


def _fields_at(record: Any, loc: Sequence[int | str]) -> set[str]:
    """Field names of the record that a location leads to; among the terms of the loss the name of one decides."""
    for part in loc:
        found = _records(record)
        named = [
            r
            for r in found
            if "term" in r.model_fields and part in get_args(r.model_fields["term"].annotation)
        ]
        if named:
            record = named[0]
        elif isinstance(part, str):
            record = next((r.model_fields[part].annotation for r in found if part in r.model_fields), None)
    return {name for found_record in _records(record) for name in found_record.model_fields}


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The records inside a type such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for argument in get_args(annotation) for record in _records(argument)]
