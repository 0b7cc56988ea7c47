"""The perception term of PAPO: numbers worked out by hand, which way it pushes, and what has no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_contextrl.objectives.perception_kl import PerceptionBatch, PerceptionConfig, perception_loss

MASK_BT = torch.tensor([[1, 1], [1, 0]])


def batch(
    logps: list[list[float]], masked: list[list[float]], *, masked_gradient: bool = False
) -> tuple[PerceptionBatch, Tensor, Tensor]:
    logps_BT = torch.tensor(logps, dtype=torch.float64, requires_grad=True)
    masked_BT = torch.tensor(masked, dtype=torch.float64, requires_grad=masked_gradient)
    return PerceptionBatch(logps_BT, masked_BT, MASK_BT[: len(logps)]), logps_BT, masked_BT


def test_by_hand() -> None:
    """Three tokens with logp -1, -1, -2 and masked log 2 - 1, -log 2 - 1, -2, the last place padded: d = log 2, -log 2, 0.
    k3 = 2 - log 2 - 1, 1/2 + log 2 - 1, 0; their mean is (3/2 - 1) / 3 = 1/6. Entropies: (1 + 1 + 2) / 3 = 4/3, and
    ((1 - log 2) + (1 + log 2) + 2) / 3 = 4/3. With 0.3, 0.03, 0.06 the loss is -0.05 + 0.04 + 0.08 = 0.07.
    dL/dlogp = -0.3 (1 - e^d) / 3 - 0.03 / 3: e^d = 2, 1/2, 1 give 0.1 - 0.01, -0.05 - 0.01, -0.01.
    """
    log2 = math.log(2)
    given, logps_BT, _ = batch([[-1, -1], [-2, math.nan]], [[log2 - 1, -log2 - 1], [-2, math.inf]])
    loss, metrics = perception_loss(given, PerceptionConfig(0.3, 0.03, 0.06), tokens=3)
    loss.backward()
    assert loss.item() == pytest.approx(0.07, abs=1e-12)
    assert metrics["perception_kl"].item() == pytest.approx(1 / 6, abs=1e-12)
    assert metrics["sampled_entropy"].item() == pytest.approx(4 / 3, abs=1e-12)
    assert metrics["masked_entropy"].item() == pytest.approx(4 / 3, abs=1e-12)
    assert metrics["perception_kl_capped"].item() == 0
    assert logps_BT.grad is not None
    torch.testing.assert_close(
        logps_BT.grad, torch.tensor([[0.09, -0.06], [-0.01, 0.0]], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_descent_moves_away_from_the_masked_policy() -> None:
    """gamma alone: where the image makes a token likelier, it becomes likelier still, where less likely, less."""
    given, logps_BT, _ = batch([[-1.0, -1.0]], [[-3.0, -0.5]])
    perception_loss(given, PerceptionConfig(1.0, 0.0, 0.0), tokens=2)[0].backward()
    assert logps_BT.grad is not None
    step = -logps_BT.grad[0]
    assert step[0] > 0 > step[1]


def test_entropies_are_minimised() -> None:
    """eta alone: sampled tokens become likelier, by 1 / tokens each; eta_masked does the same given the masked image."""
    given, logps_BT, masked_BT = batch([[-1.0, -1.0]], [[-3.0, -0.5]], masked_gradient=True)
    perception_loss(given, PerceptionConfig(0.0, 0.5, 0.25), tokens=2)[0].backward()
    assert logps_BT.grad is not None
    assert masked_BT.grad is not None
    assert (logps_BT.grad.tolist(), masked_BT.grad.tolist()) == ([[-0.25, -0.25]], [[-0.125, -0.125]])


def test_the_kl_takes_the_masked_policy_as_a_constant() -> None:
    """With a gradient for masked log-probs, too: none of it comes from the KL."""
    given, _, masked_BT = batch([[-1.0, -1.0]], [[-3.0, -0.5]], masked_gradient=True)
    perception_loss(given, PerceptionConfig(1.0, 0.0, 0.0), tokens=2)[0].backward()
    assert masked_BT.grad is None or not masked_BT.grad.any()


def test_without_gradient_the_masked_entropy_is_a_constant() -> None:
    """As in the public code: it shows in the loss and changes no gradient, whatever its coefficient."""
    grads, losses = [], []
    for coefficient in (0.0, 10.0):
        given, logps_BT, _ = batch([[-1.0, -1.0]], [[-3.0, -0.5]])
        loss, _ = perception_loss(given, PerceptionConfig(0.01, 0.03, coefficient), tokens=2)
        loss.backward()
        grads.append(logps_BT.grad)
        losses.append(loss.item())
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]
    assert losses[1] - losses[0] == pytest.approx(10 * 1.75, abs=1e-12)


def test_wild_tokens_are_bounded() -> None:
    """d = 5: k3 = e^5 - 6 is over 10, so the KL is 10 and has no gradient; d = -30 is taken as -20, k3 = e^-20 + 19, over it, too."""
    given, logps_BT, _ = batch([[-6.0, -1.0]], [[-1.0, -31.0]])
    loss, metrics = perception_loss(given, PerceptionConfig(1.0, 0.0, 0.0), tokens=2)
    loss.backward()
    assert loss.item() == -10
    assert metrics["perception_kl_capped"].item() == 1
    assert logps_BT.grad is not None
    assert not logps_BT.grad.any()


def test_micro_batches_add_up_to_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    logps_BT, masked_BT = (-torch.rand(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask_BT = torch.rand(8, 5, generator=generator) < 0.6
    tokens, config = float(mask_BT.sum()), PerceptionConfig()
    whole, expected = perception_loss(PerceptionBatch(logps_BT, masked_BT, mask_BT), config, tokens)
    parts = [
        perception_loss(
            PerceptionBatch(logps_BT[i : i + 2], masked_BT[i : i + 2], mask_BT[i : i + 2]), config, tokens
        )
        for i in range(0, 8, 2)
    ]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole), abs=1e-12)
    for name, value in expected.items():
        assert sum(float(metrics[name]) for _, metrics in parts) == pytest.approx(float(value), abs=1e-12)


def test_the_denominator_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tokens is 0"):
        perception_loss(batch([[-1.0, -1.0]], [[-1.0, -1.0]])[0], PerceptionConfig(), tokens=0)
