"""The memory that a training step really takes on a GPU: random weights of the model's shape, one micro-batch as estimated.

The weights go through a folder and `load_policy`, so that adapters, nf4 and kernels are those of a run. Selection pairs, which are smaller
than a micro-batch of groups, are left out; so are rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vlm_contextrl.bench.model_shapes import model_config
from vlm_contextrl.bench.shapes import Shape, bench_processor
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import InputError
from vlm_contextrl.models import autocast, load_policy
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage
from vlm_contextrl.rollout import Completion
from vlm_contextrl.terms import Group, PolicyObjective, Update

GIB = 2**30


def measure_on_gpu(config: RunConfig, assumed: Mapping[str, int]) -> dict[str, float]:
    """Peak GiB of a micro-batch and of the optimizer in the second step. assumed: as `memory.estimate` gives it.

    Raises InputError without a GPU and when its memory does not suffice.
    """
    if not torch.cuda.is_available():
        raise InputError("--measure needs a CUDA device and finds none; leave it out for the estimate alone")
    device = torch.device("cuda")
    peaks: dict[str, float] = {}

    def begin() -> None:
        torch.cuda.reset_peak_memory_stats(device)

    def end(name: str) -> None:
        peaks[name] = torch.cuda.max_memory_allocated(device) / GIB

    try:
        two_steps(config, assumed, device, begin, end)
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory / GIB
        used = torch.cuda.max_memory_allocated(device) / GIB
        raise InputError(
            f"measuring: out of device memory with {used:.2f} of {total:.2f} GiB in use; lower optim.tokens_per_micro_batch, or leave "
            "--measure out"
        ) from error
    return peaks


def two_steps(
    config: RunConfig,
    assumed: Mapping[str, int],
    device: torch.device,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[str], None] = lambda name: None,
) -> None:
    """Load random weights and take two optimizer steps of one micro-batch. In the second, whose parts `begin` and `end` enclose, moments
    and gradients exist, as in any but the first micro-batch of a run."""
    with TemporaryDirectory() as folder:
        _write_random_model(config, Path(folder))
        settings = config.model.model_copy(update={"path": folder, "adapter": None})
        policy = load_policy(settings, device)
        term = config.policy_term
        reference = term.kl_coef > 0 and settings.tuning == "full"
        held = load_policy(settings, device, trainable=False) if reference else None
    trainable = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.optim.learning_rate)
    objective = PolicyObjective(term, config.rollout.max_new_tokens, config.rollout.temperature)
    update = Update(_groups(policy, config, assumed, term.kl_coef > 0), [], "0")
    for _ in range(2):
        begin()
        for share in objective.shares(policy, update, max(1, assumed["micro_batch_tokens"])):
            with autocast(settings, device):
                loss, _ = share()
            loss.backward()
            del loss
        end("usual micro-batch")
        begin()
        optimizer.step()
        end("optimizer step")
    del held


def _write_random_model(config: RunConfig, folder: Path) -> None:
    """Weights, tokenizer and image processor in the form that `load_policy` reads."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    shape, _ = model_config(config.model.path)
    tokenizer = bench_processor(Shape()).tokenizer
    ids = tokenizer.convert_tokens_to_ids
    shape.image_token_id, shape.video_token_id = ids("<|image_pad|>"), ids("<|video_pad|>")
    shape.vision_start_token_id, shape.vision_end_token_id = ids("<|vision_start|>"), ids("<|vision_end|>")
    model = AutoModelForImageTextToText.from_config(shape, dtype=getattr(torch, config.model.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=shape.vision_config.patch_size).save_pretrained(folder)


def _groups(
    policy: Policy, config: RunConfig, assumed: Mapping[str, int], with_reference: bool
) -> list[Group]:
    """Groups of one image each that fill the micro-batch."""
    G = config.rollout.completions_per_prompt
    image = _image(policy, assumed["image_tokens"])
    ids, n_text = policy.processor.tokenizer.convert_tokens_to_ids, assumed["prompt_tokens"] - image.n_tokens
    text = torch.full((max(1, n_text - 2),), 100)
    start, end = torch.tensor([ids("<|vision_start|>")]), torch.tensor([ids("<|vision_end|>")])
    placeholders = torch.full((image.n_tokens,), policy.processor.image_token_id)
    prompt = EncodedPrompt(torch.cat([start, placeholders, end, text]), (image,))
    room = assumed["micro_batch_tokens"] - len(prompt) + 1
    C = max(1, min(config.rollout.max_new_tokens, room // G))
    n_prompts = max(1, assumed["micro_batch_tokens"] // (len(prompt) - 1 + G * C))
    row = QuestionRow(id="q", query="?", answer="7", provenance={"licence": "CC0-1.0"})
    completions = [Completion(torch.full((C,), 100), torch.zeros(C), True) for _ in range(G)]
    advantages_G = torch.linspace(-1, 1, G)
    reference = [torch.zeros(C) for _ in range(G)] if with_reference else []
    return [
        Group(row, prompt, completions, [""] * G, [0.0] * G, advantages_G, ref_logps=reference)
        for _ in range(n_prompts)
    ]


def _image(policy: Policy, n_tokens: int) -> ProcessedImage:
    """Noise patches of a nearly square image of at most that many visual tokens."""
    vision: Any = policy.base.config.vision_config
    merge = vision.spatial_merge_size
    rows = max(1, math.isqrt(n_tokens))
    columns = max(1, n_tokens // rows)
    grid = (1, merge * rows, merge * columns)
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(grid[1] * grid[2], values)
    return ProcessedImage("noise", grid, rows * columns, lambda: patches)
