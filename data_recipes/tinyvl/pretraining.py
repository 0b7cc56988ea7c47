"""TinyVL: the embedded model, trained from scratch on rendered scenes.

A Qwen2.5-VL architecture of a few million parameters with its own tokenizer, Qwen's special tokens and chat format, saved in the ordinary
Hugging Face layout. Three stages: the vision tower alone looks facts up (vision_stage.py); everything together learns to read with dense
supervision, every image with one description of all its facts and several questions, packed behind one copy of the image (rows.py,
packing.py); then it learns what can be asked about what it reads, of one image or two (instructions.py). Plain questions alone leave a
model of this size at chance for hours.

The model never sees a selection prompt, so it selects near 0.5 while the skills that selection needs are there. That is the state of the
large models in arXiv 2606.17053, and it is what ContextRL is for.

What it leaves out: everything outside the five rendered domains. It is a model to see a method work on, not a model to use.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from vlm_contextrl import attention
from vlm_contextrl.data_recipes.tinyvl import processes
from vlm_contextrl.data_recipes.tinyvl.architecture import SPECIAL_TOKENS, build_model, build_tokenizer
from vlm_contextrl.data_recipes.tinyvl.card import measure, write_card
from vlm_contextrl.data_recipes.tinyvl.instructions import InstructionRows
from vlm_contextrl.data_recipes.tinyvl.muon import Muon
from vlm_contextrl.data_recipes.tinyvl.rows import PretrainingRows, Rows, corpus
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.data_recipes.tinyvl.vision_stage import LookupHead, scene_words, vision_loss
from vlm_contextrl.errors import InputError
from vlm_contextrl.packing import PackedBatch, PackedRow, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import Processor, load_processor

Shares = list[Callable[[], Tensor]]  # each runs one forward; together they are the loss of a step
VISION_SCENES = 10_000_000  # scene numbers of the vision stage start here, so that the stages share none
LOG = "pretraining.jsonl"
ROWS_PER_FORWARD = 8  # more do not fit a core's cache: 1.4 times the time per row at 32


def run(config: TinyVLConfig, out: Path) -> dict[str, Any]:
    """Build tokenizer and model, pretrain in three stages, save; returns what the card reports.

    A stage that is complete in `out/stages` is not run again, an interrupted one goes on from its last save. Raises InputError when
    `out` holds something else.
    """
    settings = out / "stages" / "settings.json"
    if settings.is_file():
        if json.loads(settings.read_text()) != config.model_dump(mode="json"):
            raise InputError(f"{out}: was begun with other settings; name another folder or remove it")
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not empty; name another folder or remove it")
    else:
        settings.parent.mkdir(parents=True)
        save_processor(build_tokenizer(corpus(config, 3000), config.vocab_size), out)
        settings.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    processes.launch(pretrain, config.processes, config, out)
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    measured = measure(out, config.size_px)
    result = {
        "parameters": measured.pop("parameters"),
        "stages": {line.pop("stage"): line for line in lines},
    }
    write_card(out, config, result, measured)
    return result | measured


def pretrain(config: TinyVLConfig, out: Path) -> None:
    """All stages, in one process of several; process 0 writes."""
    processor = read_processor(out)
    model = build_model(config, processor.tokenizer)
    attention.register()
    model.set_attn_implementation({"text_config": attention.PACKED, "vision_config": "sdpa"})
    policy = Policy(model, processor)
    log = StageLog(out, lambda: save(model, processor, out))
    for stage in (vision_stage, language_stage, instruction_stage):
        done = out / "stages" / f"{stage.__name__}.safetensors"
        if done.is_file():
            load_model(model, done)
            continue
        stage(policy, config, log)
        if log.is_writer:
            save_model(model, str(done.with_suffix(".part")))
            done.with_suffix(".part").rename(done)
            for partial_save in done.parent.glob("*.partial.pt"):
                partial_save.unlink()
    log.save()


class StageLog:
    """Progress bar on the terminal, a line in pretraining.jsonl every 20 steps, intermediate saves; all in process 0 only."""

    def __init__(self, out: Path, save: Callable[[], None]) -> None:
        self.out = out
        self.is_writer = processes.rank() == 0
        self._save = save
        self.began = time.monotonic()

    def save(self) -> None:
        if self.is_writer:
            self._save()

    def bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, disable=not self.is_writer)

    def write(self, stage: str, step: int, loss: float) -> None:
        if self.is_writer:
            minutes = (time.monotonic() - self.began) / 60
            with (self.out / LOG).open("a") as file:
                file.write(
                    json.dumps({"stage": stage, "step": step, "loss": loss, "minutes": minutes}) + "\n"
                )


def optimizers(model: nn.Module, config: TinyVLConfig) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside the layers, AdamW for the rest."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "places"))
        (matrices if inside else rest).append(parameter)
    return [
        Muon(matrices, config.learning_rate, config.weight_decay),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(progress: float, step: int, warmup_steps: int) -> float:
    """Linear warm-up, then cosine to 2% of the peak; `progress` runs from 0 to 1."""
    return min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimise(
    stage: str,
    model: nn.Module,
    config: TinyVLConfig,
    steps: int,
    learning_rate: float,
    make_shares: Callable[[int], Shares],
    log: StageLog,
) -> None:
    """Warm up, anneal, step: the loop of every stage. Goes on from the stage's last save, to the same weights as an unbroken run."""
    opts = optimizers(model, config)
    parameters = list(model.parameters())
    place = log.out / "stages" / f"{stage}.partial.pt"
    start = resume(place, model, opts)
    log.began = time.monotonic()
    recent: list[float] = []
    with log.bar() as bar:
        task = bar.add_task(stage, total=steps, completed=start)
        for step in range(start, steps):
            for opt in opts:
                opt.zero_grad(set_to_none=True)
                for group in opt.param_groups:
                    group["lr"] = learning_rate * schedule(step / steps, step, config.warmup_steps)
            total = 0.0
            for share in make_shares(step):
                loss = share()
                loss.backward()
                total += loss.item()
            processes.average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for opt in opts:
                opt.step()
            recent = [*recent[-19:], total]
            if (step + 1) % 20 == 0 or step + 1 == steps:
                mean = sum(recent) / len(recent)
                log.write(stage, step + 1, mean)
                bar.update(task, completed=step + 1, description=f"{stage}  loss {mean:.3f}")
            if (step + 1) % config.save_every == 0 and log.is_writer:
                state = {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in opts],
                }
                torch.save(state, place.with_suffix(".unfinished"))
                place.with_suffix(".unfinished").rename(place)
                log.save()


