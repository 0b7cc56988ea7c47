"""Rollouts of a step: completions are sampled, scored, and compared within their group.

Shapes: P prompts of the step over all ranks, G completions per prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from vlm_contextrl.config import RunConfig
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.objectives.policy import VARIANTS
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.rewards import combined_rewards, load_reward
from vlm_contextrl.rollout import Completion, Engine
from vlm_contextrl.sharding import gathered
from vlm_contextrl.terms import Group
from vlm_contextrl.vqa import question_prompt


class _Scored(NamedTuple):
    """What other ranks need to know of a group."""

    rewards: list[float]
    parts: dict[str, list[float]]
    n_tokens: list[int]
    truncated: list[bool]


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
        term = config.policy_term
        self.rewards = [
            (name, load_reward(name, self.style), weight) for name, weight in term.rewards.items()
        ]
        self.advantage_scale = term.advantage_scale or VARIANTS[term.variant].advantage_scale

    def __call__(
        self, step: int, rows: Mapping[int, QuestionRow]
    ) -> tuple[dict[int, Group], dict[str, float]]:
        """Groups of this rank's rows, and metrics over those of all ranks. Rows are numbered within the step, over all ranks."""
        prompts = {p: question_prompt(self.policy.processor, row, self.style) for p, row in rows.items()}
        self.policy.eval()
        with gathered(self.policy), self.autocast():
            self.engine.sync(self.policy)
            completions = self.engine.sample(
                self.policy,
                list(prompts.values()),
                self.settings.completions_per_prompt,
                max_new_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature,
                seeds=[_seed(self.seed, step, p) for p in prompts],
            )
        sampled = dict(zip(prompts, completions, strict=True))
        self.policy.train()
        texts = {
            p: [self.policy.processor.decode(c.ids.tolist()) for c in group] for p, group in sampled.items()
        }
        scored = {
            p: found
            for part in self.ranks.gather(self._score(rows, sampled, texts))
            for p, found in part.items()
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


def _metrics(scored: list[_Scored]) -> dict[str, float]:
    def mean(lists: list[Any]) -> float:
        flat = [float(value) for values in lists for value in values]
        return sum(flat) / len(flat)

    return {name: mean([s.parts[name] for s in scored]) for name in scored[0].parts} | {
        "completion_tokens": mean([s.n_tokens for s in scored]),
        "truncated": mean([s.truncated for s in scored]),
    }


def _seed(seed: int, step: int, p: int) -> int:
    return random.Random(f"{seed}:rollout:{step}:{p}").getrandbits(62)
