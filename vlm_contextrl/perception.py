"""The term of PAPO on packed groups: masked images, and the log-probs of completions given them (objectives/perception_kl.py).

Shapes: B completions, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_contextrl.objectives.perception_kl import PerceptionBatch, PerceptionConfig, perception_loss
from vlm_contextrl.packing import PackedRow, under_budget
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor
from vlm_contextrl.sharding import gathered
from vlm_contextrl.term_settings import PerceptionTerm
from vlm_contextrl.terms import Group, Metrics, Share, Update, n_tokens, padded, row_logps


def blackened(picture: Image.Image, square_px: int, ratio: float, seed: str) -> Image.Image:
    """The picture with squares of a grid, each with probability `ratio`, set to black. The same seed blackens the same squares."""
    pixels = np.array(picture.convert("RGB"))
    height, width = (-(-side // square_px) for side in pixels.shape[:2])
    rng = np.random.default_rng(random.Random(seed).getrandbits(64))
    squares = rng.random((height, width)) < ratio
    black = squares.repeat(square_px, axis=0).repeat(square_px, axis=1)
    pixels[black[: pixels.shape[0], : pixels.shape[1]]] = 0
    return Image.fromarray(pixels)


class PerceptionObjective:
    """Away from what the policy says given masked images. Groups whose prompts have no image take no part."""

    def __init__(self, settings: PerceptionTerm, temperature: float) -> None:
        self.weight = settings.weight
        self.settings, self.temperature = settings, temperature
        self.config = PerceptionConfig(settings.kl_coef, settings.entropy_coef, settings.masked_entropy_coef)

    @torch.no_grad()
    def prepare(self, policy: Policy, groups: Sequence[Group], seed: str, budget_tokens: int) -> None:
        """Give the groups masked prompts, and their completions the log-probs given them, by the policy as it is now."""
        seen = [group for group in groups if group.prompt.images]
        for group in seen:
            group.masked_prompt = self._masked(policy.processor, group, seed)
        with gathered(policy):
            for batch in under_budget(seen, lambda g: g.packed().n_tokens(), budget_tokens):
                per_group, _ = row_logps(policy, [_masked_row(g) for g in batch], self.temperature)
                for group, logps in zip(batch, per_group, strict=True):
                    group.masked_logps = logps

    def _masked(self, processor: Processor, group: Group, seed: str) -> EncodedPrompt:
        images: list[ProcessedImage] = []
        patch_px = processor.image_processor.patch_size
        for number, (encoded, seen) in enumerate(zip(group.row.images, group.prompt.images, strict=True)):
            where = f"row {group.row.id}, image {number}"
            _, height, width = seen.grid_thw
            picture = encoded.decode(where).resize(
                (width * patch_px, height * patch_px), Image.Resampling.BICUBIC
            )
            masked = blackened(
                picture, self.settings.square_px, self.settings.mask_ratio, f"{seed}:{group.row.id}:{number}"
            )
            images.append(replace(processor.process_image(masked, where, resize=False), comes_again=False))
        return EncodedPrompt(group.prompt.ids_T, tuple(images))

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        seen = [group for group in update.groups if group.prompt.images]
        (tokens,) = update.total(n_tokens(seen))
        passes = 2 if self.settings.masked_gradient else 1
        for groups in under_budget(seen, lambda g: g.packed().n_tokens() * passes, budget_tokens):
            yield lambda groups=groups: self._share(policy, groups, tokens)  # type: ignore[misc]

    def _share(self, policy: Policy, groups: Sequence[Group], tokens: float) -> tuple[Tensor, Metrics]:
        """One forward, whatever has a gradient: ranks of a sharded model count on it."""
        rows = [group.packed() for group in groups]
        if self.settings.masked_gradient:
            rows += [_masked_row(group) for group in groups]
        per_row, _ = row_logps(policy, rows, self.temperature)
        masked = per_row[len(groups) :] or [group.masked_logps for group in groups]
        logps_BT, mask_BT = padded([logp for row in per_row[: len(groups)] for logp in row])
        masked_BT, _ = padded([logp.to(logps_BT) for row in masked for logp in row])
        loss, metrics = perception_loss(PerceptionBatch(logps_BT, masked_BT, mask_BT), self.config, tokens)
        return loss, {name: float(value) for name, value in metrics.items()}


def _masked_row(group: Group) -> PackedRow:
    assert group.masked_prompt is not None  # `prepare` makes it
    return replace(group.packed(), prompt=group.masked_prompt)
