"""TinyVL: the embedded model, trained from scratch on rendered scenes.

A Qwen2.5-VL architecture of a few million parameters with its own tokenizer, Qwen's special tokens and chat format, saved in the ordinary
Hugging Face layout. It is pretrained with dense supervision: every image carries one description of all its facts and several
questions, packed behind one copy of the image (packing.py). Plain questions alone leave a model of this size at chance for hours.

A share of the rows shows two images and asks about either; another suffix asks whether an answer is right. The model never sees a
selection prompt, so it selects near 0.5 while the skills that selection needs are there. That is the state of the large models in
arXiv 2606.17053, and it is what ContextRL is for.

What it leaves out: everything outside the five rendered domains. It is a model to see a method work on, not a model to use.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_contextrl import attention
from vlm_contextrl.data_recipes.tinyvl.architecture import build_model, build_tokenizer
from vlm_contextrl.data_recipes.tinyvl.card import measure, write_card
from vlm_contextrl.data_recipes.tinyvl.rows import PretrainingRows, corpus
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.data_recipes.tinyvl.vision_stage import FactHead, vision_loss
from vlm_contextrl.errors import InputError
from vlm_contextrl.packing import PackedBatch, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import Processor, load_processor

LossOfStep = Callable[[int], Callable[[], Tensor]]
VISION_SCENES = 10_000_000  # scene numbers of the vision stage start here, so that the stages share none


def optimizers(model: Any, config: TinyVLConfig) -> list[torch.optim.Optimizer]:
    """Muon (torch.optim.Muon, arXiv 2502.16982 scaling) for matrices inside the layers, AdamW for the rest."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (
            matrices
            if parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "head."))
            else rest
        ).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(progress: float, step: int, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to 2% of the peak; `progress` runs from 0 to 1."""
    return min(1.0, (step + 1) / warmup_steps) * (
        0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


def run(config: TinyVLConfig, out: Path) -> dict[str, Any]:
    """Build tokenizer and model, pretrain in three stages, save; returns what the card reports."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not empty; name another folder or remove it")
    tokenizer = build_tokenizer(corpus(config, 3000), config.vocab_size)
    model = build_model(config, tokenizer)
    attention.register()
    # Matrix products beat torch's fused attention backward in bfloat16 on a CPU (attention.py).
    model.set_attn_implementation({"text_config": attention.PACKED, "vision_config": "eager"})
    policy = Policy(model, _processor(tokenizer, out))
    log = StageLog(out, lambda: save(model, policy.processor, out))
    vision_stage(policy, config, log)
    language_stage(policy, config, log)
    answer_stage(policy, config, log)
    save(model, policy.processor, out)
    result = {"parameters": sum(p.numel() for p in model.parameters()), "stages": log.last}
    measured = measure(out, config.size_px)
    write_card(out, config, result, measured)
    return result | measured


class StageLog:
    """Progress bar on the terminal, a line in pretraining.jsonl every 20 steps, intermediate saves."""

    def __init__(self, out: Path, save: Callable[[], None]) -> None:
        self.out = out
        self.save = save
        self.began = time.monotonic()
        self.last: dict[str, dict[str, float]] = {}

    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )

    def write(self, stage: str, step: int, loss: float) -> None:
        self.last[stage] = {"step": step, "loss": loss, "minutes": self.minutes()}
        with (self.out / "pretraining.jsonl").open("a") as file:
            file.write(json.dumps({"stage": stage, **self.last[stage]}) + "\n")


def optimise(
    stage: str,
    model: nn.Module,
    config: TinyVLConfig,
    steps: int,
    make_loss: LossOfStep,
    log: StageLog,
    max_minutes: float = 0,
) -> None:
    """Warm up, anneal, step: the loop of every stage. `make_loss(step)` prepares data and gives the loss to run."""
    opts = optimizers(model, config)
    began = log.minutes()
    with log.bar() as bar:
        task = bar.add_task(stage, total=steps)
        for step in range(steps):
            by_clock = (log.minutes() - began) / max_minutes if max_minutes else 0.0
            progress = max(step / steps, by_clock)
            if progress >= 1:
                break
            loss_of = make_loss(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
                loss = loss_of()
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = config.learning_rate * schedule(progress, step, config.warmup_steps)
                opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
            if step and step % config.save_every == 0:
                log.save()
            if step % 20 == 0:
                log.write(stage, step, loss.item())
                bar.update(task, completed=step, description=f"{stage}  loss {loss.item():.3f}")


def vision_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """The tower alone (vision_stage.py)."""
    if not config.vision_steps:
        return
    grid = config.size_px // 28
    head = FactHead(config, grid * grid)
    both = nn.ModuleDict({"visual": policy.base.model.visual, "head": head})

    def make(step: int) -> Callable[[], Tensor]:
        return vision_loss(
            policy.base, head, policy.processor, config, VISION_SCENES + step * config.images_per_step
        )

    optimise("vision", both, config, config.vision_steps, make, log)


def language_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """Everything together, every token alike: mostly descriptions, which is how the decoder learns to read the tower."""
    optimise(
        "language",
        policy.base,
        config,
        config.steps,
        _loss_on_rows(policy, config, 0, config.rows_per_step, _token_mean),
        log,
    )


def answer_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """The same rows with every continuation alike: an answer of one token counts as much as a description of forty."""
    first = config.steps * config.rows_per_step
    make_loss = _loss_on_rows(policy, config, first, config.answer_rows_per_step, _continuation_mean)
    slower = config.model_copy(update={"learning_rate": config.answer_learning_rate})
    optimise("answers", policy.base, slower, config.answer_steps, make_loss, log, config.max_minutes)


def _token_mean(batch: PackedBatch, logps_L: Tensor) -> Tensor:
    return -logps_L.mean()


def _continuation_mean(batch: PackedBatch, logps_L: Tensor) -> Tensor:
    return -torch.stack([part.mean() for row in batch.split(logps_L) for part in row]).mean()


def _loss_on_rows(
    policy: Policy, config: TinyVLConfig, first: int, n: int, reduce: Callable[[PackedBatch, Tensor], Tensor]
) -> LossOfStep:
    """`n` rows a step, from row `first` on."""
    rows = PretrainingRows(config, policy.processor)
    pad_id = policy.processor.tokenizer.pad_token_id

    def make(step: int) -> Callable[[], Tensor]:
        batch = pack([rows.row(first + step * n + i) for i in range(n)], policy.positions, pad_id)
        return lambda: reduce(batch, policy.completion_logps(batch)[0])

    return make


def _processor(tokenizer: Any, out: Path) -> Processor:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}).save_pretrained(
        out
    )
    return load_processor(str(out), tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def save(model: Any, processor: Processor, out: Path) -> None:
    """Write bfloat16 weights, tokenizer and image processor as an ordinary model folder, which `AutoProcessor` reads as well."""
    import copy

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    processor.save(str(out))
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((out / name).read_text())
        (out / name).write_text(
            json.dumps(settings | {"processor_class": "Qwen2_5_VLProcessor"}, indent=2) + "\n"
        )
