"""Two-part attention against one call with the mask written out as a matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl import attention
from vlm_contextrl.attention import attend, packed_layout, two_part_attention

LAYOUTS = [
    ([3], [[2, 1]]),
    ([1], [[1]]),
    ([4, 2, 6], [[3], [1, 5, 2], [2, 2]]),  # the longest prompt is in a row that is not the longest
    ([1, 7], [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1]]),
]


def mask_of(prompt_lens: list[int], continuation_lens: list[list[int]], T: int) -> Tensor:
    """[B, 1, T, T], position by position from the words: causal, the own prompt, the own continuation."""
    mask = torch.zeros(len(prompt_lens), 1, T, T, dtype=torch.bool)
    for b, (P, lens) in enumerate(zip(prompt_lens, continuation_lens, strict=True)):
        owner = [0] * P + [i for i, n in enumerate(lens, start=1) for _ in range(n)]
        for q, of_q in enumerate(owner):
            for k in range(q + 1):
                mask[b, 0, q, k] = owner[k] in (0, of_q)
    return mask


def tensors(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(T)
    shapes = [(B, H, T, D), (B, H_kv, T, D), (B, H_kv, T, D)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("prompt_lens", "continuation_lens"), LAYOUTS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_dense_mask(
    prompt_lens: list[int], continuation_lens: list[list[int]], scale: float | None
) -> None:
    """Outputs and gradients of every real position, grouped heads included, to 1e-12 in float64."""
    T = max(P + sum(lens) for P, lens in zip(prompt_lens, continuation_lens, strict=True)) + 1
    layout = packed_layout(prompt_lens, continuation_lens, T)
    q, k, v = tensors(len(prompt_lens), 4, 2, T, 8, torch.float64)
    out_BTHD = two_part_attention(q, k, v, layout, scale)

    mask = mask_of(prompt_lens, continuation_lens, T)
    real_BT = mask.any(-1)[:, 0]
    safe = mask | torch.eye(T, dtype=torch.bool)
    k4, v4 = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected_BTHD = F.scaled_dot_product_attention(q, k4, v4, attn_mask=safe, scale=scale).transpose(1, 2)

    weights = torch.randn(out_BTHD[real_BT].shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(out_BTHD[real_BT], expected_BTHD[real_BT], rtol=0, atol=1e-12)
    found = torch.autograd.grad((out_BTHD[real_BT] * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((expected_BTHD[real_BT] * weights).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_uniform_attention_by_hand() -> None:
    """Zero queries weigh all visible keys alike. Values 1 2 | 3 5 | 7 in a row of a prompt of two and two
    continuations: 1, 3/2 | (1+2+3)/3, (1+2+3+5)/4 | (1+2+7)/3."""
    layout = packed_layout([2], [[2, 1]], 5)
    v = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]).view(1, 1, 5, 1)
    out = two_part_attention(torch.zeros(1, 1, 5, 1), torch.randn(1, 1, 5, 1), v, layout, None)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 1.5, 2.0, 2.75, 10 / 3]))


def test_bfloat16_on_a_cpu() -> None:
    """The written-out product used for bfloat16 is as close to float64 as bfloat16 allows (2^-8 per value)."""
    q, k, v = (x.detach() for x in tensors(2, 2, 2, 9, 8, torch.bfloat16))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    for given in (None, mask):
        out = attend(q, k, v, given, None)
        assert out.dtype == torch.bfloat16
        assert float((out.double() - expected).abs().max()) < 0.05


def test_autocast_takes_the_same_way() -> None:
    """Under autocast the inputs may still be float32; the result stays within bfloat16 of the exact one."""
    q, k, v = (x.detach() for x in tensors(1, 2, 2, 6, 8, torch.float32))
    expected = attend(q, k, v, None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, None, None)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05)


def test_layout_moves_to_a_device() -> None:
    layout = packed_layout([2], [[2, 1]], 5)
    moved = layout.to(torch.device("meta"))
    assert moved.prompt_len == layout.prompt_len
    assert moved.source_BT.device.type == "meta"
    assert moved.mask_N1CK.shape == layout.mask_N1CK.shape


def test_register_twice() -> None:
    from transformers import AttentionInterface

    attention.register()
    attention.register()
    assert attention.PACKED in AttentionInterface()
