"""Adapters merged for decoding: the same policy inside, the same bits afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_rollout import drawn, ids_of
from tests.tiny_models import FAMILIES, tiny_policy
from vlm_contextrl.config import LoraSettings
from vlm_contextrl.merged_adapters import merged_adapters
from vlm_contextrl.policy import Policy


def adapted(folder: Path, **settings: object) -> Policy:
    """Adapters whose second matrices are not zero."""
    policy = tiny_policy(folder, tuning="lora", lora=LoraSettings(rank=4, alpha=8, vision=True), **settings)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return policy


def bits(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_the_same_and_restores_to_the_bit(family: str, qwen_folders: dict[str, Path]) -> None:
    """W + 2 B A in place of W within the block (alpha / rank = 2): the same completions; then W again, every bit of it."""
    policy = adapted(qwen_folders[family])
    before, beside = bits(policy), drawn(policy)
    layer = policy.base.model.language_model.layers[0].mlp.up_proj
    added = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    with merged_adapters(policy):
        torch.testing.assert_close(
            layer.weight, before_weight(before, "layers.0.mlp.up_proj") + added, rtol=0, atol=1e-6
        )
        inside = drawn(policy)
    assert ids_of(inside) == ids_of(beside)
    for group, other in zip(inside, beside, strict=True):
        for a, b in zip(group, other, strict=True):
            torch.testing.assert_close(a.logps, b.logps, rtol=0, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert ids_of(drawn(policy)) == ids_of(beside)


def before_weight(state: dict[str, Tensor], name: str) -> Tensor:
    return next(t for key, t in state.items() if f"{name}.base_layer.weight" in key)


def test_restores_after_an_error(qwen_folders: dict[str, Path]) -> None:
    policy = adapted(qwen_folders["qwen2_5_vl"])
    before = bits(policy)
    with pytest.raises(KeyError), merged_adapters(policy):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_switched_off_adapters_are_not_merged(qwen_folders: dict[str, Path]) -> None:
    """Within `disable_adapter` the starting model decodes."""
    policy = adapted(qwen_folders["qwen2_5_vl"])
    before = bits(policy)
    with policy.model.disable_adapter(), merged_adapters(policy):
        assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_four_bit_weights_keep_their_adapters_beside_them(qwen_folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    policy = adapted(qwen_folders["qwen2_5_vl"], quantization="nf4")
    layer = policy.base.model.language_model.layers[0].mlp.up_proj
    expected = ids_of(drawn(policy))
    with merged_adapters(policy):
        assert not layer.merged
        assert policy.base.model.visual.blocks[0].attn.qkv.merged
        assert ids_of(drawn(policy)) == expected


def test_a_model_without_adapters(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    with merged_adapters(policy):
        assert drawn(policy)
