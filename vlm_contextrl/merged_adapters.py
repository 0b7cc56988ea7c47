"""Adapters as part of the weights while completions are sampled.

Decoding reads every weight once per token; an adapter beside each matrix would add two small products per matrix, which on a GPU cost more
than the matrix itself. Weights in 4 bits keep their adapters beside them: merging would round the adapter away.
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
    quantized = not layer.get_base_layer().weight.is_floating_point()
    return not (quantized or layer.disable_adapters or layer.merged)
