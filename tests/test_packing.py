"""One packed row per group: its layout by hand, and its numbers against a dense mask and the repeated batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    ask,
    gradients,
    noise_image,
    plain_model,
    random_ids,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import reference
from vlm_contextrl.packing import Continuation, PackedBatch, PackedRow, pack, share_starts
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor

PAD = 0


def counted(prompt: EncodedPrompt) -> Tensor:
    """Positions 0, 1, 2, ... of a text prompt."""
    return torch.arange(len(prompt)).expand(3, -1)


def text_row(prompt: list[int], *continuations: tuple[list[int], int]) -> PackedRow:
    given = tuple(Continuation(torch.tensor(ids), n_given) for ids, n_given in continuations)
    return PackedRow(EncodedPrompt(torch.tensor(prompt)), given)


# ---------------------------------------------------------------- layout by hand


def test_layout_by_hand() -> None:
    """Prompt 11 12 13 with the continuations 21 22 and 31, and prompt 14 15 with 41 42, of which 41 is given.

    row 0: 11 12 | 13 21 | 13        labels 21 22 31 at flat 2 3 4; positions 0 1 | 2 3 | 2
    row 1: 14 | 15 41 | PAD PAD      label 42 at flat 5 + 2 = 7;    positions 0 | 1 2
    """
    rows = [text_row([11, 12, 13], ([21, 22], 0), ([31], 0)), text_row([14, 15], ([41, 42], 1))]
    batch = pack(rows, counted, PAD)
    assert batch.ids_BT.tolist() == [[11, 12, 13, 21, 13], [14, 15, 41, PAD, PAD]]
    assert batch.positions_3BT[0].tolist() == [[0, 1, 2, 3, 2], [0, 1, 2, 0, 0]]
    assert batch.label_at_L.tolist() == [2, 3, 4, 7]
    assert batch.labels_L.tolist() == [21, 22, 31, 42]
    assert batch.lengths == ((2, 1), (1,))
    assert [row.n_tokens() for row in rows] == [5, 3]


def test_dense_mask_by_hand() -> None:
    """Row 0 of the case above: the second continuation (last row) sees the prompt and itself, not the first."""
    rows = [text_row([11, 12, 13], ([21, 22], 0), ([31], 0)), text_row([14, 15], ([41, 42], 1))]
    mask = pack(rows, counted, PAD).layout.dense_mask
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],  # padding: what it sees does not matter, as long as it is something
        [1, 0, 0, 1, 1],
    ]


def test_positions_go_on_after_an_image() -> None:
    """An image of 2 x 3 visual tokens after one text token takes the positions 1 to 3 (rows, columns), so the
    next token is at 4, whatever the number of tokens; a continuation goes on from the prompt's last position.
    """
    positions = torch.tensor(
        [[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]]
    )
    batch = pack([text_row(list(range(9)), ([70, 71, 72], 0), ([80], 0))], lambda _: positions, PAD)
    assert torch.equal(batch.positions_3BT[:, 0, :8], positions[:, :8])
    assert batch.positions_3BT[:, 0, 8:].tolist() == [[5, 6, 7, 5]] * 3


def test_split_gives_every_continuation_its_values() -> None:
    batch = pack([text_row([1, 2], ([3, 4], 0), ([5], 0)), text_row([1, 2], ([6, 7, 8], 2))], counted, PAD)
    (first, second), (third,) = batch.split(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0.0, 1.0], [2.0], [3.0])


# ---------------------------------------------------------------- against the dense mask and the repeated batch


def rows_of(processor: Processor) -> list[PackedRow]:
    """Prompts of one image, of two and of none, of different lengths; 1 to 6 tokens; one continuation with two
    given tokens."""

    def continue_(seed: int, *sizes: tuple[int, int]) -> tuple[Continuation, ...]:
        return tuple(Continuation(random_ids(seed + i, n), given) for i, (n, given) in enumerate(sizes))

    two = [noise_image(2, 84, 28), noise_image(3)]
    return [
        PackedRow(ask(processor, "How many?", [noise_image(1)]), continue_(10, (5, 0), (1, 0), (3, 0))),
        PackedRow(ask(processor, "Which is larger, A or B?", two), continue_(20, (2, 0), (6, 2))),
        PackedRow(ask(processor, "Why?"), continue_(30, (1, 0))),
    ]


def token_weights(rows: list[PackedRow]) -> Tensor:
    n = sum(len(c.ids) - c.n_given for row in rows for c in row.continuations)
    return torch.randn(n, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / n


def run_packed(policy: Policy, rows: list[PackedRow]) -> Tensor:
    batch = pack(rows, policy.positions, PAD)
    logps_L = policy(packed=batch)[0]
    assert logps_L is not None
    return logps_L


def run_dense(
    oracle: Policy, rows: list[PackedRow], change: Callable[[PackedBatch, Tensor], None] = lambda *_: None
) -> Tensor:
    """The same packed row through transformers' own attention with the mask as a matrix; `change` spoils it."""
    batch = pack(rows, oracle.positions, PAD)
    mask = batch.layout.dense_mask
    change(batch, mask)
    hidden = oracle.base.model(
        input_ids=batch.ids_BT,
        position_ids=batch.positions_3BT,
        attention_mask=mask,
        mm_encoder_outputs=oracle.encoder_outputs(batch.images),
        use_cache=False,
    ).last_hidden_state
    logits = oracle.base.lm_head(hidden.flatten(0, 1)[batch.label_at_L])
    logps_L: Tensor = logits.log_softmax(-1).gather(-1, batch.labels_L[:, None])[:, 0]
    return logps_L


