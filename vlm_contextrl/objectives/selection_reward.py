"""The selection reward: choose the context that supports the answer, by sampling and a reward of 0 or 1.

    r_i = 1 if completion i names the letter of the supporting context, else 0
    L   = the policy loss (policy.py) of these completions, with advantages inside the group of each prompt

The same selection prompts as those of the selection loss, answered freely instead of by teacher forcing: what is left of context
selection when it is put to the policy as one more task with a verifiable reward. Source: the arm "mixed in as ordinary prompts with a
sampled 0/1 reward" of arXiv 2606.17053, which was found not to learn to select.

Variant, clip range, KL and temperature are those of the policy term beside it.

Deviations: the paper mixes the pairs into the data. Here `ratio` selection prompts come with every question of an update, beside the
questions and not in place of them, with denominators and a weight of their own, so that the questions' loss is the same to the bit with
and without them. (Mixed into the data: `data.pairs_as_questions`.) A completion is read like an answer to a multiple-choice question
(answers.py): "B", "B." and "Image B" count, "A or B" does not.

Left out: a reward for the form; thinking is neither asked for nor forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_contextrl.answers import selection_letter


def selection_rewards(completions: Sequence[str], letter: str, kind: Literal["image", "text"]) -> list[float]:
    """1.0 for each completion that names `letter`, the supporting context's, else 0.0. kind: of the contexts."""
    return [float(selection_letter(text, kind) == letter) for text in completions]
