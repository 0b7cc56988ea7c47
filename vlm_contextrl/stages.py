"""The stages of a run as the trainer goes through them: their terms, their steps, and which data an update of theirs takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_contextrl.config import OptimSettings, RunConfig
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.perception import PerceptionObjective
from vlm_contextrl.term_settings import (
    PerceptionTerm,
    PolicyTerm,
    SelectionRewardTerm,
    SelectionTerm,
    SupervisedTerm,
)
from vlm_contextrl.term_settings import Stage as StageSettings
from vlm_contextrl.terms import (
    PolicyObjective,
    SelectionObjective,
    SelectionRewardObjective,
    SupervisedObjective,
    Term,
)
from vlm_contextrl.training_rows import OtherContexts


@dataclass(frozen=True)
class Stage:
    """first: number of its first step in the run, which counts from 1. Per update: the pairs its terms look at; the selection prompts
    that are sampled, and whether their direction is drawn. A stage that does not sample makes one update per step.
    """

    terms: list[Term]
    first: int
    steps: int
    learning_rate: float
    samples: bool
    pairs_per_update: int
    selections_per_update: int
    reverse_selections: bool

    @property
    def last(self) -> int:
        return self.first + self.steps - 1

    def learning_rate_at(self, step: int, optim: OptimSettings) -> float:
        """Warm-up and schedule of a stage begin with it."""
        own = step - self.first + 1
        factor = min(1.0, own / optim.warmup_steps) if optim.warmup_steps else 1.0
        if optim.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * (own - 1) / self.steps))
        return self.learning_rate * factor


def build_stages(
    config: RunConfig, n_questions: int, n_pairs: int, others: OtherContexts | None
) -> list[Stage]:
    """The stages in their order. others: see `other_contexts`."""
    stages: list[Stage] = []
    for settings in config.stages:
        first = stages[-1].last + 1 if stages else 1
        stages.append(_stage(config, settings, first, n_questions, n_pairs, others))
    return stages


def other_contexts(config: RunConfig, pairs: Sequence[ContrastivePair]) -> OtherContexts | None:
    """Where a choice among more contexts than a pair has takes the others; None when there is no such choice."""
    terms = [term for stage in config.stages for term in stage.objective]
    needed = any(isinstance(term, SelectionTerm) and term.contexts > 2 for term in terms)
    return OtherContexts(pairs, config.seed) if needed else None


def _stage(
    config: RunConfig,
    settings: StageSettings,
    first: int,
    n_questions: int,
    n_pairs: int,
    others: OtherContexts | None,
) -> Stage:
    samples = settings.policy is not None
    rows, per_step = (
        (n_questions, config.rollout.prompts_per_step) if samples else (n_pairs, settings.pairs_per_update)
    )
    asked = next((t for t in settings.objective if isinstance(t, SelectionRewardTerm)), None)
    return Stage(
        terms=[_term(config, settings, term, others) for term in settings.objective],
        first=first,
        steps=settings.steps or math.ceil((settings.epochs or 0) * rows / per_step),
        learning_rate=settings.learning_rate or config.optim.learning_rate,
        samples=samples,
        pairs_per_update=settings.pairs_per_update,
        selections_per_update=max(1, round(asked.ratio * config.optim.prompts_per_update)) if asked else 0,
        reverse_selections=bool(asked and asked.reverse),
    )


def _term(config: RunConfig, stage: StageSettings, settings: Any, others: OtherContexts | None) -> Term:
    rollout = config.rollout
    if isinstance(settings, PolicyTerm):
        return PolicyObjective(settings, rollout.max_new_tokens, rollout.temperature)
    if isinstance(settings, SelectionRewardTerm):
        assert stage.policy is not None  # checked by the record
        return SelectionRewardObjective(settings, stage.policy, rollout.max_new_tokens, rollout.temperature)
    if isinstance(settings, PerceptionTerm):
        return PerceptionObjective(settings, rollout.temperature)
    if isinstance(settings, SupervisedTerm):
        return SupervisedObjective(settings)
    assert isinstance(settings, SelectionTerm)
    return SelectionObjective(settings, others)
