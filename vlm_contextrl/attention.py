"""Attention over packed rows in two parts: prompts to themselves, continuations to their prompt and themselves.

A dense mask makes every token look at the whole row: with G continuations that is G times too much work. Here the prompt part is one
causal call, and continuations are gathered into a batch of their own, each with its prompt's keys in front of its own.
The numbers equal those of the dense mask (tests/test_packing.py).

Registered with transformers under the name PACKED. Without a layout (ordinary batches, generation) it is transformers' SDPA.

Shapes: B rows, H heads, T tokens, D head size, N continuations of all rows, C longest continuation, P longest prompt part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED = "contextrl_packed"


@dataclass(frozen=True)
class PackedLayout:
    """Where prompts and continuations lie in a padded batch, as flat indices into B*T."""

    prompt_len: int  # P
    query_at_NC: Tensor
    key_at_NK: Tensor  # K = P + C: the prompt's keys, then the continuation's own
    mask_N1CK: Tensor
    source_BT: Tensor  # for each position, its index in [prompt outputs (B*P), continuation outputs (N*C)]

    def to(self, device: torch.device) -> PackedLayout:
        return PackedLayout(
            self.prompt_len,
            *(t.to(device) for t in (self.query_at_NC, self.key_at_NK, self.mask_N1CK, self.source_BT)),
        )


def packed_layout(
    prompt_lens: Sequence[int], continuation_lens: Sequence[Sequence[int]], row_len: int
) -> PackedLayout:
    """Layout of rows that hold a prompt part of `prompt_lens[b]` tokens, then continuations one behind the other."""
    B, T, P = len(prompt_lens), row_len, max(prompt_lens)
    spans = [
        (b, prompt_lens[b] + sum(lens[:i]), n)
        for b, lens in enumerate(continuation_lens)
        for i, n in enumerate(lens)
    ]
    row_N = torch.tensor([b for b, _, _ in spans])
    start_N = torch.tensor([start for _, start, _ in spans])
    n_N = torch.tensor([n for _, _, n in spans])
    prompt_N = torch.tensor(list(prompt_lens))[row_N]
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
    return PackedLayout(
        P, query_at_NC, torch.cat([prompt_at_NP, query_at_NC], 1), mask_NCK[:, None], source_BT
    )


def two_part_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None
) -> Tensor:
    """Query [B, H, T, D], key and value [B, H_kv, T, D] to output [B, T, H, D]."""
    B, H, T, D = query.shape
    P = layout.prompt_len
    repeats = H // key.shape[1]
    flat_q, flat_k, flat_v = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query, key, value))

    def gather(flat: Tensor, at: Tensor, repeats: int) -> Tensor:
        picked = flat.index_select(0, at.flatten()).view(*at.shape, -1, D).transpose(1, 2)
        return picked.repeat_interleave(repeats, 1) if repeats > 1 else picked

    key, value = (x[:, :, :P].repeat_interleave(repeats, 1) for x in (key, value))
    prompt_out = attend(query[:, :, :P], key, value, None, scale)
    continuation_out = attend(
        gather(flat_q, layout.query_at_NC, 1),
        gather(flat_k, layout.key_at_NK, repeats),
        gather(flat_v, layout.key_at_NK, repeats),
        layout.mask_N1CK,
        scale,
    )
    outputs = [x.transpose(1, 2).reshape(-1, H, D) for x in (prompt_out, continuation_out)]
    return torch.cat(outputs).index_select(0, layout.source_BT).view(B, T, H, D)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention with a boolean mask, or causal without one; all tensors [.., H, T, D]."""
    half = query.dtype == torch.bfloat16 or torch.is_autocast_enabled(query.device.type)
    if query.device.type != "cpu" or not half:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
        )
    # torch's fused backward in bfloat16 on a CPU takes five times as long as two matrix products at these sizes.
    if mask is None:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-2, -1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    layout: PackedLayout | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if (
        layout is None
        and attention_mask is None
        and query.shape[2] == key.shape[2] > 1
        and query.requires_grad
    ):
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
        return attend(query, key, value, None, scaling).transpose(1, 2), None
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out
    return two_part_attention(query, key, value, layout, scaling), None


def register() -> None:
    """Make the name known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, _forward)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
