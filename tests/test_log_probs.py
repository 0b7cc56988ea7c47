"""Log-probabilities tile by tile against the full softmax, by hand and by torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_contextrl.log_probs import label_log_probs


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [11, 6], a head of 23 entries, labels that touch both ends of it."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (2 * torch.randn(23, 6, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, 23, (11,), generator=generator)
    labels[:2] = torch.tensor([0, 22])
    return hidden, weight, labels


def full(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logps = (hidden @ weight.T / temperature).log_softmax(-1)
    return logps[torch.arange(len(labels)), labels], -(logps.exp() * logps).sum(-1)


def test_by_hand() -> None:
    """Logits 0 and ln 3 at temperature 1: probabilities 1/4 and 3/4, entropy ln 4 - 3/4 ln 3; at temperature 1/2 they are 1/10 and 9/10.

    d logp(1) / d z = (-p0, 1 - p1) = (-1/4, 1/4), times the weight rows (0) and (ln 3): d hidden = ln 3 / 4.
    """
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [math.log(3)]])
    logp, entropy = label_log_probs(hidden, weight, torch.tensor([1]))
    assert logp.item() == pytest.approx(math.log(3 / 4))
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    logp.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(math.log(3) / 4)
    assert label_log_probs(hidden, weight, torch.tensor([0]), 0.5)[0].item() == pytest.approx(math.log(0.1))


@pytest.mark.parametrize(("tokens", "vocabulary"), [(100, 100), (4, 100), (100, 7), (4, 7), (1, 1), (11, 23)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_tiling_equals_the_full_softmax(tokens: int, vocabulary: int, temperature: float) -> None:
    hidden, weight, labels = drawn()
    logps, entropy = label_log_probs(hidden, weight, labels, temperature, tile=(tokens, vocabulary))
    expected, expected_entropy = full(hidden, weight, labels, temperature)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=1e-13)
    assert not entropy.requires_grad
    weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
    found = torch.autograd.grad((logps * weights).sum(), (hidden, weight))
    wanted = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_gradcheck() -> None:
    """Numerical derivatives of both inputs."""
    hidden, weight, labels = drawn()
    torch.autograd.gradcheck(
        lambda h, w: label_log_probs(h, w, labels, 0.8, tile=(4, 7))[0], (hidden, weight)
    )


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels = drawn()
    label_log_probs(hidden, weight.detach(), labels, tile=(11, 7))[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_logits_of_any_size() -> None:
    """Logits of 5,000 and -5,000 overflow exp in float64; the running maximum keeps them in range."""
    weight = torch.tensor([[-5e3], [5e3], [5e3 - 1.0]], dtype=torch.float64)
    logps, entropy = label_log_probs(
        torch.ones(3, 1, dtype=torch.float64), weight, torch.arange(3), tile=(3, 1)
    )
    share = 1 / (1 + math.exp(-1))
    expected = [-1e4 + math.log(share), math.log(share), math.log(1 - share)]
    torch.testing.assert_close(logps, torch.tensor(expected, dtype=torch.float64))
    assert entropy[0].item() == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share))


def test_bfloat16_under_autocast() -> None:
    """Factors in bfloat16, their sums and the softmax in float32; gradients in the precision of the inputs."""
    hidden, weight, labels = drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = label_log_probs(hidden, weight, labels, tile=(11, 7))
    half = [x.detach().bfloat16() for x in (hidden, weight)]
    expected, _ = full(half[0].float(), half[1].float(), labels, 1.0)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
    logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    exact = torch.autograd.grad(full(hidden, weight, labels, 1.0)[0].sum(), hidden)[0]
    assert float((hidden.grad - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_what_is_kept_for_the_backward_pass() -> None:
    """Nothing of the size of the logits; with a frozen head one vector per label and nothing else."""
    hidden, weight, labels = drawn()

    def saved(head: Tensor) -> list[int]:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            label_log_probs(hidden, head, labels)
        return sizes

    assert saved(weight.detach()) == [hidden.numel()]
    assert max(saved(weight)) == weight.numel() < 11 * 23


def test_confident_labels_keep_their_gradient_in_bfloat16() -> None:
    """A label with probability 1 - 2e-4 leaves a small gradient, the difference of two near-equal vectors: 1% of it, not bfloat16's 2^-9
    of the vectors (which would be 10 times the gradient)."""
    hidden = torch.tensor([[1.0, 0.5]], requires_grad=True)
    weight = torch.tensor([[8.0, 1.0], [0.0, 0.0], [-0.25, 0.5]])
    with torch.autocast("cpu", torch.bfloat16):
        label_log_probs(hidden, weight, torch.tensor([0]))[0].sum().backward()
    exact = torch.autograd.grad(full(hidden, weight, torch.tensor([0]), 1.0)[0].sum(), hidden)[0]
    assert 1e-4 < float(exact.norm()) < 1e-2
    assert hidden.grad is not None
    assert float((hidden.grad - exact).norm()) < 0.01 * float(exact.norm())
