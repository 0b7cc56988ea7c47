"""Attention over packed rows against one call with the mask written out as a matrix, and which kernel is chosen where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl import attention, packed_kernels
from vlm_contextrl.packed_kernels import KERNELS, attend, choose_kernel, two_part
from vlm_contextrl.packed_layout import PackedLayout

LAYOUTS = [
    ([3], [[2, 1]]),
    ([1], [[1]]),
    ([4, 2, 6], [[3], [1, 5, 2], [2, 2]]),  # the longest prompt is in a row that is not the longest
    ([1, 7], [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1]]),
]


def layout_of(prompt_lens: list[int], continuation_lens: list[list[int]]) -> PackedLayout:
    """With one padded position at the end of the longest row."""
    T = max(P + sum(lens) for P, lens in zip(prompt_lens, continuation_lens, strict=True)) + 1
    return PackedLayout.of(prompt_lens, continuation_lens, T)


def mask_of(layout: PackedLayout) -> Tensor:
    """[B, 1, T, T], position by position from the words: causal, the own prompt, the own continuation."""
    T = layout.row_len
    mask = torch.zeros(len(layout.prompt_lens), 1, T, T, dtype=torch.bool)
    for b, (P, lens) in enumerate(zip(layout.prompt_lens, layout.continuation_lens, strict=True)):
        owner = [0] * P + [i for i, n in enumerate(lens, start=1) for _ in range(n)]
        for q, of_q in enumerate(owner):
            for k in range(q + 1):
                mask[b, 0, q, k] = owner[k] in (0, of_q)
    return mask


def tensors(B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(T)
    shapes = [(B, H, T, D), (B, H_kv, T, D), (B, H_kv, T, D)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def segment_by_segment(
    q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor, longest_query: int, longest_keys: int,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """What the flash kernels compute: causal per segment, queries aligned with the last keys."""
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert q.dtype == k.dtype == v.dtype
    query_lens, key_lens = query_starts.diff().tolist(), key_starts.diff().tolist()
    assert (max(query_lens), max(key_lens)) == (longest_query, longest_keys)
    outs = []
    for q_s, k_s, v_s in zip(q.split(query_lens), k.split(key_lens), v.split(key_lens), strict=True):
        mask = torch.ones(len(q_s), len(k_s), dtype=torch.bool).tril(len(k_s) - len(q_s))
        q_s, k_s, v_s = (x.transpose(0, 1)[None] for x in (q_s, k_s, v_s))
        k_s, v_s = (x.repeat_interleave(q_s.shape[1] // k_s.shape[1], 1) for x in (k_s, v_s))
        outs.append(F.scaled_dot_product_attention(q_s, k_s, v_s, attn_mask=mask, scale=scale)[0])
    return torch.cat([out.transpose(0, 1) for out in outs])


@pytest.fixture
def flash_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both flash packages replaced by the function above; returns the names of those that were called."""
    called: list[str] = []

    def varlen_attn(*args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
        assert window_size == (-1, 0)
        assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
        called.append("varlen")
        return segment_by_segment(*args, scale)

    def flash_attn_varlen_func(*args: Any, softmax_scale: float, causal: bool) -> Tensor:
        assert causal
        called.append("flash")
        return segment_by_segment(*args, softmax_scale)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    fake = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)  # type: ignore[arg-type]  # a module stands in
    return called


