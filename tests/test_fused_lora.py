"""Fused LoRA: PEFT's numbers, PEFT's merging, and PEFT's own variants left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tests.tiny_models import FAMILIES, tiny_policy
from vlm_contextrl.fused_lora import FusedLora, fuse_adapters


def adapted(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """Two linear layers, 5 -> 3 -> 4, and adapters that are not zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4)).to(dtype)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0", "1"], init_lora_weights=False, **settings)
    return get_peft_model(base, config).to(dtype)


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


def values_and_gradients(model: Any, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(x)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *trained])]


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5)])
def test_values_and_gradients_are_those_of_peft(shape: tuple[int, ...]) -> None:
    model = adapted()
    x = torch.randn(*shape, dtype=torch.float64)
    expected = values_and_gradients(model, x)
    assert len(expected) == 6  # output, x, two adapters of two matrices
    fuse_adapters(model)
    for found, wanted in zip(values_and_gradients(model, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    with model.disable_adapter():
        plain = model(x)
    assert largest(plain - expected[0]) > 1e-2


def test_by_hand() -> None:
    """W = 1, A = 2, B = 3, alpha / rank = 5: y = (1 + 5 * 2 * 3) x = 31 x; dy/dA = 5 * 3 x, dy/dB = 5 * 2 x."""
    base = nn.Sequential(nn.Linear(1, 1, bias=False))
    model = get_peft_model(base, LoraConfig(r=1, lora_alpha=5, target_modules=["0"]))
    fuse_adapters(model)
    layer: Any = next(m for m in model.modules() if isinstance(m, LoraLayer))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for weight, value in ((layer.base_layer.weight, 1.0), (A, 2.0), (B, 3.0)):
        nn.init.constant_(weight, value)
    y = model(torch.tensor([[7.0]]))
    y.sum().backward()
    assert y.item() == 217
    assert (A.grad.item(), B.grad.item()) == (105, 70)


def test_dropout_falls_on_the_adapter_alone() -> None:
    model = adapted(lora_dropout=0.5)
    x = torch.ones(3, 5, dtype=torch.float64)
    torch.manual_seed(1)
    expected = model(x)
    fuse_adapters(model)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert largest(model.eval()(x) - expected) > 1e-2


def test_two_active_adapters_add_up() -> None:
    model = adapted()
    model.add_adapter("second", LoraConfig(r=1, target_modules=["0"], init_lora_weights=False))
    model = model.double()
    model.base_model.set_adapter(["default", "second"])
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = model(x)
    fuse_adapters(model)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bias", "float32 adapters on bfloat16 weights"])
def test_what_cannot_be_fused_is_computed_as_peft_does(kind: str) -> None:
    model = adapted(lora_bias=kind == "bias")
    if kind != "bias":
        model = model.float()
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.get_base_layer().to(torch.bfloat16)
    x = torch.randn(3, 5, dtype=next(iter(model.parameters())).dtype)
    expected = model(x)
    fuse_adapters(model)
    assert torch.equal(model(x), expected)


def test_autocast() -> None:
    """Products in bfloat16, as of the base layer; PEFT rounds once more on the way, so both are near the exact result."""
    model = adapted(torch.float32)
    x = torch.randn(50, 5)
    exact = model(x)
    fuse_adapters(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.bfloat16
    assert largest(found - exact) < 0.05 * largest(exact)
    values_and_gradients(model, x)


@pytest.mark.parametrize("safe", [False, True])
def test_merged_and_apart_again_as_by_peft(safe: bool) -> None:
    expected, model = adapted(), adapted()
    fuse_adapters(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    beside = model(x)
    for each in (expected, model):
        each.base_model.merge_adapter(safe_merge=safe)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    torch.testing.assert_close(model(x), beside, rtol=0, atol=1e-12)
    for each in (expected, model):
        each.base_model.unmerge_adapter()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_variant_of_peft_stays() -> None:
    model = adapted(use_dora=True)
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = model(x)
    fuse_adapters(model)
    assert torch.equal(model(x), expected)
    assert not any(
        isinstance(v, FusedLora)
        for m in model.modules()
        if isinstance(m, LoraLayer)
        for v in m.lora_variant.values()
    )


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_of_a_loaded_model_is_fused(
    family: str, quantization: str, qwen_folders: dict[str, Path]
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    policy = tiny_policy(qwen_folders[family], tuning="lora", quantization=quantization)
    layers = [m for m in policy.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert all(isinstance(layer.lora_variant["default"], FusedLora) for layer in layers)