def resume(place: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> int:
    """Load the save of an interrupted stage; returns its step, 0 without one."""
    if not place.is_file():
        return 0
    state = torch.load(place, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"])


def vision_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """The tower alone (vision_stage.py); then the language model starts with the words that were learned."""
    if not config.vision_steps:
        return
    grid = config.size_px // 28
    torch.manual_seed(config.seed)
    head = LookupHead(scene_words(config), config.hidden, grid * grid)
    both = nn.ModuleDict({"visual": policy.base.model.visual, "head": head})
    n = config.images_per_step

    def make(step: int) -> Shares:
        first = VISION_SCENES + step * n
        indices = processes.share(range(first, first + n))
        return [vision_loss(policy.base, head, policy.processor, config, indices)]

    optimise("vision", both, config, config.vision_steps, config.learning_rate, make, log)
    head.give_vectors(policy.base, policy.processor.tokenizer)


def language_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """Everything together. At first every token counts alike: mostly descriptions, which is how the decoder learns to read the tower. Then
    every continuation counts alike: an answer of one token as much as a description of forty."""
    rows = PretrainingRows(config, policy.processor)

    def make(step: int) -> Shares:
        reduce = EVERY_TOKEN if step < config.reading_steps else EVERY_CONTINUATION
        return row_shares(policy, config, rows, step, reduce)

    optimise("language", policy.base, config, config.steps, config.learning_rate, make, log)


def instruction_stage(policy: Policy, config: TinyVLConfig, log: StageLog) -> None:
    """What can be asked about what is read (instructions.py)."""
    rows = InstructionRows(config, policy.processor)

    def make(step: int) -> Shares:
        return row_shares(policy, config, rows, step, EVERY_CONTINUATION)

    steps, learning_rate = config.instruction_steps, config.instruction_learning_rate
    optimise("instruction", policy.base, config, steps, learning_rate, make, log)


def row_shares(policy: Policy, config: TinyVLConfig, rows: Rows, step: int, reduce: Reduction) -> Shares:
    """This process's rows of a step, in forwards of `ROWS_PER_FORWARD`."""
    pad_id = policy.processor.tokenizer.pad_token_id
    n = config.rows_per_step
    indices = processes.share(range(step * n, (step + 1) * n))
    made = sorted((rows.row(index) for index in indices), key=PackedRow.n_tokens)  # little padding
    units = sum(reduce.units(row) for row in made)

    def share(some: list[PackedRow]) -> Tensor:
        batch = pack(some, policy.positions, pad_id)
        return reduce.total(batch, policy.completion_logps(batch)[0]) / units

    return [partial(share, made[i : i + ROWS_PER_FORWARD]) for i in range(0, len(made), ROWS_PER_FORWARD)]


class Reduction(NamedTuple):
    """How the labels of a step become its loss: a sum over a batch, divided by the units of all rows of the step."""

    total: Callable[[PackedBatch, Tensor], Tensor]
    units: Callable[[PackedRow], int]


EVERY_TOKEN = Reduction(
    total=lambda batch, logps_L: -logps_L.sum(),
    units=lambda row: sum(len(c.ids) - c.n_given for c in row.continuations),
)
EVERY_CONTINUATION = Reduction(
    total=lambda batch, logps_L: (
        -torch.stack([part.mean() for row in batch.split(logps_L) for part in row]).sum()
    ),
    units=lambda row: len(row.continuations),
)


def save_processor(tokenizer: Any, out: Path) -> None:
    """Tokenizer and image processor of a model folder."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer.save_pretrained(out)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}
    Qwen2VLImageProcessorPil(size=size).save_pretrained(out)


def read_processor(out: Path) -> Processor:
    """What `save_processor` wrote."""
    processor = load_processor(str(out), SPECIAL_TOKENS.index("<|image_pad|>"))
    assert processor.image_token == "<|image_pad|>"
    return processor


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
