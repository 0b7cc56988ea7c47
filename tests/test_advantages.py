"""Group-relative advantages: numbers worked out by hand.

P prompts, G completions per prompt.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_contextrl.objectives.advantages import group_advantages


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_by_hand() -> None:
    """Rewards [[1, 0, 0, 1], [0, 0, 3, 1]].

    Row 1: mean 0.5, deviations +-0.5, sum of squares 1, unbiased variance 1/3, so A = +-0.5 / 0.5773503 =
    +-0.8660254. Row 2: mean 1, deviations [-1, -1, 2, 0], sum of squares 6, variance 2, so A = [-1, -1, 2,
    0] / 1.4142136. Whole batch: mean 0.75, sum of squares 1 + 0 + 0 + 1 + 0 + 0 + 9 + 1 - 8 * 0.5625 = 7.5,
    variance 7.5 / 7.
    """
    rewards_PG = tensor([[1, 0, 0, 1], [0, 0, 3, 1]])
    centred = tensor([[0.5, -0.5, -0.5, 0.5], [-1, -1, 2, 0]])
    advantages, metrics = group_advantages(rewards_PG, "group", eps=0.0)
    std = tensor([[math.sqrt(1 / 3)], [math.sqrt(2)]])
    torch.testing.assert_close(advantages, centred / std, rtol=0, atol=1e-12)
    assert metrics["zero_variance_groups"] == 0
    assert metrics["reward_mean"] == 0.75
    assert metrics["reward_std_in_group"].item() == pytest.approx(
        (math.sqrt(1 / 3) + math.sqrt(2)) / 2, abs=1e-12
    )
    batch, _ = group_advantages(rewards_PG, "batch", eps=0.0)
    torch.testing.assert_close(batch, centred / math.sqrt(7.5 / 7), rtol=0, atol=1e-12)
    none, _ = group_advantages(rewards_PG, "none")
    torch.testing.assert_close(none, centred, rtol=0, atol=1e-12)


def test_eps_is_added_to_the_deviation() -> None:
    """Rewards [1, 0]: deviation sqrt(0.5) = 0.7071068; with eps 0.1, A = 0.5 / 0.8071068 = 0.6194967."""
    advantages, _ = group_advantages(tensor([[1, 0]]), eps=0.1)
    torch.testing.assert_close(advantages, tensor([[0.6194967, -0.6194967]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exact_zeros(scale: Any) -> None:
    """0.9 three times: the float32 mean is not 0.9, and its error over eps would be an advantage of 0.06."""
    rewards_PG = torch.tensor([[0.9] * 3, [0.0] * 3, [0.0, 1.0, 0.5]], dtype=torch.float32)
    advantages, metrics = group_advantages(rewards_PG, scale)
    assert torch.equal(advantages[:2], torch.zeros(2, 3))
    assert advantages[2].abs().sum() > 0.5
    assert metrics["zero_variance_groups"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_of_one_has_no_advantage(scale: Any) -> None:
    advantages, metrics = group_advantages(tensor([[1], [0]]), scale)
    assert torch.equal(advantages, torch.zeros(2, 1, dtype=torch.float64))
    assert metrics["zero_variance_groups"] == 1


def test_advantages_refuse_wrong_input() -> None:
    with pytest.raises(ValueError, match="expected one of group, batch, none"):
        group_advantages(tensor([[1, 0]]), "std")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        group_advantages(tensor([1, 0]))
