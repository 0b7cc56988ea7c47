"""Device memory of a training run by part, from the configuration of the run and of the model alone.

Weights, adapters, gradients and optimizer moments are counted on the model's own parameters (built without memory); nf4 is what
bitsandbytes stores: half a byte per weight, one byte per block of 64, four per 256 blocks, and its code tables. Activations are counted
by the formulas of activations.py. Bytes per parameter of what is trained: 4 weight, 4 gradient, 8 moments.

    training  = weights + adapters + gradients + moments + reference + products' copies + features + activations + LM head
    rollout   = the same up to the reference + cache of keys and values + logits + one image through the vision tower

Left out: the CUDA context (about 0.5 GiB), fragmentation, gradients of single activations, vLLM (it takes a share of its own). One
process is assumed; sharding divides the weights of full fine-tuning and what goes with them by the number of processes.
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
    kernel_repeats_keys,
    vision_bytes,
)
from vlm_contextrl.bench.model_shapes import empty_model, model_config
from vlm_contextrl.config import ModelSettings, PolicyTerm, RunConfig
from vlm_contextrl.models import LANGUAGE_LINEAR, VISION_LINEAR, resolve

GIB = 2**30
NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
NF4_TABLES = 4 * (16 + 256 + 1)  # both code tables and the offset, per matrix
TEXT_TOKENS = 256  # assumed beside the image of a question
DEFAULT_MAX_PIXELS = 12_845_056  # of Qwen2.5-VL's image processor


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
    cast: int  # weights of linear layers that autocast copies to 16 bits


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
    cast = (
        sum(m.weight.numel() for m in linear.values()) if settings.autocast == "bf16" and element == 4 else 0
    )
    if settings.tuning == "lora":
        targets = f"({LANGUAGE_LINEAR})|({VISION_LINEAR})" if settings.lora.vision else LANGUAGE_LINEAR
        adapted = [m for name, m in linear.items() if re.fullmatch(targets, name)]
        adapters = sum(settings.lora.rank * (m.in_features + m.out_features) for m in adapted)
        return Weights(total, stored, adapters, adapters, cast)
    frozen = 0 if settings.train_vision else sum(
        p.numel() for name, p in parameters.items() if name.startswith("model.visual")
    )  # fmt: skip
    return Weights(total, stored, 0, total - frozen, cast)


def estimate(config: RunConfig) -> dict[str, Any]:
    """Parts and peaks in GiB, with what was assumed, ready for JSON."""
    model_settings = config.model
    shape, source = model_config(model_settings.path)
    weights = count_weights(empty_model(shape), model_settings)
    policy = next(t for t in config.objective if isinstance(t, PolicyTerm))
    image_tokens = _image_tokens(model_settings, shape, config.data.max_prompt_tokens)
    prompt = min(image_tokens + TEXT_TOKENS, config.data.max_prompt_tokens)
    G, C, budget = (
        config.rollout.completions_per_prompt, config.rollout.max_new_tokens, config.optim.tokens_per_micro_batch,
    )  # fmt: skip
    precision = Precision.of(model_settings)
    repeats = kernel_repeats_keys(precision, model_settings)
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
    rollout = {
        "cache of keys and values": prompts_at_once * G * (prompt + C) * _kv_bytes(shape, precision),
        "rollout logits": 3 * 4 * prompts_at_once * G * Sizes.of(shape).vocab,
    }
    one_image = vision_bytes(shape, 4 * image_tokens, precision, model_settings, kept=False)

    def training(batch: Batch) -> dict[str, float]:
        return {
            "16-bit copies of weights": 2 * weights.cast,
            "vision": _vision(shape, batch, image_tokens, precision, model_settings),
            "activations": decoder_bytes(shape, batch, precision, model_settings, repeats_keys=repeats),
            "LM head": head_bytes(shape, batch, precision, model_settings),
        }

    always = sum(fixed.values())
    peaks = {
        "training": always + sum(training(usual).values()),
        "longest group": always + sum(training(longest).values()),
        "rollout": always + sum(rollout.values()) + one_image,
    }
    return {
        "name": config.name,
        "model": model_settings.path,
        "shape_from": source,
        "parameters": weights.parameters,
        "trainable": weights.trainable,
        "parts_gib": {name: n / GIB for name, n in (fixed | training(usual) | rollout).items()},
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
    vision = shape.vision_config
    side_px = vision.patch_size * vision.spatial_merge_size
    max_pixels = settings.max_pixels or _own_max_pixels(settings.path)
    return int(min(max_pixels // side_px**2, max(1, limit - TEXT_TOKENS)))


def _own_max_pixels(path: str) -> int:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = Path(resolve(path))
    if (folder / "preprocessor_config.json").is_file():
        size: Mapping[str, int] = Qwen2VLImageProcessorPil.from_pretrained(str(folder)).size
        return size["longest_edge"]
    return DEFAULT_MAX_PIXELS
