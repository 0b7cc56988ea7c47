"""The selection loss: numbers worked out by hand, where the clip takes the gradient away, option orders, K
options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.objectives.selection_loss import SelectionBatch, SelectionConfig, selection_loss


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def run(
    logits: list[list[float]],
    support: list[int],
    config: SelectionConfig = SelectionConfig(),  # noqa: B008  # frozen
    pairs: float | None = None,
    pair_index: list[int] | None = None,
) -> tuple[float, Tensor, dict[str, float]]:
    logits_BO = tensor(logits).requires_grad_()
    index_B = None if pair_index is None else torch.tensor(pair_index)
    batch = SelectionBatch(logits_BO, torch.tensor(support), index_B)
    loss, metrics = selection_loss(
        batch, config, len(logits) / config.rows_per_pair if pairs is None else pairs
    )
    loss.backward()
    assert logits_BO.grad is not None
    return loss.item(), logits_BO.grad, {name: value.item() for name, value in metrics.items()}


def test_two_options_by_hand() -> None:
    """Three pairs, supports A, B, A. Margins: 2 - 1 = 1; 0.5 - 1.5 = -1 (support B holds 0.5); 0 - 0 = 0.
    L = (softplus(-1) + softplus(1) + log 2) / 3 = (0.3132617 + 1.3132617 + 0.6931472) / 3 = 0.7732235.
    dL/dl+ = -sigmoid(-D) / 3 and dL/dl- is its opposite: sigmoid(-1) = 0.2689414, sigmoid(1) = 0.7310586,
    sigmoid(0) = 0.5.
    """
    loss, grad, metrics = run([[2.0, 1.0], [1.5, 0.5], [0.0, 0.0]], [0, 1, 0])
    assert loss == pytest.approx((0.31326168751822286 + 1.3132616875182228 + math.log(2)) / 3, abs=1e-12)
    s = 0.2689414213699951
    expected = tensor([[-s, s], [1 - s, -(1 - s)], [-0.5, 0.5]]) / 3
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)
    assert metrics["margin"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["selection_accuracy"] == pytest.approx(1 / 3)  # a tie is not a choice
    assert metrics["position_a_rate"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert metrics["no_gradient"] == 0


def test_gradient_raises_the_supporting_logit() -> None:
    """Descent moves the logit of the supporting option up and the other one down, wherever it stands."""
    for support in (0, 1):
        _, grad, _ = run([[0.3, -0.2]], [support])
        assert grad[0, support] < 0 < grad[0, 1 - support]


@pytest.mark.parametrize(
    ("mode", "with_gradient", "no_gradient"),
    [
        ("two_sided", [False, True, True, True, False], 0.4),
        ("one_sided", [False, True, True, True, True], 0.2),
        ("none", [True, True, True, True, True], 0.0),
    ],
)
def test_where_the_clip_takes_the_gradient(mode: Any, with_gradient: list[bool], no_gradient: float) -> None:
    """Margins 6, 5, 0, -5, -6 with c = 5: outside are 6 (right) and -6 (wrong); on the border the gradient
    stays.

    Losses: two-sided softplus(-5), softplus(-5), log 2, softplus(5), softplus(5); one-sided the last is
    softplus(6); without a clip the first is softplus(-6) as well.
    """
    margins = [6.0, 5.0, 0.0, -5.0, -6.0]
    loss, grad, metrics = run([[m, 0.0] for m in margins], [0] * 5, SelectionConfig(clip=mode))
    first = softplus(-6) if mode == "none" else softplus(-5)
    last = softplus(5) if mode == "two_sided" else softplus(6)
    assert loss == pytest.approx((first + softplus(-5) + math.log(2) + softplus(5) + last) / 5, abs=1e-12)
    assert (grad.abs().sum(dim=1) > 0).tolist() == with_gradient
    assert metrics["no_gradient"] == pytest.approx(no_gradient)
    assert metrics["no_gradient"] == pytest.approx(1 - sum(with_gradient) / 5)
    assert metrics["outside_clip_right"] == pytest.approx(0.2)
    assert metrics["outside_clip_wrong"] == pytest.approx(0.2)
    assert metrics["selection_accuracy"] == pytest.approx(0.4)
    assert metrics["margin"] == pytest.approx(0.0)


def test_the_clip_value_is_used() -> None:
    """Margin 3 with c = 2: L = softplus(-2) = 0.1269280."""
    loss, grad, metrics = run([[3.0, 0.0]], [0], SelectionConfig(clip_value=2.0))
    assert loss == pytest.approx(0.12692801104297263, abs=1e-12)
    assert grad.abs().sum() == 0
    assert metrics["outside_clip_right"] == 1


def test_both_orders_by_hand() -> None:
    """One pair shown twice. Context first: logits [3, 1], D = 2. Context second: [2.5, 1.5], D = 1.5 - 2.5
    = -1. Average margin 0.5, L = softplus(-0.5) = 0.4740770. dL/dD_row = -sigmoid(-0.5) / 2 = -0.3775407 /
    2. Both rows prefer position A (rate 1), yet the pair is right: the bias cancels.
    """
    loss, grad, metrics = run([[3.0, 1.0], [2.5, 1.5]], [0, 1], SelectionConfig(orders="both"))
    assert loss == pytest.approx(0.47407698418010663, abs=1e-12)
    g = 0.37754066879814546 / 2
    torch.testing.assert_close(grad, tensor([[-g, g], [g, -g]]), rtol=0, atol=1e-12)
    assert metrics["selection_accuracy"] == 1
    assert metrics["margin"] == pytest.approx(0.5, abs=1e-12)
    assert metrics["position_a_rate"] == 1


def test_a_constant_position_bias_cancels() -> None:
    """Adding 10 to every first logit changes neither loss nor gradient with both orders."""
    logits = [[0.4, 0.1], [0.2, 0.3], [-1.0, 0.5], [0.0, 0.7]]
    biased = [[a + 10, b] for a, b in logits]
    config = SelectionConfig(orders="both")
    plain, tilted = (run(rows, [0, 1, 0, 1], config) for rows in (logits, biased))
    assert plain[0] == pytest.approx(tilted[0], abs=1e-12)
    torch.testing.assert_close(plain[1], tilted[1], rtol=0, atol=1e-12)
    assert tilted[2]["position_a_rate"] == 1


def test_pair_index_instead_of_adjacent_rows() -> None:
    rows = [[3.0, 1.0], [0.2, 0.9], [2.5, 1.5], [0.1, 0.4]]
    config = SelectionConfig(orders="both")
    adjacent = run([rows[0], rows[2], rows[1], rows[3]], [0, 1, 0, 1], config)
    indexed = run(rows, [0, 0, 1, 1], config, pair_index=[7, 3, 7, 3])
    assert adjacent[0] == pytest.approx(indexed[0], abs=1e-12)
    torch.testing.assert_close(adjacent[1], indexed[1][[0, 2, 1, 3]], rtol=0, atol=1e-12)


def test_three_options_by_hand() -> None:
    """Logits [1, 2, 0], support C: D = 0 - log(e + e^2) = -2.3132617, L = softplus(2.3132617) = 2.4076059,
    which is the cross-entropy log(e + e^2 + 1) - 0.
    """
    loss, _, metrics = run([[1.0, 2.0, 0.0]], [2])
    assert loss == pytest.approx(math.log(math.e + math.e**2 + 1), abs=1e-12)
    assert metrics["margin"] == pytest.approx(-math.log(math.e + math.e**2), abs=1e-12)


def test_the_largest_of_three_is_chosen() -> None:
    """Logits [1, 0.9, 0.8], support A: D = 1 - log(e^0.9 + e^0.8) = -0.5444 is below 0, and A is chosen all the same. A tie is not
    a choice, and counts one half for position A."""
    _, _, metrics = run([[1.0, 0.9, 0.8], [1.0, 1.0, 0.8], [0.9, 1.0, 0.8]], [0, 0, 0])
    assert metrics["selection_accuracy"] == pytest.approx(1 / 3)
    assert metrics["position_a_rate"] == pytest.approx(1.5 / 3)
    _, _, alone = run([[1.0, 0.9, 0.8]], [0])
    assert alone["margin"] == pytest.approx(1 - math.log(math.exp(0.9) + math.exp(0.8)), abs=1e-12)
    assert alone["margin"] < 0


def test_two_of_k_options_are_the_pair_loss() -> None:
    """A third option that is out of the question (logit -1000) leaves the loss and gradient of the pair, to the bit."""
    pair, three = run([[0.3, -0.2]], [1]), run([[0.3, -0.2, -1000.0]], [1])
    assert three[0] == pair[0]
    assert torch.equal(three[1][:, :2], pair[1])
    assert three[1][0, 2] == 0
    assert three[2] == pair[2]


@pytest.mark.parametrize("n_options", [2, 3, 5])
def test_without_a_clip_it_is_cross_entropy(n_options: int) -> None:
    generator = torch.Generator().manual_seed(n_options)
    logits_BO = (3 * torch.randn(16, n_options, generator=generator, dtype=torch.float64)).requires_grad_()
    support_B = torch.randint(n_options, (16,), generator=generator)
    loss, _ = selection_loss(SelectionBatch(logits_BO, support_B), SelectionConfig(clip="none"), 16)
    (grad,) = torch.autograd.grad(loss, logits_BO)
    expected = cross_entropy(logits_BO, support_B)
    (expected_grad,) = torch.autograd.grad(expected, logits_BO)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["two_sided", "one_sided", "none"])
@pytest.mark.parametrize("orders", ["random", "both"])
def test_parity_with_a_naive_loop(mode: Any, orders: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BO = 4 * torch.randn(12, 2, generator=generator, dtype=torch.float64)
    support_B = torch.tensor([0, 1] * 6)
    config = SelectionConfig(clip=mode, clip_value=1.5, orders=orders)
    margins = [(row[s] - row[1 - s]).item() for row, s in zip(logits_BO, support_B.tolist(), strict=True)]
    if orders == "both":
        margins = [(a + b) / 2 for a, b in zip(margins[::2], margins[1::2], strict=True)]
    total = 0.0
    for margin in margins:
        low = -1.5 if mode == "two_sided" else -math.inf
        high = math.inf if mode == "none" else 1.5
        total += -math.log(1 / (1 + math.exp(-min(max(margin, low), high))))
    loss, metrics = selection_loss(SelectionBatch(logits_BO, support_B), config, 20)
    assert loss.item() == pytest.approx(total / 20, abs=1e-12)
    assert metrics["selection_accuracy"].item() == pytest.approx(sum(m > 0 for m in margins) / 20)
    assert metrics["outside_clip_right"].item() == pytest.approx(sum(m > 1.5 for m in margins) / 20)
    assert metrics["outside_clip_wrong"].item() == pytest.approx(sum(m < -1.5 for m in margins) / 20)


@pytest.mark.parametrize("orders", ["random", "both"])
def test_micro_batches_add_up_to_the_step(orders: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BO = 4 * torch.randn(16, 2, generator=generator, dtype=torch.float64)
    support_B = torch.tensor([0, 1] * 8)
    config = SelectionConfig(orders=orders)
    pairs = 16 / config.rows_per_pair
    whole_BO, parts_BO = (logits_BO.clone().requires_grad_() for _ in range(2))
    loss, metrics = selection_loss(SelectionBatch(whole_BO, support_B), config, pairs)
    loss.backward()
    summed = dict.fromkeys(metrics, 0.0)
    for start in range(0, 16, 4):
        rows = slice(start, start + 4)
        part, part_metrics = selection_loss(SelectionBatch(parts_BO[rows], support_B[rows]), config, pairs)
        part.backward()
        summed = {name: summed[name] + value.item() for name, value in part_metrics.items()}
    torch.testing.assert_close(parts_BO.grad, whole_BO.grad, rtol=0, atol=1e-14)
    for name, value in metrics.items():
        assert summed[name] == pytest.approx(value.item(), abs=1e-12), name


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits_BO = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    loss, _ = selection_loss(SelectionBatch(logits_BO, torch.tensor([0])), SelectionConfig(), 1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(softplus(-0.5), abs=1e-6)


def test_huge_logits_stay_finite() -> None:
    for mode in ("two_sided", "one_sided", "none"):
        loss, grad, _ = run([[1e4, -1e4], [-1e4, 1e4]], [0, 0], SelectionConfig(clip=mode))  # type: ignore[arg-type]
        assert math.isfinite(loss)
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_value": 0.0}, "selection_loss.clip_value is 0.0"),
        ({"clip_value": math.nan}, "selection_loss.clip_value is nan"),
        ({"clip": "both"}, "clip is 'both', expected one of two_sided, one_sided, none"),
        ({"orders": "all"}, "orders is 'all', expected one of random, both"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**changes)


@pytest.mark.parametrize(
    ("support", "index", "message"),
    [
        ([0, 1, 0], None, "2 rows for every pair"),
        ([0, 0, 0, 1], None, "1 pairs show the supporting context twice"),
        ([0, 1, 0, 1], [1, 1, 1, 2], r"\[3, 1\] rows per pair"),
        ([0, 1, 0, 1], [1, 2, 3, 4], "2 rows for every pair"),
        ([0, 1, 0, 1], [1, 1, 1, 1], "2 rows for every pair"),
    ],
)
def test_both_orders_need_both_rows(support: list[int], index: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([[0.0, 1.0]] * len(support), support, SelectionConfig(orders="both"), pair_index=index)


def test_wrong_shapes() -> None:
    for logits, support in (([[0.0]], [0]), ([[0.0, 1.0]], [0, 1])):
        with pytest.raises(ValueError, match="expected"):
            run(logits, support)
    with pytest.raises(ValueError, match="pairs is 0"):
        run([[0.0, 1.0]], [0], pairs=0)
