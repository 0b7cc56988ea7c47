"""The selection probe on a stand-in for the policy whose logits are written down, so every measure is worked
out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import byte_tokenizer, image_pair, tiny_policy
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.probe import contexts, option_ids, probe, selection_prompt
from vlm_contextrl.processing import EncodedPrompt, Processor


class WrittenDown:
    """A policy that answers with given (A, B) logits and remembers what it was asked."""

    training = True

    def __init__(self, processor: Processor, logits: Sequence[tuple[float, float]]) -> None:
        self.processor = processor
        self.logits = list(logits)
        self.asked: list[EncodedPrompt] = []

    def option_logits(
        self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int], budget_tokens: int
    ) -> Tensor:
        assert not self.training
        assert option_ids == [self.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
        start = len(self.asked)
        self.asked += prompts
        return torch.tensor(self.logits[start : len(self.asked)])

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode


@pytest.fixture(scope="module")
def processor(qwen_folders: dict[str, Path]) -> Processor:
    return tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False).processor


def text_pair(n: int, confounder_answer: str | None = None) -> ContrastivePair:
    return ContrastivePair(
        id=f"t{n}", query="Which?", answer="7", confounder_answer=confounder_answer, context="It is 7.",
        confounder="It is 8.", provenance={"licence": "CC0-1.0"},
    )  # fmt: skip


PAIRS = [image_pair(0), image_pair(1), image_pair(2, None), image_pair(3, None)]
# Per pair: context first, context second, context twice in both orders, then the reverse pair's context first and second.
LOGITS = [
    (2.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 3.0),  # right everywhere: margins 2, 1; reverse 1, 3
    (3.0, 0.0), (3.0, 0.0), (3.0, 0.0), (3.0, 0.0), (3.0, 0.0), (3.0, 0.0),  # always A: margins 3, -3; reverse 3, -3
    (1.0, 1.0), (0.0, 0.0), (4.0, 4.0), (4.0, 4.0),  # ties: margins 0, 0
    (0.0, 1.0), (1.0, 0.0), (0.0, 2.0), (0.0, 2.0),  # wrong everywhere: margins -1, -1
]  # fmt: skip


def measured(processor: Processor, **settings: Any) -> tuple[dict[str, Any], WrittenDown]:
    policy = WrittenDown(processor, LOGITS)
    return probe(policy, PAIRS, **settings), policy  # type: ignore[arg-type]


def test_measures_by_hand(processor: Processor) -> None:
    """Shares right per pair: 1, 1/2, 1/2 (a tie counts half), 0, mean 1/2. Right in both orders: the first of
    four. In both directions too: the first of the two that have one. Margins averaged over orders: 1.5, 0, 0,
    -1, mean 0.125. A chosen: 1/2, 1, 1/2 (a tie), and for the last, whose margins are -1 and -1, B then A: 1/2;
    mean 0.625, minus one half 0.125. Context twice: one half, whatever the logits.
    """
    found, _ = measured(processor)
    values = {name: (m["value"], m["n"]) for name, m in found.items() if name != "per_pair"}
    assert values == {
        "selection_accuracy": (0.5, 4),
        "order_consistent_accuracy": (0.25, 4),
        "group_accuracy": (0.5, 2),
        "mean_margin": (0.125, 4),
        "position_bias": (0.125, 4),
        "same_image_control": (0.5, 4),
    }
    control = found["same_image_control"]
    assert (control["low"], control["high"]) == (0.5, 0.5)


def test_margins_of_every_pair(processor: Processor) -> None:
    per_pair = measured(processor)[0]["per_pair"]
    assert [p["id"] for p in per_pair] == ["p0", "p1", "p2", "p3"]
    assert [p["margins"] for p in per_pair] == [[2.0, 1.0], [3.0, -3.0], [0.0, 0.0], [-1.0, -1.0]]
    assert [p["reverse_margins"] for p in per_pair] == [[1.0, 3.0], [3.0, -3.0], None, None]
    assert [p["control_margins"] for p in per_pair] == [[0.5, -0.5], [3.0, -3.0], [0.0, 0.0], [-2.0, 2.0]]


def test_what_is_shown(processor: Processor) -> None:
    """Both orders, the context twice, and the reverse pair with its own answer in both orders."""
    _, policy = measured(processor)
    good, bad = (image.key for image in contexts(processor, PAIRS[0]))  # type: ignore[union-attr]
    shown = [tuple(image.key for image in prompt.images) for prompt in policy.asked[:6]]
    assert shown == [(good, bad), (bad, good), (good, good), (good, good), (bad, good), (good, bad)]
    texts = [processor.decode(prompt.ids_T.tolist()) for prompt in policy.asked[:6]]
    assert ["Answer: 7\n" in text for text in texts] == [True, True, True, True, False, False]
    assert ["Answer: 8\n" in text for text in texts] == [False, False, False, False, True, True]


@pytest.mark.parametrize("batch_pairs", [1, 3, 100])
def test_batches_change_nothing(processor: Processor, batch_pairs: int) -> None:
    steps: list[int] = []
    found, policy = measured(processor, batch_pairs=batch_pairs, progress=steps.append)
    assert found == measured(processor)[0]
    assert sum(steps) == len(PAIRS)
    assert policy.training


def test_a_constant_preference_is_a_bias_and_no_skill(processor: Processor) -> None:
    """Always B by 4 logits: accuracy 1/2, no pair right in both orders, bias -1/2, mean margin 0."""
    pairs = [image_pair(n, None) for n in range(3)]
    found = probe(WrittenDown(processor, [(0.0, 4.0)] * 12), pairs)  # type: ignore[arg-type]
    values = [found[k]["value"] for k in ("selection_accuracy", "order_consistent_accuracy", "position_bias")]
    assert values == [0.5, 0.0, -0.5]
    assert found["mean_margin"]["value"] == 0.0
    assert found["group_accuracy"] == {"value": None, "n": 0, "low": None, "high": None}


def test_text_pairs_continue_the_opened_answer(processor: Processor) -> None:
    """Letters follow "The correct option is"; with one token per byte they are the bare ones."""
    pair = text_pair(0)
    prompt = selection_prompt(processor, pair, contexts(processor, pair))
    assert prompt.images == ()
    text = processor.tokenizer.decode(prompt.ids_T)
    assert "Context A:\nIt is 7.\nContext B:\nIt is 8." in text
    assert text.endswith("The correct option is")
    found = probe(WrittenDown(processor, [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0)]), [pair])  # type: ignore[arg-type]
    assert found["selection_accuracy"]["value"] == 1.0


def test_images_and_texts_do_not_mix(processor: Processor) -> None:
    """Their option letters may be different tokens, so one batch of both would be scored wrongly."""
    with pytest.raises(DataError, match="pairs p0 and t1: one has images, the other texts"):
        option_ids(processor, [image_pair(0), text_pair(1)])


def test_on_a_model_the_control_is_exactly_one_half(qwen_folders: dict[str, Path]) -> None:
    """Real logits of a random model, and its own training mode is given back."""
    for family, folder in qwen_folders.items():
        policy = tiny_policy(folder)
        found = probe(policy, [image_pair(n) for n in range(5)])
        control = found["same_image_control"]
        assert (control["value"], control["low"], control["high"]) == (0.5, 0.5, 0.5), family
        assert policy.training
        assert len({tuple(p["margins"]) for p in found["per_pair"]}) == 5


def test_option_letters_are_tokens() -> None:
    ids = byte_tokenizer().convert_tokens_to_ids(["A", "B"])
    assert len(set(ids)) == 2
