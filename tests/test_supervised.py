"""Supervised loss: by hand, denominator, padding."""

from __future__ import annotations

import math

import pytest
import torch

from vlm_contextrl.objectives.supervised import SupervisedBatch, supervised_loss


def test_by_hand() -> None:
    """Log-probs [[-1, -2, x], [-0.5, x, x]] with the x masked: L = (1 + 2 + 0.5) / 3 = 1.1666667, gradient
    -1/3 each. token_probability = (e^-1 + e^-2 + e^-0.5) / 3.
    """
    logps_BT = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]], dtype=torch.float64, requires_grad=True)
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, metrics = supervised_loss(SupervisedBatch(logps_BT, mask_BT), tokens=3)
    loss.backward()
    assert loss.item() == pytest.approx(3.5 / 3, abs=1e-12)
    assert metrics["supervised_loss"].item() == loss.item()
    assert metrics["token_probability"].item() == pytest.approx(
        (math.exp(-1) + math.exp(-2) + math.exp(-0.5)) / 3, abs=1e-12
    )
    assert logps_BT.grad is not None
    torch.testing.assert_close(logps_BT.grad, -mask_BT.double() / 3, rtol=0, atol=1e-15)


def test_micro_batches_add_up_to_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    values_BT = -torch.rand(8, 5, generator=generator, dtype=torch.float64)
    mask_BT = torch.rand(8, 5, generator=generator) < 0.6
    tokens = float(mask_BT.sum())
    whole_BT, parts_BT = (values_BT.clone().requires_grad_() for _ in range(2))
    loss, _ = supervised_loss(SupervisedBatch(whole_BT, mask_BT), tokens)
    loss.backward()
    total = 0.0
    for row in range(0, 8, 2):
        part, _ = supervised_loss(SupervisedBatch(parts_BT[row : row + 2], mask_BT[row : row + 2]), tokens)
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(parts_BT.grad, whole_BT.grad, rtol=0, atol=1e-15)


def test_equals_cross_entropy_over_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BTV = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    ids_BT = torch.randint(7, (2, 3), generator=generator)
    logps_BT = logits_BTV.log_softmax(-1).gather(2, ids_BT[..., None]).squeeze(2)
    loss, _ = supervised_loss(SupervisedBatch(logps_BT, torch.ones(2, 3)), tokens=6)
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_padding_does_not_matter() -> None:
    logps_BT = torch.tensor([[-1.0, math.nan, -math.inf]], requires_grad=True)
    loss, metrics = supervised_loss(SupervisedBatch(logps_BT, torch.tensor([[True, False, False]])), tokens=1)
    loss.backward()
    assert loss.item() == 1.0
    assert metrics["token_probability"].isfinite()
    assert logps_BT.grad is not None
    assert logps_BT.grad.tolist() == [[-1.0, 0.0, 0.0]]


def test_the_denominator_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tokens is 0"):
        supervised_loss(SupervisedBatch(torch.zeros(1, 1), torch.zeros(1, 1)), tokens=0)
