"""Device memory of a training run by part, from the configuration of the run and of the model alone.

Weights, adapters, gradients and optimizer moments are counted on the model's own parameters (built without memory); nf4 is what
bitsandbytes stores: half a byte per weight, one byte per block of 64, four per 256 blocks, and its code tables. Activations are counted
by the formulas of activations.py. Bytes per parameter of what is trained: 4 weight, 4 gradient, 8 moments.

    always             = weights + adapters + gradients + moments + reference
    usual micro-batch  = always + 16-bit copies + features + activations + LM head, of groups that fit into `tokens_per_micro_batch`
    longest group      = the same of one group whose completions all have `max_new_tokens`, which is not split
    optimizer step     = always + 4 bytes per trained weight (AdamW of torch, all tensors at once)
    rollout            = always + 16-bit copies + cache of keys and values + logits + one image through the vision tower

16-bit copies are what autocast keeps: of trained float32 weights outside the LM head, adapters among them. With checkpointing they are
gone when a layer is recomputed; they are counted together all the same, so a micro-batch of full tuning is an upper bound by one layer.

Gradients live until the next update begins, so in rollouts, too.

Left out: the CUDA context (about 0.5 GiB), fragmentation, gradients of single activations, a dequantised matrix, vLLM (it takes a share of
its own). One process is assumed; sharding divides the weights of full fine-tuning and what goes with them by the number of processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_contextrl.bench.activations import (
    Batch,
    Precision,
    Sizes,
    decoder_bytes,
    head_bytes,
    kernel_on_a_gpu,
    vision_bytes,
)
from vlm_contextrl.bench.model_shapes import empty_model, model_config
from vlm_contextrl.config import ModelSettings, RunConfig
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.models import lora_targets, resolve

GIB = 2**30
NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
NF4_TABLES = 4 * (16 + 256 + 1)  # both code tables and the offset, per matrix
TEXT_TOKENS = 256  # assumed beside the image of a question
# preprocessor_config.json of the repositories on the Hugging Face hub; of Qwen3-VL as quoted in github.com/QwenLM/Qwen3-VL/issues/1836
DEFAULT_MAX_PIXELS = {"qwen2_5_vl": 12_845_056, "qwen3_vl": 16_777_216}


def nf4_bytes(n_weights: int) -> int:
    """Bytes of one matrix in 4-bit NormalFloat with double quantisation (arXiv 2305.14314), as bitsandbytes keeps it."""
    blocks = -(-n_weights // NF4_BLOCK)
    return -(-n_weights // 2) + blocks + 4 * -(-blocks // NF4_NESTED_BLOCK) + NF4_TABLES


@dataclass(frozen=True)
class Weights:
    """Counts of parameters and the bytes of those that are stored."""

    parameters: int
    stored_bytes: int
    adapters: int  # parameters
    trainable: int
    cast: int  # trained weights of which autocast keeps a 16-bit copy


def count_weights(model: Any, settings: ModelSettings) -> Weights:
    """What a model of these shapes holds under these settings; `model` may be empty."""
    from torch import nn

    element = {"float32": 4, "bfloat16": 2}[settings.dtype]
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantised = {
        f"{name}.weight"
        for name in linear
        if settings.quantization == "nf4"
        and name.rpartition(".")[2] != "lm_head"
        and (settings.quantize_vision or not name.startswith("model.visual"))
    }
    parameters = dict(model.named_parameters())
    stored = sum(
        nf4_bytes(p.numel()) if name in quantised else element * p.numel() for name, p in parameters.items()
    )
    total = sum(p.numel() for p in parameters.values())
    autocast = settings.autocast == "bf16"
    if settings.tuning == "lora":
        targets = lora_targets(settings.lora.vision)
        adapted = [m for name, m in linear.items() if re.fullmatch(targets, name)]
        adapters = sum(settings.lora.rank * (m.in_features + m.out_features) for m in adapted)
        return Weights(total, stored, adapters, adapters, adapters if autocast else 0)
    trained = {
        name: p
        for name, p in parameters.items()
        if settings.train_vision or not name.startswith("model.visual")
    }
    of_products = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv3d))]
    cast = sum(
        trained[name].numel()
        for module in of_products
        if module.rpartition(".")[2] != "lm_head"
        for name in (f"{module}.weight", f"{module}.bias")
        if name in trained
    )
    return Weights(total, stored, 0, sum(p.numel() for p in trained.values()), cast if autocast else 0)


def estimate(config: RunConfig) -> dict[str, Any]:
    """Parts and peaks in GiB, with what was assumed, ready for JSON."""
    model_settings = config.model
    shape, source = model_config(model_settings.path)
    weights = count_weights(empty_model(shape), model_settings)
    policy = config.policy_term
    image_tokens = _image_tokens(model_settings, shape, config.data.max_prompt_tokens)
    prompt = min(image_tokens + TEXT_TOKENS, config.data.max_prompt_tokens)
    G, C, budget = (
        config.rollout.completions_per_prompt, config.rollout.max_new_tokens, config.optim.tokens_per_micro_batch,
    )  # fmt: skip
    precision = Precision.of(model_settings)
    kernel = kernel_on_a_gpu(precision, model_settings)
    longest = Batch(prompt, G, C)
    usual = longest.within(budget)
    prompts_at_once = max(1, min(budget // prompt, config.rollout.sequences_at_once // G))

    fixed = {
        "weights": weights.stored_bytes,
        "adapters": 4 * weights.adapters,
        "gradients": 4 * weights.trainable,
        "optimizer moments": 8 * weights.trainable,
        "reference model": weights.stored_bytes
        if policy.kl_coef > 0 and model_settings.tuning == "full"
        else 0,
    }
    copies = {"16-bit copies": 2 * weights.cast}
    rollout = {
        "cache of keys and values": prompts_at_once * G * (prompt + C) * _kv_bytes(shape, precision),
        "rollout logits": 3 * 4 * prompts_at_once * G * Sizes.of(shape).vocab,
    }
    one_image = vision_bytes(shape, 4 * image_tokens, precision, model_settings, kept=False)

    def training(batch: Batch) -> dict[str, float]:
        return {
            "vision": _vision(shape, batch, image_tokens, precision, model_settings),
            "activations": decoder_bytes(shape, batch, precision, model_settings, kernel=kernel),
            "LM head": head_bytes(shape, batch, precision, model_settings),
        }

    always, kept = sum(fixed.values()), sum(copies.values())
    peaks = {
        "usual micro-batch": always + kept + sum(training(usual).values()),
        "longest group": always + kept + sum(training(longest).values()),
        "optimizer step": always + 4 * weights.trainable,
        "rollout": always + kept + sum(rollout.values()) + one_image,
    }
    return {
        "name": config.name,
        "model": model_settings.path,
        "shape_from": source,
        "parameters": weights.parameters,
        "trainable": weights.trainable,
        "parts_gib": {name: n / GIB for name, n in (fixed | copies | training(usual) | rollout).items()},
        "peaks_gib": {name: n / GIB for name, n in peaks.items()},
        "assumed": {
            "prompt_tokens": prompt,
            "image_tokens": image_tokens,
            "micro_batch_tokens": usual.tokens,
            "longest_group_tokens": longest.tokens,
            "prompts_sampled_at_once": prompts_at_once,
        },
    }  # fmt: skip


def _vision(
    shape: Any, batch: Batch, image_tokens: int, precision: Precision, settings: ModelSettings
) -> float:
    """Features of the images of a micro-batch, and the activations of the tower when it is trained."""
    deepstack = len(getattr(shape.vision_config, "deepstack_visual_indexes", None) or [])
    n_tokens = batch.prompts * image_tokens
    features = n_tokens * Sizes.of(shape).hidden * precision.product_bytes * (1 + deepstack)
    kept = vision_bytes(shape, 4 * n_tokens, precision, settings, kept=True)
    return float(features + kept)


def _kv_bytes(shape: Any, precision: Precision) -> int:
    """Keys and values of one token in all layers."""
    sizes = Sizes.of(shape)
    return 2 * sizes.layers * sizes.key * precision.product_bytes


def _image_tokens(settings: ModelSettings, shape: Any, limit: int) -> int:
    """Visual tokens of the largest image that a prompt has room for. Raises ConfigError when it has none for the smallest."""
    vision = shape.vision_config
    token_px = (vision.patch_size * vision.spatial_merge_size) ** 2
    least = max(1, (settings.min_pixels or 0) // token_px)
    if limit - TEXT_TOKENS < least:
        raise ConfigError(
            f"data.max_prompt_tokens is {limit}: no room for an image of {least} tokens beside {TEXT_TOKENS} of text; expected at least "
            f"{TEXT_TOKENS + least}"
        )
    max_pixels = settings.max_pixels or _own_max_pixels(settings.path, shape.model_type)
    return int(min(max_pixels // token_px, limit - TEXT_TOKENS))


def _own_max_pixels(path: str, model_type: str) -> int:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = Path(resolve(path))
    if (folder / "preprocessor_config.json").is_file():
        size: Mapping[str, int] = Qwen2VLImageProcessorPil.from_pretrained(str(folder)).size
        return size["longest_edge"]
    return DEFAULT_MAX_PIXELS[model_type]