@pytest.mark.parametrize(("prompt_lens", "continuation_lens"), LAYOUTS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("name", ["two_part", "varlen", "flash"])
def test_equals_the_dense_mask(
    name: str, prompt_lens: list[int], continuation_lens: list[list[int]], scale: float | None, flash_kernels: list[str]
) -> None:  # fmt: skip
    """Outputs and gradients of every real position, grouped heads included, to 1e-12 in float64."""
    layout = layout_of(prompt_lens, continuation_lens)
    q, k, v = tensors(len(prompt_lens), 4, 2, layout.row_len, 8, torch.float64)
    out_BTHD = KERNELS[name](q, k, v, layout, scale)
    assert set(flash_kernels) <= {name}

    mask = mask_of(layout)
    real_BT = mask.any(-1)[:, 0]
    safe = mask | torch.eye(layout.row_len, dtype=torch.bool)
    k4, v4 = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected_BTHD = F.scaled_dot_product_attention(q, k4, v4, attn_mask=safe, scale=scale).transpose(1, 2)

    weights = torch.randn(out_BTHD[real_BT].shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(out_BTHD[real_BT], expected_BTHD[real_BT], rtol=0, atol=1e-12)
    found = torch.autograd.grad((out_BTHD[real_BT] * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((expected_BTHD[real_BT] * weights).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["varlen", "flash"])
def test_flash_kernels_get_one_half_precision(name: str, flash_kernels: list[str]) -> None:
    """Under autocast queries and keys leave the rotation in float32 and values do not; these kernels take neither that nor float32."""
    layout = layout_of([4, 2], [[3], [1, 5]])
    q, k, v = tensors(2, 4, 2, layout.row_len, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = KERNELS[name](q, k, v.bfloat16(), layout, None)
    assert out.dtype == torch.bfloat16
    real_BT = mask_of(layout).any(-1)[:, 0]
    expected = two_part(q, k, v, layout, None)
    torch.testing.assert_close(out[real_BT].float(), expected[real_BT], rtol=0, atol=0.05)
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("prompt_lens", "continuation_lens"), LAYOUTS)
def test_flex_equals_the_dense_mask(prompt_lens: list[int], continuation_lens: list[list[int]]) -> None:
    """Forward only: FlexAttention has no backward pass on a CPU."""
    layout = layout_of(prompt_lens, continuation_lens)
    q, k, v = (x.detach() for x in tensors(len(prompt_lens), 4, 2, layout.row_len, 8, torch.float32))
    real_BT = mask_of(layout).any(-1)[:, 0]
    out, expected = KERNELS["flex"](q, k, v, layout, 0.3), two_part(q, k, v, layout, 0.3)
    torch.testing.assert_close(out[real_BT], expected[real_BT], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("prompt_lens", "continuation_lens"), LAYOUTS)
def test_dense_mask(prompt_lens: list[int], continuation_lens: list[list[int]]) -> None:
    """As in the words, and padding sees itself and the prompt."""
    layout = layout_of(prompt_lens, continuation_lens)
    expected = mask_of(layout)
    real_BT = expected.any(-1)[:, 0]
    assert torch.equal(layout.dense_mask[:, 0][real_BT], expected[:, 0][real_BT])
    assert bool(layout.dense_mask.any(-1).all())


def test_segments_by_hand() -> None:
    """Rows of 5: prompt 0 1, continuations 2 3 and 4; prompt 5, continuation 6 7."""
    layout = PackedLayout.of([2, 1], [[2, 1], [2]], 5)
    ragged = layout.ragged
    assert ragged.query_at_Q.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert ragged.key_at_K.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 5, 6, 7]
    assert ragged.query_starts.tolist() == [0, 2, 4, 5, 6, 8]
    assert ragged.key_starts.tolist() == [0, 2, 6, 9, 10, 13]
    assert (ragged.longest_query, ragged.longest_keys) == (2, 4)


def test_uniform_attention_by_hand() -> None:
    """Zero queries weigh all visible keys alike. Values 1 2 | 3 5 | 7 in a row of a prompt of two and two
    continuations: 1, 3/2 | (1+2+3)/3, (1+2+3+5)/4 | (1+2+7)/3."""
    layout = PackedLayout.of([2], [[2, 1]], 5)
    v = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]).view(1, 1, 5, 1)
    out = two_part(torch.zeros(1, 1, 5, 1), torch.randn(1, 1, 5, 1), v, layout, None)
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
    layout = PackedLayout.of([2], [[2, 1]], 5)
    moved = layout.on(torch.device("meta"), "varlen")
    assert moved.kernel == "varlen"
    assert moved.padded.source_BT.device.type == moved.ragged.key_at_K.device.type == "meta"
    assert moved.padded.mask_N1CK.shape == layout.padded.mask_N1CK.shape


def test_decoding_equals_repeated_keys() -> None:
    """One query per sequence: eight heads over two keys' heads, half of the cache hidden from one sequence."""
    q, k, v = (x.detach() for x in tensors(2, 8, 2, 6, 4, torch.float64))
    q = q[:, :, :1]
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., :3] = False
    out, _ = attention._forward(None, q, k, v, mask, 0.3)
    expected = F.scaled_dot_product_attention(
        q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1), attn_mask=mask, scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


def test_register_twice() -> None:
    from transformers import AttentionInterface

    attention.register()
    attention.register()
    assert attention.PACKED in AttentionInterface()


# ---------------------------------------------------------------- the choice


def test_on_a_cpu() -> None:
    """Everything but two_part needs CUDA; asking for it by name falls back and says why."""
    reason = "no flash, varlen, flex: needs a CUDA device, this is cpu"
    assert choose_kernel("auto", "cpu", torch.float32) == ("two_part", reason)
    for name in ("flash", "varlen", "flex"):
        choice = choose_kernel(name, "cpu", torch.bfloat16)
        assert choice.name == "two_part"
        assert choice.reason == f"instead of {name}: needs a CUDA device, this is cpu"


def on_cuda(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *packages: str
) -> Callable[..., Any]:
    """choose_kernel as on a CUDA device with some packages."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(packed_kernels, "find_spec", lambda name: name if name in packages else None)
    return lambda wanted, dtype=torch.bfloat16: choose_kernel(wanted, "cuda", dtype)


VARLEN = "torch.nn.attention.varlen"


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn if installed, else torch's own; in float32, or on a card before Ampere, FlexAttention; without triton two_part."""
    choose = on_cuda(monkeypatch, (9, 0), VARLEN, "triton")
    assert choose("auto").name == "varlen"
    assert choose("auto").reason == "no flash: flash-attn is not installed"
    assert choose("auto", torch.float32).name == "flex"
    assert choose("flex").name == "flex"
    assert on_cuda(monkeypatch, (9, 0), VARLEN, "triton", "flash_attn")("auto").name == "flash"
    assert on_cuda(monkeypatch, (9, 0), "triton")("auto").name == "flex"
    assert on_cuda(monkeypatch, (7, 5), VARLEN, "triton")("auto").name == "flex"
    assert on_cuda(monkeypatch, (7, 5), VARLEN)("auto").name == "two_part"


def test_a_fallback_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    choice = choose_kernel("flex", "cpu", torch.float32)
    packed_kernels.announce(choice, "flex")
    packed_kernels.announce(choose_kernel("auto", "cpu", torch.float32), "auto")
    assert (
        capsys.readouterr().err == "attention: two_part instead of flex: needs a CUDA device, this is cpu\n"
    )
