"""Whether two sides of the bench compute the same thing: a bench of two different computations is worth nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.probe import option_ids, selection_prompt
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor

CLIP = 5.0  # of margins, as published

Found = tuple[Tensor, dict[str, Tensor]]  # values, and the gradient of every adapter


class ParityError(ContextRLError, RuntimeError):
    """The two sides of a comparison do not compute the same thing."""


def agree(peer: Found, ours: Found, where: str, tolerance: float) -> float:
    """The largest difference of the values, in their own unit.

    Raises ParityError when it, or the largest difference of gradients as a share of the largest gradient, is over the tolerance.
    """
    values = float((peer[0] - ours[0]).abs().max())
    if peer[1].keys() != ours[1].keys():
        raise ParityError(f"{where}: other parameters have gradients; expected those of the adapters")
    differences = [(peer[1][name] - gradient).abs().max() for name, gradient in ours[1].items()]
    largest = [gradient.abs().max() for gradient in ours[1].values()]
    share = float(torch.stack(differences).max() / torch.stack(largest).max())
    if not (values <= tolerance and share <= tolerance):  # a NaN is no agreement
        raise ParityError(
            f"{where} compute different things: values differ by {values:.2g}, gradients by {share:.2g} of the largest; "
            f"expected at most {tolerance:g}"
        )
    return values


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter that has one; they are cleared."""
    found = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def group_loss(logps_GC: Tensor) -> Tensor:
    """GRPO at a ratio of 1, with advantages spread over [-1, 1]."""
    advantages_G1 = torch.linspace(-1, 1, len(logps_GC), device=logps_GC.device)[:, None]
    return -(advantages_G1 * (logps_GC - logps_GC.detach()).exp()).mean()


def selection_prompts(
    processor: Processor,
    pairs: Sequence[ContrastivePair],
    images: Sequence[tuple[ProcessedImage, ProcessedImage]],
) -> tuple[list[EncodedPrompt], list[int]]:
    """Both directions of every pair over the same order of its images, and the option ids. The first supports A, the other B."""
    prompts = []
    for each, shown in zip(pairs, images, strict=True):
        reverse = each.reversed()
        assert reverse is not None
        prompts += [selection_prompt(processor, each, shown), selection_prompt(processor, reverse, shown)]
    return prompts, option_ids(processor, pairs)


def margin_loss(logits_BO: Tensor) -> Tensor:
    """-log sigmoid(clip(D)), mean over rows of which the even ones are supported by A, the odd ones by B."""
    first_B = logits_BO[:, 0] - logits_BO[:, 1]
    sign_B = torch.ones_like(first_B)
    sign_B[1::2] = -1
    return F.softplus(-(sign_B * first_B).clamp(-CLIP, CLIP)).mean()
