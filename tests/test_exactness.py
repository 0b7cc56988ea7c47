"""The packed forward is the repeated one, in every way of training: log-probs to 1e-12 and gradients to 1e-9, in float64.

The other side is transformers' own forward with its own attention, prompt and pixels once per completion, nothing shared, nothing
recomputed. tests/test_packing.py has the layout by hand and the negative controls.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    ask,
    gradients,
    noise_image,
    random_ids,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import reference
from vlm_contextrl.packing import Continuation, PackedRow, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt

WAYS: dict[str, dict[str, Any]] = {
    "full, trained tower": {"train_vision": True},
    "full, frozen tower": {"train_vision": False},
    "lora, frozen tower": {"tuning": "lora", "lora": {"rank": 4, "alpha": 8}},
    "lora, adapted tower": {"tuning": "lora", "lora": {"rank": 4, "alpha": 8, "vision": True}},
}


def policy_of(folder: Path, **settings: Any) -> Policy:
    """Float64, adapters off zero."""
    policy = tiny_policy(folder, **settings).double()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return policy


def oracle_of(folder: Path, **settings: Any) -> Policy:
    policy = policy_of(folder, **settings)
    policy.base.set_attn_implementation("sdpa")
    return policy


def groups_of(policy: Policy, n_images: int) -> list[tuple[EncodedPrompt, list[Tensor]]]:
    """Two groups with prompts of different lengths and completions of 1 to 7 tokens."""
    images = [noise_image(1), noise_image(2, 84, 28), noise_image(3, 56, 84), noise_image(4)]
    first = ask(policy.processor, "How many?", images[:n_images])
    second = ask(policy.processor, "Which of these is the larger one, A or B?", images[2 : 2 + n_images])
    return [
        (first, [random_ids(i, n) for i, n in enumerate((4, 1, 7))]),
        (second, [random_ids(10 + i, n) for i, n in enumerate((2, 5))]),
    ]


def packed(policy: Policy, groups: list[tuple[EncodedPrompt, list[Tensor]]]) -> Tensor:
    rows = [
        PackedRow(prompt, tuple(Continuation(ids) for ids in completions)) for prompt, completions in groups
    ]
    logps_L = policy(packed=pack(rows, policy.positions, policy.processor.tokenizer.pad_token_id))[0]
    assert logps_L is not None
    return logps_L


def repeated(policy: Policy, groups: list[tuple[EncodedPrompt, list[Tensor]]]) -> Tensor:
    flat = [(prompt, ids) for prompt, completions in groups for ids in completions]
    prompts, completions = [p for p, _ in flat], [ids for _, ids in flat]
    return torch.cat(reference.completion_logps(policy.base, policy.processor, prompts, completions, 1.0))


def backward(logps_L: Tensor, policy: Policy) -> dict[str, Tensor]:
    (logps_L * torch.linspace(-1, 1, len(logps_L), dtype=torch.float64)).sum().backward()
    return gradients(policy)


@pytest.mark.parametrize(
    ("family", "n_images", "way", "checkpointing"), list(product(FAMILIES, (1, 2), WAYS, (False, True)))
)
def test_packed_equals_repeated(
    family: str, n_images: int, way: str, checkpointing: bool, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    strict_float64(monkeypatch)
    policy = policy_of(qwen_folders[family], gradient_checkpointing=checkpointing, **WAYS[way])
    oracle = oracle_of(qwen_folders[family], **WAYS[way])
    groups = groups_of(policy, n_images)
    found, expected = packed(policy, groups), repeated(oracle, groups)
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=1e-12)
    found_grads, expected_grads = backward(found, policy), backward(expected, oracle)
    assert found_grads.keys() == {n for n, p in policy.named_parameters() if p.requires_grad}
    assert any("visual" in name for name in found_grads) == (
        way in ("full, trained tower", "lora, adapted tower")
    )
    assert max(float(g.abs().max()) for g in expected_grads.values()) > 1e-2
    assert worst_difference(found_grads, expected_grads) <= 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_of_two_images_in_any_company(
    family: str, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, padded beside a longer one, in another order, packed with its group and with another: the same log-probs to 1e-12."""
    strict_float64(monkeypatch)
    policy = policy_of(qwen_folders[family], train_vision=True)
    oracle = oracle_of(qwen_folders[family], train_vision=True)
    (prompt, completions), longer = groups_of(policy, 2)
    sample, n = [(prompt, completions[:1])], len(completions[0])
    with torch.no_grad():
        alone = repeated(oracle, sample)
        beside = repeated(oracle, [*sample, longer])[:n]
        shuffled = repeated(oracle, [longer, *sample])[-n:]
        by_itself = packed(policy, sample)
        in_its_group = packed(policy, [(prompt, completions)])[:n]
        last_of_its_group = packed(policy, [longer, (prompt, completions[::-1])])[-n:]
    for other in (beside, shuffled, by_itself, in_its_group, last_of_its_group):
        torch.testing.assert_close(other, alone, rtol=0, atol=1e-12)
