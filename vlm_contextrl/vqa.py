"""Greedy answers to question rows, scored by the extractor that rewards use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm_contextrl.answers import score_answer
from vlm_contextrl.packing import under_budget
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.prompts import Style, vqa_messages
from vlm_contextrl.rollout import sample


@dataclass(frozen=True)
class Answered:
    """One question with the model's completion."""

    id: str
    domain: str
    has_options: bool
    completion: str
    correct: bool


def question_prompt(processor: Processor, row: QuestionRow, style: Style) -> EncodedPrompt:
    """The prompt of one question row, its images processed."""
    images = [
        processor.process_image(image, f"row {row.id}, image {i}") for i, image in enumerate(row.images)
    ]
    return processor.encode(
        vqa_messages(row.query, len(images), row.options, row.context_text, style), images
    )


def answer_questions(
    policy: Policy,
    rows: Sequence[QuestionRow],
    *,
    style: Style,
    max_new_tokens: int,
    batch_rows: int = 64,
    budget_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Answer every row greedily. batch_rows: decoded together; budget_tokens: of their prompts together."""
    was_training = policy.training
    policy.eval()
    answered: list[Answered] = []
    for start in range(0, len(rows), batch_rows):
        batch = rows[start : start + batch_rows]
        prompts = [question_prompt(policy.processor, row, style) for row in batch]
        groups = [
            group
            for some in under_budget(prompts, len, budget_tokens)
            for group in sample(policy, some, 1, max_new_tokens=max_new_tokens, temperature=0)
        ]
        for row, (completion,) in zip(batch, groups, strict=True):
            text = policy.processor.decode(completion.ids.tolist())
            right = score_answer(text, row.answer, row.answer_type, row.options)
            answered.append(Answered(row.id, row.domain, bool(row.options), text, right))
        if progress:
            progress(len(batch))
    policy.train(was_training)
    return answered
