"""First stage: the vision tower learns what a scene holds, without the language model.

    loss = sum over facts f of BCE(w_f . [v_1 .. v_N] + b_f, f holds), mean over images

A fact is a word of the description or two words of one of its phrases: "a large red circle at top" has red, circle, red circle, red top,
circle top and so on, so that what is learned of one red thing serves all. v_i are the visual tokens the language model will read. The
head is thrown away. An image costs a fifth of what it costs together with the language model, and the gradient reaches the tower at
once instead of through a decoder that cannot read yet.

Shapes: B images, F facts, N visual tokens of an image, H hidden size of the language model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_contextrl.data_recipes.render import scene_examples
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.processing import Processor


def facts_of(description: str) -> set[str]:
    """Words and pairs of words that stand in one phrase of a description."""
    phrases = [phrase.split() for phrase in description.removesuffix(".").split(", ")]
    return {" ".join(part) for words in phrases for n in (1, 2) for part in combinations(words, n)}


class FactHead(nn.Module):
    """Linear read-out of every fact from all visual tokens of an image; biases start at the facts' frequencies."""

    def __init__(self, config: TinyVLConfig, n_tokens: int) -> None:
        super().__init__()
        counts: Counter[str] = Counter()
        for index in range(config.fact_scenes):
            counts.update(facts_of(scene_examples(config.seed, index, size_px=28, questions_per_scene=1)[1]))
        # A fact that always holds says nothing.
        kept = [(fact, n) for fact, n in counts.most_common(config.facts) if n < config.fact_scenes]
        self.index = {fact: i for i, (fact, _) in enumerate(kept)}
        self.linear = nn.Linear(n_tokens * config.hidden, len(kept))
        nn.init.zeros_(self.linear.weight)
        rates = [n / config.fact_scenes for _, n in kept]
        self.linear.bias.data.copy_(torch.tensor([math.log(r / (1 - r)) for r in rates]))

    def forward(self, tokens: list[Tensor]) -> Tensor:
        logits_BF: Tensor = self.linear(torch.stack([t.flatten() for t in tokens]))
        return logits_BF

    def targets(self, descriptions: list[str]) -> Tensor:
        """[B, F] zeros and ones; facts outside the vocabulary are left out."""
        out_BF = torch.zeros(len(descriptions), len(self.index))
        for b, description in enumerate(descriptions):
            out_BF[b, [self.index[f] for f in facts_of(description) if f in self.index]] = 1
        return out_BF


def vision_loss(
    model: Any, head: FactHead, processor: Processor, config: TinyVLConfig, first_index: int
) -> Callable[[], Tensor]:
    """The loss, ready to run, of `images_per_step` scenes from scene number `first_index` on."""
    scenes = [
        scene_examples(config.seed, first_index + i, size_px=config.size_px, questions_per_scene=1)
        for i in range(config.images_per_step)
    ]
    images = [processor.process_image(image) for image, *_ in scenes]
    patches = torch.cat([image.patches_ND for image in images])
    grids = torch.tensor([image.grid_thw for image in images])
    targets_BF = head.targets([description for _, description, _, _ in scenes])

    def loss() -> Tensor:
        tokens = model.model.get_image_features(patches, grids, return_dict=True).pooler_output
        per_image = F.binary_cross_entropy_with_logits(
            head(list(tokens)).float(), targets_BF, reduction="none"
        ).sum(1)
        return per_image.mean()

    return loss
