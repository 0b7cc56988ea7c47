"""Rollouts of a step: completions are sampled, scored, and compared within their group.

Shapes: P prompts of the step over all ranks, G completions per prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import torch

from vlm_contextrl.asked_pairs import Asked
from vlm_contextrl.config import RunConfig
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.objectives.policy import VARIANTS
from vlm_contextrl.objectives.selection_reward import selection_rewards
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.rewards import combined_rewards, load_reward
from vlm_contextrl.rollout import Completion, Engine
from vlm_contextrl.sharding import gathered
from vlm_contextrl.stages import Stage
from vlm_contextrl.terms import Group
from vlm_contextrl.training_data import TrainingData
from vlm_contextrl.training_rows import selection_question
from vlm_contextrl.vqa import question_prompt

Item = TypeVar("Item")


class _Scored(NamedTuple):
    """What other ranks need to know of a group."""

    rewards: list[float]
    parts: dict[str, list[float]]
    n_tokens: list[int]
    truncated: list[bool]


_Score = Callable[
    [Mapping[int, QuestionRow], Mapping[int, list[Completion]], Mapping[int, list[str]]], dict[int, _Scored]
]


class UpdateGroups(NamedTuple):
    """This rank's groups of one optimizer update."""

    questions: list[Group]
    selections: list[Group]  # sampled answers to selection prompts


class ScoredRollouts:
    """Makes the groups of a step from its question rows."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        ranks: Ranks,
        engine: Engine,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.policy, self.ranks, self.engine, self.autocast = policy, ranks, engine, autocast
        self.seed, self.settings, self.style = config.seed, config.rollout, config.data.prompt_style
        self.per_update = config.optim.prompts_per_update
        term = config.policy_term
        self.rewards = [
            (name, load_reward(name, self.style), weight) for name, weight in term.rewards.items()
        ]
        self.advantage_scale = term.advantage_scale or VARIANTS[term.variant].advantage_scale

    def of_step(
        self, step: int, data: TrainingData, stage: Stage
    ) -> tuple[list[UpdateGroups], dict[str, float]]:
        """The groups of every update of a step, and metrics over those of all ranks. Without sampling there is one update, of no groups."""
        if not stage.samples:
            return [UpdateGroups([], [])], {}
        n, part = self.settings.prompts_per_step // self.per_update, self.ranks.part
        rows = data.questions(n, self.per_update, part)
        groups, metrics = self(step, _together(rows))
        of_questions = [[groups[p] for p in update] for update in rows]
        if not stage.selections_per_update:
            return [UpdateGroups(each, []) for each in of_questions], metrics
        asked = data.selections(
            step,
            n,
            stage.selections_per_update,
            part,
            self.policy.processor,
            reverse=stage.reverse_selections,
        )
        groups, more = self.selections(step, _together(asked))
        of_selections = [[groups[p] for p in update] for update in asked]
        return [*map(UpdateGroups, of_questions, of_selections)], metrics | more

    def __call__(
        self, step: int, rows: Mapping[int, QuestionRow]
    ) -> tuple[dict[int, Group], dict[str, float]]:
        """Groups of this rank's rows, and metrics over those of all ranks. Rows are numbered within the step, over all ranks."""
        prompts = {p: question_prompt(self.policy.processor, row, self.style) for p, row in rows.items()}
        return self._groups("rollout", step, rows, prompts, self._score)

    def selections(self, step: int, asked: Mapping[int, Asked]) -> tuple[dict[int, Group], dict[str, float]]:
        """The same of selection prompts, rewarded by 1 for the right letter (objectives/selection_reward.py)."""
        rows = {p: selection_question(each.pair, each.support) for p, each in asked.items()}
        prompts = {p: each.prompt for p, each in asked.items()}
        groups, metrics = self._groups("selection", step, rows, prompts, self._score_selections)
        return groups, {f"selection_{name}": value for name, value in metrics.items()}

    def _groups(
        self,
        stream: str,
        step: int,
        rows: Mapping[int, QuestionRow],
        prompts: Mapping[int, EncodedPrompt],
        score: _Score,
    ) -> tuple[dict[int, Group], dict[str, float]]:
        self.policy.eval()
        with gathered(self.policy), self.autocast():
            self.engine.sync(self.policy)
            completions = self.engine.sample(
                self.policy,
                list(prompts.values()),
                self.settings.completions_per_prompt,
                max_new_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature,
                seeds=[_seed(self.seed, stream, step, p) for p in prompts],
            )
        sampled = dict(zip(prompts, completions, strict=True))
        self.policy.train()
        texts = {
            p: [self.policy.processor.decode(c.ids.tolist()) for c in group] for p, group in sampled.items()
        }
        scored = {
            p: found for part in self.ranks.gather(score(rows, sampled, texts)) for p, found in part.items()
        }
        scored = dict(sorted(scored.items()))
        rewards_PG = torch.tensor([found.rewards for found in scored.values()])
        advantages_PG, metrics = group_advantages(rewards_PG, self.advantage_scale)
        advantages = dict(zip(scored, advantages_PG, strict=True))
        groups = {
            p: Group(row, prompts[p], sampled[p], texts[p], scored[p].rewards, advantages[p])
            for p, row in rows.items()
        }
        return groups, {name: float(value) for name, value in metrics.items()} | _metrics(
            list(scored.values())
        )

    def _score(
        self,
        rows: Mapping[int, QuestionRow],
        sampled: Mapping[int, list[Completion]],
        texts: Mapping[int, list[str]],
    ) -> dict[int, _Scored]:
        if not rows:
            return {}
        flat_rows: list[Mapping[str, Any]] = [
            {name: getattr(row, name) for name in ("id", "query", "answer", "answer_type", "options")}
            for p, row in rows.items()
            for _ in texts[p]
        ]
        totals, parts = combined_rewards(self.rewards, [t for p in rows for t in texts[p]], flat_rows)
        G = self.settings.completions_per_prompt
        found = {}
        for number, p in enumerate(rows):
            own = slice(number * G, (number + 1) * G)
            found[p] = _Scored(
                totals[own],
                {name: values[own] for name, values in parts.items()},
                [len(c.ids) for c in sampled[p]],
                [c.truncated for c in sampled[p]],
            )
        return found

    def _score_selections(
        self,
        rows: Mapping[int, QuestionRow],
        sampled: Mapping[int, list[Completion]],
        texts: Mapping[int, list[str]],
    ) -> dict[int, _Scored]:
        return {
            p: _Scored(
                selection_rewards(texts[p], row.answer, "image" if row.images else "text"),
                {},
                [len(c.ids) for c in sampled[p]],
                [c.truncated for c in sampled[p]],
            )
            for p, row in rows.items()
        }


def _together(updates: Sequence[dict[int, Item]]) -> dict[int, Item]:
    return {number: item for update in updates for number, item in update.items()}


def _metrics(scored: list[_Scored]) -> dict[str, float]:
    def mean(lists: list[Any]) -> float:
        flat = [float(value) for values in lists for value in values]
        return sum(flat) / len(flat)

    lengths = [n for s in scored for n in s.n_tokens]
    return {name: mean([s.parts[name] for s in scored]) for name in scored[0].parts} | {
        "completions": float(len(lengths)),
        "completion_tokens": mean([s.n_tokens for s in scored]),
        "longest_completion": float(max(lengths)),
        "truncated": mean([s.truncated for s in scored]),
    }


def _seed(seed: int, stream: str, step: int, p: int) -> int:
    return random.Random(f"{seed}:{stream}:{step}:{p}").getrandbits(62)
