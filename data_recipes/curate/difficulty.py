"""Rows of the right difficulty for a model: what it gets right neither always nor never.

Questions: the pass rate, the share of k sampled answers that are right. A group whose completions are all right or all wrong has no
advantage and teaches nothing, so the default band leaves out both ends.

Pairs: the margin of the selection prompt, l(context) - l(confounder) of the option logits, averaged over both option orders, so that a
preference for a letter cancels. The default band is where the selection loss has a gradient: it is flat outside its clip, 5 in arXiv
2606.17053. Margins need the model itself, an endpoint does not give them.

Figures stand in `verdicts["difficulty"]` of the rows that are kept. Reject codes: too_easy, too_hard.

Left out: difficulty relative to other rows (quantiles); that is a choice to make after looking at the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from vlm_contextrl import __version__
from vlm_contextrl.answers import score_answer
from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.assistants import (
    Assistant,
    AssistantSettings,
    LocalAssistant,
    Refusal,
    assistant,
)
from vlm_contextrl.data_recipes.curate.verify import question_prompt
from vlm_contextrl.data_recipes.inputs import row_input
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome, run_step
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.pairs import ContrastivePair, QuestionRow, Row
from vlm_contextrl.prompts import Style

RECIPE = "difficulty"


class SampledAssistant(AssistantSettings):
    """Who is asked, at the temperature of rollouts."""

    temperature: float = Field(1.0, ge=0, description="of sampled answers; more than one needs more than 0")


class Band(Record):
    """What is kept, both ends included."""

    low: float = Field(description="less is too hard")
    high: float = Field(description="more is too easy")

    @model_validator(mode="after")
    def _ordered(self) -> Band:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is over high {self.high:g}")
        return self

    def reason(self, value: float, found: str) -> str:
        """Why a row with this value is not kept, "" when it is."""
        if self.low <= value <= self.high:
            return ""
        return f"{'too_easy' if value > self.high else 'too_hard'}: {found}, expected {self.low:g} to {self.high:g}"


class DifficultyConfig(Record):
    """What `vlm-contextrl pairs difficulty` keeps."""

    assistant: SampledAssistant = Field(description="the model that rows should suit; pairs need a local one")
    samples: int = Field(8, ge=1, description="k: answers to each question")
    pass_rate: Band = Field(Band(low=0.1, high=0.9), description="share of right answers to a question")
    margin: Band = Field(
        Band(low=-5.0, high=5.0), description="mean margin of a pair over both option orders, in nats"
    )
    prompt_style: Style = Field("direct", description="how answers are asked for (prompts.py)")
    budget_tokens: int = Field(16384, ge=1, description="prompt tokens of one forward over pairs")
    licence: str = Field("", description="licence of rows that name none")
    batch_rows: int = Field(
        64, ge=1, description="rows rated together; a killed run repeats at most these per worker"
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> DifficultyConfig:
        self.assistant.check_samples(self.samples)
        if not 0 <= self.pass_rate.low <= self.pass_rate.high <= 1:
            raise ValueError(
                f"pass_rate is {self.pass_rate.low:g} to {self.pass_rate.high:g}, expected shares in 0 to 1"
            )
        return self


@dataclass
class RateQuestions:
    """Question rows in, those within the band out, with their pass rate. Picklable; the model is loaded where it is first asked."""

    config: DifficultyConfig

    @cached_property
    def assistant(self) -> Assistant:
        """Who is asked."""
        return assistant(self.config.assistant)

    def __call__(self, rows: Sequence[QuestionRow]) -> list[Outcome]:
        """One outcome per row."""
        config = self.config
        prompts = [
            question_prompt(row.id, row, [*row.images, row.context_text], config.prompt_style) for row in rows
        ]
        outcomes = []
        for row, answers in zip(rows, self.assistant.ask(prompts, config.samples), strict=True):
            if isinstance(answers, Refusal):
                outcomes.append(Outcome(row.id, (), f"assistant_refused: {answers.why}, expected an answer"))
                continue
            right = sum(score_answer(text, row.answer, row.answer_type, row.options) for text in answers)
            rate = right / len(answers)
            reason = config.pass_rate.reason(rate, f"pass rate {rate:.3g} ({right} of {len(answers)})")
            figures = {
                "revision": self.assistant.revision,
                "pass_rate": rate,
                "samples": len(answers),
                "temperature": config.assistant.temperature,
                "prompt_style": config.prompt_style,
            }
            outcomes.append(_outcome(config, row, reason, figures))
        return outcomes


@dataclass
class RatePairs:
    """Pairs in, those within the band out, with their margins in both option orders."""

    config: DifficultyConfig

    @cached_property
    def model(self) -> LocalAssistant:
        """The current policy."""
        return LocalAssistant(self.config.assistant)

    def __call__(self, pairs: Sequence[ContrastivePair]) -> list[Outcome]:
        """One outcome per pair. Raises DataError when pairs of images and of texts are mixed."""
        band, outcomes = self.config.margin, []
        for pair, orders in zip(pairs, self._margins(pairs), strict=True):
            margin = sum(orders) / 2
            found = f"margin {margin:.4g} ({orders[0]:.4g} with the context first, {orders[1]:.4g} second)"
            figures = {
                "revision": self.model.revision,
                "margin": round(margin, 4),
                "margins": [round(m, 4) for m in orders],
            }
            outcomes.append(_outcome(self.config, pair, band.reason(margin, found), figures))
        return outcomes

    def _margins(self, pairs: Sequence[ContrastivePair]) -> list[tuple[float, float]]:
        """Margin of each pair with the context first and second."""
        import torch

        from vlm_contextrl.models import autocast
        from vlm_contextrl.probe import contexts, option_ids, selection_prompt

        policy, settings = self.model.policy, self.config.assistant.model
        assert settings is not None
        prompts = []
        for pair in pairs:
            good, bad = contexts(policy.processor, pair)
            prompts += [
                selection_prompt(policy.processor, pair, shown) for shown in ((good, bad), (bad, good))
            ]
        with torch.no_grad(), autocast(settings, policy.device):
            letters = option_ids(policy.processor, pairs)
            logits = policy.option_logits(prompts, letters, self.config.budget_tokens).tolist()
        first, second = logits[::2], logits[1::2]
        return [(f[0] - f[1], s[1] - s[0]) for f, s in zip(first, second, strict=True)]


def _outcome(config: DifficultyConfig, row: Row, reason: str, figures: dict[str, Any]) -> Outcome:
    if reason:
        return Outcome(row.id, (), reason)
    asked = config.assistant
    verdict = {"name": asked.name, "seed": asked.seed, **figures, "version": __version__}
    return Outcome(row.id, (replace(row, verdicts={**row.verdicts, "difficulty": verdict}),))


def run(config: DifficultyConfig, input: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Write the rows within the band to `out`, the others with their figure to its rejects, and return the summary."""
    given = row_input(input, config.licence)
    step: Any = RateQuestions(config)
    if isinstance(given.rows[0], ContrastivePair):
        if config.assistant.model is None:
            raise ConfigError(
                f"{input} holds pairs, whose margins need the logits of a local model; set assistant.model.path instead of "
                f"{config.assistant.name}"
            )
        step = RatePairs(config)
    return run_step(
        step,
        given.rows,
        out,
        recipe=RECIPE,
        config=config.model_dump(mode="json"),
        input_hash=given.content_hash,
        batch_size=config.batch_rows,
        engine=engine,
        refused=given.refused,
        asked=[config.assistant.content],
    )
