"""LoRA in three matrix products: y = base(x) + scaling (x A^T) B^T, the scaling and the sum inside the last product.

PEFT takes two passes more over an output of full width in the forward pass and one in the backward pass, and the gradient of B comes out
of a product that is slow on a CPU: autograd lays a gradient out as its matrix lies, and PEFT's B^T lies in columns. Values are PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn


def fuse_adapters(model: nn.Module) -> None:
    """Let plain LoRA on linear layers, quantised ones too, run fused. Variants of PEFT (DoRA, ...) stay as they are."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            for name in layer.lora_A:
                layer.lora_variant.setdefault(name, FusedLora())


class FusedLora(LoraVariant):
    """A variant as `peft.tuners.lora` takes it. It is merged like plain LoRA."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """x [.., in] and the base layer's result [.., out] to [.., out]."""
        lora_B, scaling = module.lora_B[active_adapter], module.scaling[active_adapter]
        low = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        if low.dtype != result.dtype or lora_B.bias is not None:
            added: Tensor = lora_B(low) * scaling
            return result + added
        up = lora_B.weight.T.contiguous()
        return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), up, alpha=scaling).view_as(result)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        merged: Tensor = orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return merged

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        apart: Tensor = orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return apart
