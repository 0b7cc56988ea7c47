"""Greedy answers: the model's text, the scorer of the rewards, any batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import question, tiny_policy
from vlm_contextrl.answers import score_answer
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import EncodedImage, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.vqa import answer_questions, question_prompt


def says(policy: Policy, text: str) -> None:
    """Make the policy write `text` and end, whatever it is asked: it counts the tokens it was asked for."""
    tokenizer = policy.processor.tokenizer
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    calls: list[int] = []
    original = policy.next_logits

    def next_logits(*args: Any) -> Tensor:
        logits = torch.zeros_like(original(*args))
        logits[:, ids[len(calls) % len(ids)]] = 10.0
        calls.append(1)
        return logits

    policy.next_logits = next_logits  # type: ignore[method-assign]  # in place of the model


@pytest.fixture
def policy(qwen_folders: dict[str, Path]) -> Policy:
    return tiny_policy(qwen_folders["qwen2_5_vl"])


def test_answers_are_scored(policy: Policy) -> None:
    """The model always says 7: right for two of three rows."""
    says(policy, "7")
    rows = [question(0, 1, answer="7"), question(1, 2, answer="8"), question(2, 0, answer="7")]
    steps: list[int] = []
    found = answer_questions(policy, rows, style="direct", max_new_tokens=4, progress=steps.append)
    assert [(a.id, a.completion, a.correct) for a in found] == [
        ("q0", "7", True), ("q1", "7", False), ("q2", "7", True),
    ]  # fmt: skip
    assert steps == [3]
    assert policy.training


@pytest.mark.parametrize("batch_rows", [1, 2])
def test_batches_change_nothing(policy: Policy, batch_rows: int) -> None:
    rows = [question(n, n % 3) for n in range(5)]
    together = answer_questions(policy, rows, style="direct", max_new_tokens=5)
    assert answer_questions(policy, rows, style="direct", max_new_tokens=5, batch_rows=batch_rows) == together
    for answered, row in zip(together, rows, strict=True):
        assert answered.correct == score_answer(answered.completion, row.answer, row.answer_type, row.options)


def test_prompt_holds_images_options_and_style(policy: Policy) -> None:
    row = QuestionRow(
        id="q", query="Which?", answer="A", answer_type="choice", options=("red", "blue"), images=question(0, 2).images,
    )  # fmt: skip
    prompt = question_prompt(policy.processor, row, "reasoning")
    text = policy.processor.tokenizer.decode(prompt.ids_T)
    assert "Which?\nA. red\nB. blue\nThink step by step" in text
    assert text.count("<|vision_start|>") == len(prompt.images) == 2


def test_a_bad_image_names_its_row(policy: Policy) -> None:
    rows = [question(0), QuestionRow(id="q9", query="?", answer="7", images=(EncodedImage(b"no image"),))]
    with pytest.raises(DataError, match="^row q9, image 0: "):
        answer_questions(policy, rows, style="direct", max_new_tokens=2)


def test_no_rows(policy: Policy) -> None:
    assert answer_questions(policy, [], style="direct", max_new_tokens=2) == []
