"""One row per group: the prompt once, then every continuation, each seeing the prompt and itself only.

A row holds `prompt[:-1]`, then for each continuation `[last prompt token, s_0 .. s_{n-2}]`, so that every continuation position carries
exactly one label and no token is computed twice. Rotary positions restart after the prompt for every continuation. The result equals
the batch in which the prompt is repeated (tests/test_packing.py; exact in float64).

The layout of a batch (packed_layout.py) is what the attention kernels work from; its `dense_mask` is their oracle.

Shapes: B rows, T tokens of a padded row, L labelled positions over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vlm_contextrl.packed_layout import PackedLayout
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage

Item = TypeVar("Item")
PositionsOf = Callable[[EncodedPrompt], Tensor]  # rotary positions [3, T] of one prompt


@dataclass(frozen=True)
class Continuation:
    """Tokens after a prompt. The first `n_given` are read, the rest are predicted."""

    ids: Tensor
    n_given: int = 0


@dataclass(frozen=True)
class PackedRow:
    prompt: EncodedPrompt
    continuations: tuple[Continuation, ...]

    def n_tokens(self) -> int:
        return len(self.prompt) - 1 + sum(len(c.ids) for c in self.continuations)


@dataclass(frozen=True)
class PackedBatch:
    ids_BT: Tensor
    positions_3BT: Tensor
    layout: PackedLayout
    images: tuple[ProcessedImage, ...]  # in the order of their placeholders
    label_at_L: Tensor  # flat index into B*T
    labels_L: Tensor
    lengths: tuple[tuple[int, ...], ...]  # predicted tokens per row and continuation

    def split(self, values_L: Tensor) -> list[list[Tensor]]:
        """Per-label values back to one tensor per row and continuation."""
        flat = iter(values_L.split([n for row in self.lengths for n in row]))
        return [[next(flat) for _ in row] for row in self.lengths]


def pack(rows: Sequence[PackedRow], positions_of: PositionsOf, pad_id: int) -> PackedBatch:
    """Lay rows out and right-pad them to the longest."""
    T = max(row.n_tokens() for row in rows)
    ids_BT = torch.full((len(rows), T), pad_id)
    positions_3BT = torch.zeros(3, len(rows), T, dtype=torch.long)
    label_at: list[Tensor] = []
    labels: list[Tensor] = []
    for b, row in enumerate(rows):
        prompt, P = row.prompt.ids_T, len(row.prompt) - 1
        prompt_positions_3T = positions_of(row.prompt)
        ids_BT[b, :P] = prompt[:-1]
        positions_3BT[:, b, :P] = prompt_positions_3T[:, :-1]
        start, first_position = P, int(prompt_positions_3T[:, -1].max())
        for continuation in row.continuations:
            end = start + len(continuation.ids)
            ids_BT[b, start] = prompt[-1]
            ids_BT[b, start + 1 : end] = continuation.ids[:-1]
            positions_3BT[:, b, start:end] = torch.arange(first_position, first_position + end - start)
            label_at.append(torch.arange(b * T + start + continuation.n_given, b * T + end))
            labels.append(continuation.ids[continuation.n_given :])
            start = end
    return PackedBatch(
        ids_BT,
        positions_3BT,
        PackedLayout.of(
            [len(r.prompt) - 1 for r in rows], [[len(c.ids) for c in r.continuations] for r in rows], T
        ),
        tuple(image for row in rows for image in row.prompt.images),
        torch.cat(label_at),
        torch.cat(labels),
        tuple(tuple(len(c.ids) - c.n_given for c in row.continuations) for row in rows),
    )


def share_starts(prompts: Sequence[EncodedPrompt], image_token_id: int) -> tuple[list[PackedRow], list[int]]:
    """Rows in which prompts that start alike hold that start once, e.g. a pair of images with two questions behind it.

    Returns the rows, and for every continuation, in order, the number of its prompt. A continuation is what follows the start; its one
    label is no token of the prompt, only the place from which the next token is predicted. Prompts share a start when it
    holds the same images, all that they have; without images, when it is at least half of each.
    """
    groups: dict[tuple[str, ...], list[_Alike]] = {}
    for number, prompt in enumerate(prompts):
        same_images = groups.setdefault(tuple(image.key for image in prompt.images), [])
        if not any(group.take(number, prompt) for group in same_images):
            same_images.append(_Alike(number, prompt, image_token_id))
    rows, order = [], []
    for group in (group for same_images in groups.values() for group in same_images):
        start = EncodedPrompt(group.first.ids_T[: group.n_start], group.first.images)
        ends = [prompts[number].ids_T[group.n_start :] for number in group.members]
        unread = torch.zeros(1, dtype=torch.long)
        rows.append(PackedRow(start, tuple(Continuation(torch.cat([end, unread]), len(end)) for end in ends)))
        order += group.members
    return rows, order


def answered(
    prompts: Sequence[EncodedPrompt], answers: Sequence[Tensor], image_token_id: int
) -> list[PackedRow]:
    """Rows of prompts with given answers, of which the tokens are predicted. Prompts share what `share_starts` finds."""
    rows, order = share_starts(prompts, image_token_id)
    numbers = iter(order)
    return [
        PackedRow(
            row.prompt,
            tuple(
                Continuation(torch.cat([c.ids[: c.n_given], answers[next(numbers)]]), c.n_given)
                for c in row.continuations
            ),
        )
        for row in rows
    ]


class _Alike:
    """Prompts that share their first `n_start` tokens."""

    def __init__(self, number: int, first: EncodedPrompt, image_token_id: int) -> None:
        self.first = first
        self.members = [number]
        self.n_start = self.longest = len(first)
        image_at = (first.ids_T == image_token_id).nonzero()
        self.n_images = int(image_at.max()) + 1 if len(image_at) else 0  # tokens up to the last image

    def take(self, number: int, prompt: EncodedPrompt) -> bool:
        """Add a prompt if it starts alike."""
        shorter = min(self.n_start, len(prompt))
        differs = (self.first.ids_T[:shorter] != prompt.ids_T[:shorter]).nonzero()
        n_start = int(differs[0]) if len(differs) else shorter
        longest = max(self.longest, len(prompt))
        if n_start <= self.n_images or (self.n_images == 0 and 2 * n_start < longest):
            return False
        self.members.append(number)
        self.n_start, self.longest = n_start, longest
        return True


def under_budget(
    items: Sequence[Item], n_tokens: Callable[[Item], int], budget_tokens: int
) -> Iterator[list[Item]]:
    """Consecutive items, as many as fit when padded to the longest; an item over the budget goes alone."""
    batch: list[Item] = []
    longest = 0
    for item in items:
        longest = max(longest, n_tokens(item))
        if batch and longest * (len(batch) + 1) > budget_tokens:
            yield batch
            batch, longest = [], n_tokens(item)
        batch.append(item)
    if batch:
        yield batch