def run_repeated(oracle: Policy, rows: list[PackedRow]) -> Tensor:
    """Prompt and pixels once per continuation, right-padded, through transformers' plain forward."""
    flat = [(row.prompt, c) for row in rows for c in row.continuations]
    prompts, continuations = [p for p, _ in flat], [c for _, c in flat]
    logps = reference.completion_logps(
        oracle.base, oracle.processor, prompts, [c.ids for c in continuations], 1.0
    )
    return torch.cat([logp[c.n_given :] for logp, c in zip(logps, continuations, strict=True)])


def policies(folder: Path, dtype: torch.dtype) -> tuple[Policy, Policy]:
    """The packed policy and an untouched transformers model with the same weights."""
    policy = tiny_policy(folder).to(dtype)
    return policy, Policy(plain_model(folder).to(dtype), policy.processor)


def with_gradients(run: Callable[..., Tensor], policy: Policy, rows: list[PackedRow]) -> Any:
    logps_L = run(policy, rows)
    (logps_L * token_weights(rows).to(logps_L.dtype)).sum().backward()
    return logps_L.detach(), gradients(policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_in_float64(
    family: str, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ways, one set of numbers: log-probs to 1e-12, gradients of every parameter to 1e-12 of the largest.

    The gradients cover the vision tower, and with Qwen3-VL its deepstack mergers.
    """
    strict_float64(monkeypatch)
    policy, oracle = policies(qwen_folders[family], torch.float64)
    rows = rows_of(policy.processor)
    packed, packed_grads = with_gradients(run_packed, policy, rows)
    dense, dense_grads = with_gradients(run_dense, oracle, rows)
    repeated, repeated_grads = with_gradients(run_repeated, oracle, rows)
    torch.testing.assert_close(packed, dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(packed, repeated, rtol=0, atol=1e-12)
    assert len(packed_grads) == sum(1 for _ in oracle.parameters())
    assert any("visual" in name for name in packed_grads)
    assert family == "qwen2_5_vl" or any("deepstack" in name for name in packed_grads)
    largest = max(float(g.abs().max()) for g in repeated_grads.values())
    assert worst_difference(packed_grads, dense_grads) < 1e-12 * largest
    assert worst_difference(packed_grads, repeated_grads) < 1e-12 * largest


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_in_float32(family: str, qwen_folders: dict[str, Path]) -> None:
    """As users run it, transformers' casts included: log-probs to 1e-5, gradients to 1e-5 of the largest."""
    policy, oracle = policies(qwen_folders[family], torch.float32)
    rows = rows_of(policy.processor)
    packed, packed_grads = with_gradients(run_packed, policy, rows)
    repeated, repeated_grads = with_gradients(run_repeated, oracle, rows)
    torch.testing.assert_close(packed, repeated, rtol=0, atol=1e-5)
    largest = max(float(g.abs().max()) for g in repeated_grads.values())
    assert worst_difference(packed_grads, repeated_grads) < 1e-5 * largest


def see_each_other(batch: PackedBatch, mask: Tensor) -> None:
    mask[:] = torch.ones_like(mask).tril()


def positions_not_restarted(batch: PackedBatch, mask: Tensor) -> None:
    T = batch.positions_3BT.shape[-1]
    batch.positions_3BT[:] = torch.maximum(batch.positions_3BT.cummax(-1).values, torch.arange(T) - 8)


def without_prompt(batch: PackedBatch, mask: Tensor) -> None:
    mask[:] = torch.eye(mask.shape[-1], dtype=torch.bool)


@pytest.mark.parametrize("spoil", [see_each_other, positions_not_restarted, without_prompt])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_layout_shows(
    family: str, spoil: Callable[[PackedBatch, Tensor], None], qwen_folders: dict[str, Path]
) -> None:
    """The comparisons above can fail: these models are sharp enough for each mistake to move log-probs."""
    policy, oracle = policies(qwen_folders[family], torch.float32)
    rows = rows_of(policy.processor)
    with torch.no_grad():
        right, wrong = run_packed(policy, rows), run_dense(oracle, rows, spoil)
    assert float((right - wrong).abs().max()) > 1e-2


def test_order_of_continuations_does_not_matter(qwen_folders: dict[str, Path]) -> None:
    """Swapping two continuations swaps their log-probs: neither sees the other."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    row = rows_of(policy.processor)[0]
    swapped = PackedRow(row.prompt, row.continuations[::-1])
    with torch.no_grad():
        first = pack([row], policy.positions, PAD).split(run_packed(policy, [row]))[0]
        second = pack([swapped], policy.positions, PAD).split(run_packed(policy, [swapped]))[0]
    for a, b in zip(first, second[::-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- prompts that start alike


def test_prompts_share_their_start_by_hand() -> None:
    """5 1 7 in front of 8 and of 9 9; another image, another token before the image (1), or nothing but the image in common: alone."""
    one, other = (ProcessedImage(key, (1, 2, 2), 1, lambda: torch.zeros(4, 1)) for key in ("one", "other"))
    prompts = [
        EncodedPrompt(torch.tensor([5, 1, 7, 8]), (one,)),
        EncodedPrompt(torch.tensor([5, 1, 7, 8]), (other,)),
        EncodedPrompt(torch.tensor([5, 1, 7, 9, 9]), (one,)),
        EncodedPrompt(torch.tensor([6, 1, 7, 8]), (one,)),
        EncodedPrompt(torch.tensor([5, 1, 4]), (one,)),
    ]
    rows, order = share_starts(prompts, 1)
    assert order == [0, 2, 3, 4, 1]
    assert [row.prompt.ids_T.tolist() for row in rows] == [[5, 1, 7], [6, 1, 7, 8], [5, 1, 4], [5, 1, 7, 8]]
    assert [[c.ids[: c.n_given].tolist() for c in row.continuations] for row in rows] == [
        [[8], [9, 9]],
        [[]],
        [[]],
        [[]],
    ]
    assert [image.key for row in rows for image in row.prompt.images] == ["one", "one", "one", "other"]


def test_texts_share_half_or_nothing() -> None:
    """2 of 4 tokens are enough, 1 of 4 is not."""
    rows, _ = share_starts(
        [EncodedPrompt(torch.tensor(ids)) for ids in ([5, 6, 7, 8], [5, 6, 9], [5, 4, 4, 4])], 1
    )
    assert [row.prompt.ids_T.tolist() for row in rows] == [[5, 6], [5, 4, 4, 4]]


def test_equal_prompts_are_one_start() -> None:
    prompt = EncodedPrompt(torch.tensor([5, 6]))
    rows, order = share_starts([prompt, prompt], 1)
    assert order == [0, 1]
    assert [c.n_given for c in rows[0].continuations] == [0, 0]
