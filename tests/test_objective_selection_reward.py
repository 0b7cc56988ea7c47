"""The selection reward: which completions name the supporting context, and what follows for their advantages."""

from __future__ import annotations

import pytest
import torch

from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.objectives.selection_reward import selection_rewards


@pytest.mark.parametrize(
    ("completion", "names"),
    [
        ("B", "B"), (" B", "B"), ("B.", "B"), ("(B)", "B"), ("b", "B"), ("The answer is B.", "B"), ("\\boxed{B}", "B"),
        ("Image B", "B"), ("The answer is Image B.", "B"), ("Image C", None), ("<think>A, no.</think>B", "B"), ("A", "A"),
        ("", None), ("C", None), ("A or B", None), ("7", None), ("BB", None),
    ],
)  # fmt: skip
def test_by_hand(completion: str, names: str | None) -> None:
    """1 for the right letter only; no letter, another one or two of them are worth nothing."""
    found = {letter: selection_rewards([completion], letter, "image") for letter in "AB"}
    assert found == {letter: [float(letter == names)] for letter in "AB"}


def test_contexts_that_are_texts() -> None:
    """The prompt opens the turn with "The correct option is"."""
    texts = [" B", "B.", " Context B.", " A", "\\boxed{B}", " the second"]
    assert selection_rewards(texts, "B", "text") == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def test_advantages_of_a_group_by_hand() -> None:
    """Completions A, B, B, x where B is right: rewards 0, 1, 1, 0, mean 1/2, unbiased deviation sqrt(4 * 1/4 / 3) = 0.5773503;
    advantages -+ 0.5 / 0.5773503 = -+ 0.8660254. A group that agrees has none, right or wrong."""
    rewards = [
        selection_rewards(texts, "B", "image") for texts in (["A", "B", "B", "x"], ["B"] * 4, ["A"] * 4)
    ]
    advantages_PG, metrics = group_advantages(torch.tensor(rewards))
    a = 0.8660254
    expected = torch.tensor([[-a, a, a, -a], [0] * 4, [0] * 4])
    torch.testing.assert_close(advantages_PG, expected, rtol=0, atol=1e-5)
    assert metrics["zero_variance_groups"].item() == pytest.approx(2 / 3)
