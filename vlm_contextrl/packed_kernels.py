"""Ways to attend over packed rows. All give the numbers of the dense mask (tests/test_packed_kernels.py), none makes a token look at the
whole row, which with G continuations would be G times too much work.

    two_part  prompts in one causal call, continuations as a padded batch with their prompt's keys in front: SDPA, any device
    varlen    prompts and continuations as segments without padding: the flash kernel in torch (torch.nn.attention.varlen)
    flash     the same through the package flash-attn
    flex      FlexAttention with a block mask

Query [B, H, T, D], key and value [B, H_kv, T, D] to output [B, T, H, D]. Shapes as in packed_layout.py; H heads, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl.log_probs import in_product_dtype
from vlm_contextrl.packed_layout import PackedLayout, Ragged

Kernel = Callable[[Tensor, Tensor, Tensor, PackedLayout, float | None], Tensor]
RaggedKernel = Callable[[Tensor, Tensor, Tensor, Ragged, float | None], Tensor]


def two_part(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None) -> Tensor:
    B, H, T, D = query.shape
    P, padded = layout.prompt_len, layout.padded
    flat_q, flat_k, flat_v = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query, key, value))

    def gather(flat: Tensor, at: Tensor) -> Tensor:
        return flat.index_select(0, at.flatten()).view(*at.shape, -1, D).transpose(1, 2)

    # Contiguous parts: a view would keep the whole row alive until the backward pass.
    query, key, value = (x[:, :, :P].contiguous() for x in (query, key, value))
    prompt_out = attend(query, key, value, None, scale)
    continuation_out = attend(
        gather(flat_q, padded.query_at_NC),
        gather(flat_k, padded.key_at_NK),
        gather(flat_v, padded.key_at_NK),
        padded.mask(query.dtype) if _uses_sdpa(query) else padded.mask_N1CK,
        scale,
    )
    outputs = [x.transpose(1, 2).reshape(-1, H, D) for x in (prompt_out, continuation_out)]
    return torch.cat(outputs).index_select(0, padded.source_BT).view(B, T, H, D)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention with a mask (boolean, or added to the scores), or causal without; query [.., H, T, D], key and value [.., H_kv, T, D]."""
    grouped = query.shape[-3] != key.shape[-3]
    on_cpu = query.device.type == "cpu"
    if grouped and not (on_cpu and _uses_sdpa(query)):  # on CUDA few of SDPA's kernels take groups
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        grouped = False
    if _uses_sdpa(query):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    # torch's fused backward in bfloat16 on a CPU takes five times as long as two matrix products at these sizes.
    if mask is None:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-2, -1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _uses_sdpa(query: Tensor) -> bool:
    half = query.dtype == torch.bfloat16 or torch.is_autocast_enabled(query.device.type)
    return query.device.type != "cpu" or not half


def over_segments(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, kernel: RaggedKernel
) -> Tensor:
    """Gather the segments, attend, put the outputs back; padding gets zeros. The prompt's keys are repeated for every continuation, which
    grouped heads keep small: 28 MB per layer and group at 7B with G(P + C) = 14k."""
    B, H, T, D = query.shape
    ragged = layout.ragged
    query, key, value = (
        in_product_dtype(x) for x in (query, key, value)
    )  # autocast does not know these kernels
    flat_q, flat_k, flat_v = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query, key, value))
    out_QHD = kernel(
        flat_q.index_select(0, ragged.query_at_Q),
        flat_k.index_select(0, ragged.key_at_K),
        flat_v.index_select(0, ragged.key_at_K),
        ragged,
        scale,
    )
    return out_QHD.new_zeros(B * T, H, D).index_copy(0, ragged.query_at_Q, out_QHD).view(B, T, H, D)


def varlen(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None) -> Tensor:
    def kernel(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, scale: float | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        # A window of (-1, 0) is the causal mask, aligned at the ends of queries and keys.
        out: Any = varlen_attn(
            q, k, v, ragged.query_starts, ragged.key_starts, ragged.longest_query, ragged.longest_keys,
            scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return out  # type: ignore[no-any-return]  # a pair only when asked for

    return over_segments(query, key, value, layout, scale, kernel)


def flash(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None) -> Tensor:
    def kernel(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, scale: float | None) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        out: Tensor = flash_attn_varlen_func(
            q, k, v, ragged.query_starts, ragged.key_starts, ragged.longest_query, ragged.longest_keys,
            softmax_scale=scale, causal=True,
        )  # fmt: skip
        return out

    return over_segments(query, key, value, layout, scale, kernel)


def flex(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None) -> Tensor:
    attention = _flex_attention(query.device.type)
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = attention(query, key, value, block_mask=layout.block_mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@lru_cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


KERNELS: dict[str, Kernel] = {"flash": flash, "varlen": varlen, "flex": flex, "two_part": two_part}


class Choice(NamedTuple):
    """name: a key of KERNELS; reason: why this one, and what was asked for where that cannot be had."""

    name: str
    reason: str


def choose_kernel(wanted: str, device: torch.device | str, dtype: torch.dtype) -> Choice:
    """The kernel for a device and the precision of matrix products. `auto` takes the first that works; another that does not work falls
    back to two_part, and the reason says why."""
    device = torch.device(device)
    if wanted == "auto":
        obstacles = {name: obstacle(name, device, dtype) for name in KERNELS}
        name = next(name for name, found in obstacles.items() if found is None)
        reasons: dict[str, list[str]] = {}
        for other, found in obstacles.items():
            if found:
                reasons.setdefault(found, []).append(other)
        passed_over = [f"no {', '.join(others)}: {found}" for found, others in reasons.items()]
        return Choice(name, "; ".join(passed_over) or "the first choice")
    found = obstacle(wanted, device, dtype)
    return Choice("two_part", f"instead of {wanted}: {found}") if found else Choice(wanted, "as configured")


def obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel cannot train here, or None."""
    if name == "two_part":
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if name == "flex":
        return "torch.compile has no triton" if find_spec("triton") is None else None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, products are in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 (Ampere) or newer"
    if name == "flash":
        return "flash-attn is not installed" if find_spec("flash_attn") is None else None
    missing = find_spec("torch.nn.attention.varlen") is None
    return "this torch has no torch.nn.attention.varlen" if missing else None


def announce(choice: Choice, wanted: str) -> None:
    """One line on stderr when something else was asked for."""
    if wanted not in ("auto", choice.name):
        print(f"attention: {choice.name} {choice.reason}", file=sys.stderr)
