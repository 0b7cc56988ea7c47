"""Pairs that hold what they promise: cheap exact checks of the pixels first (exact_checks.py), then a model that looks at both sides.

A model is asked the question about the context and about the confounder, k times each, without being told the answer. A pair passes when
the majority gives the answer A on the context and something else on the confounder, and when at least the share `agreement` of the samples
does so on either side. Whether it gave the known answer of the confounder there is recorded, not asked for.

What was measured stands in the `verdicts` of every pair that is kept, under `exact` and `verifier`, with the bounds and the version that
it was judged by. Reject codes: unchanged, changed_everything, wrong_on_context, right_on_confounder, no_agreement.

Left out: correcting labels, and a verifier that compares both images in one prompt (that is what a policy learns, see `probe.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from vlm_contextrl import __version__
from vlm_contextrl.answers import extract_answer, is_correct
from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.assistants import (
    Answers,
    Assistant,
    AssistantSettings,
    Prompt,
    Refusal,
    assistant,
)
from vlm_contextrl.data_recipes.curate.exact_checks import ExactBounds, exact_checks
from vlm_contextrl.data_recipes.inputs import pair_input
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome, run_step
from vlm_contextrl.pairs import Context, ContrastivePair, EncodedImage, Row
from vlm_contextrl.prompts import Style, vqa_messages

RECIPE = "verify"

__all__ = [
    "ExactBounds", "Verifier", "VerifierSettings", "VerifyConfig", "VerifyStep", "exact_checks", "question_prompt", "run",
]  # fmt: skip


class VerifierSettings(Record):
    """Who looks at the pairs, and how sure they must be."""

    assistant: AssistantSettings = Field(description="who answers")
    samples: int = Field(
        1, ge=1, description="k: answers to each side of a pair; more than one needs a temperature"
    )
    agreement: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="share of the samples that must give A on the context, and not A on the confounder",
    )
    prompt_style: Style = Field("direct", description="how the answer is asked for (prompts.py)")

    @model_validator(mode="after")
    def _samples_differ(self) -> VerifierSettings:
        self.assistant.check_samples(self.samples)
        return self


@dataclass
class Verifier:
    """A model's judgement of pairs. Picklable; the model is loaded where it is first asked."""

    settings: VerifierSettings

    @cached_property
    def assistant(self) -> Assistant:
        """Who is asked."""
        return assistant(self.settings.assistant)

    def judge(self, pairs: Sequence[ContrastivePair]) -> list[tuple[dict[str, Any], str]]:
        """For each pair what was said, for `verdicts["verifier"]`, and why it is refused, "" when it is not."""
        if not pairs:
            return []
        style = self.settings.prompt_style
        prompts = [
            question_prompt(f"{pair.id}:{side}", pair, [shown], style)
            for pair in pairs
            for side, shown in (("context", pair.context), ("confounder", pair.confounder))
        ]
        answers = self.assistant.ask(prompts, self.settings.samples)
        return [self._judged(pair, *answers[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]

    def _judged(
        self, pair: ContrastivePair, on_context: Answers, on_confounder: Answers
    ) -> tuple[dict[str, Any], str]:
        settings, other = self.settings, pair.confounder_answer
        if isinstance(on_context, Refusal):
            return {}, f"verifier_refused: {on_context.why} (asked with the context), expected an answer"
        if isinstance(on_confounder, Refusal):
            return (
                {},
                f"verifier_refused: {on_confounder.why} (asked with the confounder), expected an answer",
            )
        said = [
            [extract_answer(text, pair.answer_type, pair.options) for text in texts]
            for texts in (on_context, on_confounder)
        ]

        def share(answers: Sequence[str | None], answer: str) -> float:
            right = [is_correct(found, answer, pair.answer_type, pair.options) for found in answers]
            return sum(right) / len(right)

        context_share, confounder_share = (share(answers, pair.answer) for answers in said)
        verdict = {
            "name": settings.assistant.name,
            "revision": self.assistant.revision,
            "samples": settings.samples,
            "temperature": settings.assistant.temperature,
            "seed": settings.assistant.seed,
            "prompt_style": settings.prompt_style,
            "agreement": settings.agreement,
            "context_share": context_share,
            "confounder_share": confounder_share,
            "confounder_answer_share": None if other is None else share(said[1], other),
            "context_answers": said[0],
            "confounder_answers": said[1],
            "version": __version__,
        }
        found = (
            f"gave {pair.answer!r} in {context_share:.3g} of the answers on the context and {confounder_share:.3g} on the confounder "
            f"({_heard(said[0])}; {_heard(said[1])})"
        )
        if context_share <= 0.5:
            return verdict, f"wrong_on_context: {found}, expected {pair.answer!r} on the context"
        if confounder_share >= 0.5:
            return verdict, f"right_on_confounder: {found}, expected another answer on the confounder"
        if min(context_share, 1 - confounder_share) < settings.agreement - 1e-9:
            return (
                verdict,
                f"no_agreement: {found}, expected {settings.agreement:g} of the samples on either side",
            )
        return verdict, ""


def _heard(answers: Sequence[str | None]) -> str:
    return ", ".join(f"{answer!r:.40}" if answer else "no answer" for answer in dict.fromkeys(answers))


def question_prompt(key: str, row: Row, shown: Sequence[Context], style: Style) -> Prompt:
    """A row's question about these images and texts, worded as in training and evaluation."""
    images = tuple(context for context in shown if isinstance(context, EncodedImage))
    text = "\n\n".join(context for context in shown if isinstance(context, str))
    (message,) = vqa_messages(row.query, len(images), row.options, text, style)
    return Prompt(key, message["content"][-1]["text"], images)


class VerifyConfig(Record):
    """What `vlm-contextrl pairs verify` checks."""

    bounds: ExactBounds | None = Field(ExactBounds(), description="exact checks of the pixels; null for none")
    verifier: VerifierSettings | None = Field(
        None, description="a model that answers on both sides; null for none"
    )
    licence: str = Field("", description="licence of rows that name none")
    batch_rows: int = Field(
        64, ge=1, description="pairs checked together; a killed run repeats at most these per worker"
    )

    @model_validator(mode="after")
    def _checks_something(self) -> VerifyConfig:
        if self.bounds is None and self.verifier is None:
            raise ValueError("bounds and verifier are both null, so nothing would be checked; set one")
        return self


class VerifyStep:
    """Pairs in, the same pairs with verdicts out. The model is asked only about those that pass the exact checks."""

    def __init__(self, config: VerifyConfig) -> None:
        self.bounds = config.bounds
        self.verifier = Verifier(config.verifier) if config.verifier else None

    def __call__(self, pairs: Sequence[ContrastivePair]) -> list[Outcome]:
        """One outcome per pair."""
        reasons = [""] * len(pairs)
        judged = list(pairs)
        if self.bounds:
            for i, pair in enumerate(pairs):
                measured, reasons[i] = exact_checks(pair, self.bounds)
                judged[i] = _with_verdict(pair, "exact", measured)
        if self.verifier:
            passed = [i for i, reason in enumerate(reasons) if not reason]
            for i, (said, reason) in zip(
                passed, self.verifier.judge([pairs[i] for i in passed]), strict=True
            ):
                judged[i], reasons[i] = _with_verdict(judged[i], "verifier", said), reason
        return [
            Outcome(pair.id, () if reason else (pair,), reason)
            for pair, reason in zip(judged, reasons, strict=True)
        ]


def _with_verdict(pair: ContrastivePair, name: str, verdict: dict[str, Any]) -> ContrastivePair:
    return replace(pair, verdicts={**pair.verdicts, name: verdict}) if verdict else pair


def run(config: VerifyConfig, input: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Write the pairs that pass to `out`, the others with their reasons to its rejects, and return the summary."""
    given = pair_input(input, config.licence)
    return run_step(
        VerifyStep(config),
        given.rows,
        out,
        recipe=RECIPE,
        config=config.model_dump(mode="json"),
        input_hash=given.content_hash,
        batch_size=config.batch_rows,
        engine=engine,
        refused=given.refused,
        asked=[config.verifier.assistant.content] if config.verifier else [],
    )
