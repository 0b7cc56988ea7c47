"""Adapters as part of the weights while completions are sampled.

An adapter beside each matrix adds two small products to every matrix of every token. Where products are in float32, merging saves
them. In 16 or 4 bits the sum would round a small update away (of an update of 2e-5 in weights of 2e-2, bfloat16 keeps half, of one of 1e-6
all but nothing), and the completions would be those of an older policy: there adapters stay beside their matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Merge the active adapters within the block; afterwards the weights are what they were, to the bit, from a copy in host memory."""
    from peft.tuners.lora.layer import LoraLayer

    originals: list[tuple[Any, Tensor]] = []
    try:
        with torch.no_grad():
            layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
            for layer in layers:
                if _can_be_merged(layer):
                    weight = layer.get_base_layer().weight
                    originals.append((layer, weight.to("cpu", copy=True)))
                    layer.merge(adapter_names=layer.active_adapters)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in originals:
                layer.get_base_layer().weight.copy_(weight)
                layer.merged_adapters.clear()


def _can_be_merged(layer: Any) -> bool:
    weight = layer.get_base_layer().weight
    exact = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(
        weight.device.type
    )
    adds_to_bias = any(layer.lora_bias.values())
    return exact and not (adds_to_bias or layer.disable_adapters or layer.merged)
