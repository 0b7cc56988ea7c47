"""Where prompts and continuations lie in a batch of packed rows, in the form that each attention kernel takes.

Shapes: B rows, T tokens of a padded row, N continuations of all rows, C longest continuation, P longest prompt part, S segments
(prompts and continuations) of all rows, Q queries and K keys of all segments one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Padded:
    """Continuations as a batch of their own, each with its prompt's keys in front of its own; indices are into B*T."""

    query_at_NC: Tensor
    key_at_NK: Tensor  # K = P + C
    mask_N1CK: Tensor
    source_BT: Tensor  # for each position, its index in [prompt outputs (B*P), continuation outputs (N*C)]
    _added: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """The mask as numbers that are added to the scores: made once, where SDPA would make and keep one per layer."""
        if dtype not in self._added:
            self._added[dtype] = torch.zeros_like(self.mask_N1CK, dtype=dtype).masked_fill_(
                ~self.mask_N1CK, -torch.inf
            )
        return self._added[dtype]


class Ragged(NamedTuple):
    """Segments one behind the other, without padding; a query sees the keys of its segment, aligned at their ends. Indices are into B*T."""

    query_at_Q: Tensor
    key_at_K: Tensor
    query_starts: Tensor  # [S + 1], int32
    key_starts: Tensor
    longest_query: int
    longest_keys: int


@dataclass(frozen=True)
class PackedLayout:
    """Rows of a prompt part and then continuations one behind the other, right-padded to `row_len` tokens."""

    prompt_lens: tuple[int, ...]
    continuation_lens: tuple[tuple[int, ...], ...]
    row_len: int
    device: torch.device = CPU
    kernel: str = "two_part"  # which of packed_kernels.KERNELS attends

    @classmethod
    def of(
        cls, prompt_lens: Sequence[int], continuation_lens: Sequence[Sequence[int]], row_len: int
    ) -> PackedLayout:
        return cls(tuple(prompt_lens), tuple(tuple(lens) for lens in continuation_lens), row_len)

    def on(self, device: torch.device, kernel: str) -> PackedLayout:
        return replace(self, device=device, kernel=kernel)

    @property
    def prompt_len(self) -> int:
        """P"""
        return max(self.prompt_lens)

    def segments(self) -> list[tuple[range, range]]:
        """(own positions, positions of the prompt in front of them) of prompts and continuations, in the order of the rows."""
        found = []
        for b, (n_prompt, lens) in enumerate(zip(self.prompt_lens, self.continuation_lens, strict=True)):
            start = b * self.row_len
            prompt = range(start, start + n_prompt)
            found.append((prompt, range(0)))
            ends = accumulate(lens, initial=prompt.stop)
            found += [(range(first, last), prompt) for first, last in pairwise(ends)]
        return [(own, before) for own, before in found if own]

    @cached_property
    def padded(self) -> Padded:
        B, T, P = len(self.prompt_lens), self.row_len, self.prompt_len
        spans = [
            (b, self.prompt_lens[b] + sum(lens[:i]), n)
            for b, lens in enumerate(self.continuation_lens)
            for i, n in enumerate(lens)
        ]
        row_N = torch.tensor([b for b, _, _ in spans])
        start_N = torch.tensor([start for _, start, _ in spans])
        n_N = torch.tensor([n for _, _, n in spans])
        prompt_N = torch.tensor(self.prompt_lens)[row_N]
        C = int(n_N.max())
        within_C, within_P = torch.arange(C), torch.arange(P)
        inside_NC = within_C < n_N[:, None]
        # Slots past an end read position 0 of their row; the mask or the source index makes them harmless.
        query_at_NC = row_N[:, None] * T + torch.where(inside_NC, start_N[:, None] + within_C, 0)
        prompt_inside_NP = within_P < prompt_N[:, None]
        prompt_at_NP = row_N[:, None] * T + torch.where(prompt_inside_NP, within_P, 0)
        causal_CC = torch.ones(C, C, dtype=torch.bool).tril()
        mask_NCK = torch.cat(
            [prompt_inside_NP[:, None].expand(-1, C, -1), causal_CC.expand(len(spans), -1, -1)], 2
        )
        source_BT = torch.zeros(B * T, dtype=torch.long)
        flat_BP = (torch.arange(B)[:, None] * T + within_P).clamp(max=B * T - 1)
        source_BT[flat_BP] = torch.arange(B)[:, None] * P + within_P
        source_BT[query_at_NC[inside_NC]] = (B * P + torch.arange(len(spans) * C)).view(-1, C)[inside_NC]
        key_at_NK = torch.cat([prompt_at_NP, query_at_NC], 1)
        tensors = (query_at_NC, key_at_NK, mask_NCK[:, None], source_BT)
        query_at_NC, key_at_NK, mask_N1CK, source_BT = (x.to(self.device) for x in tensors)
        return Padded(query_at_NC, key_at_NK, mask_N1CK, source_BT)

    @cached_property
    def ragged(self) -> Ragged:
        segments = self.segments()
        query_lens = [len(own) for own, _ in segments]
        key_lens = [len(before) + len(own) for own, before in segments]

        def indices(ranges: list[range]) -> Tensor:
            return torch.cat([torch.arange(r.start, r.stop) for r in ranges]).to(self.device)

        def starts(lens: list[int]) -> Tensor:
            return torch.tensor([0, *accumulate(lens)], dtype=torch.int32, device=self.device)

        return Ragged(
            indices([own for own, _ in segments]),
            indices([part for own, before in segments for part in (before, own)]),
            starts(query_lens),
            starts(key_lens),
            max(query_lens),
            max(key_lens),
        )

    @cached_property
    def owner_BT(self) -> Tensor:
        """0 for a prompt, i > 0 for the i-th continuation, -1 for padding."""
        owner_BT = torch.full((len(self.prompt_lens), self.row_len), -1)
        for b, (n_prompt, lens) in enumerate(zip(self.prompt_lens, self.continuation_lens, strict=True)):
            owners = torch.arange(len(lens) + 1).repeat_interleave(torch.tensor([n_prompt, *lens]))
            owner_BT[b, : len(owners)] = owners
        return owner_BT.to(self.device)

    @cached_property
    def dense_mask(self) -> Tensor:
        """What each position may see, [B, 1, T, T] booleans: causal, its own segment or the prompt. Padding sees itself, so that no
        softmax is empty."""
        query, key = self.owner_BT[:, :, None], self.owner_BT[:, None, :]
        causal = torch.ones(self.row_len, self.row_len, dtype=torch.bool, device=self.device).tril()
        return (((query == key) | (key == 0)) & causal)[:, None]

    @cached_property
    def block_mask(self) -> Any:
        """`dense_mask` for FlexAttention."""
        from torch.nn.attention.flex_attention import create_block_mask

        owner_BT = self.owner_BT

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            own = (owner_BT[b, q] == owner_BT[b, k]) | (owner_BT[b, k] == 0)
            return own & (k <= q)

        B, T = owner_BT.shape
        compiled = self.device.type == "cuda"  # else it is made from T x T numbers
        return create_block_mask(sees, B, None, T, T, device=self.device, _compile=compiled)
