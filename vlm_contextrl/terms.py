"""Terms of the loss: how rollouts and pairs become batches for the policy and records for the objectives.

A term turns the data of one optimizer update into micro-batches under a token budget; each micro-batch gives its share of the update's
loss, so that shares add up to the same gradient whatever the budget. The trainer sums terms by weight and knows nothing else of them.

Shapes: P prompts, G completions per prompt, B rows, T tokens, O options.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_contextrl.config import PolicyTerm, SelectionTerm
from vlm_contextrl.objectives.policy import PolicyBatch, PolicyConfig, StepTotals, policy_loss
from vlm_contextrl.objectives.selection_loss import SelectionBatch, SelectionConfig, selection_loss
from vlm_contextrl.packing import Continuation, PackedRow, pack, under_budget
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import contexts, option_ids, selection_prompt
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.rollout import Completion

Metrics = dict[str, float]
Share = Callable[[], tuple[Tensor, Metrics]]  # runs one forward: (share of the loss, shares of the metrics)


@dataclass
class Group:
    """One prompt with its G completions and what is known of them."""

    row: QuestionRow
    prompt: EncodedPrompt
    completions: list[Completion]
    texts: list[str]
    rewards: list[float]
    advantages_G: Tensor
    old_logps: list[Tensor] = field(
        default_factory=list
    )  # empty: one update per rollout, the current ones serve
    ref_logps: list[Tensor] = field(default_factory=list)

    def packed(self) -> PackedRow:
        return PackedRow(self.prompt, tuple(Continuation(c.ids) for c in self.completions))


def alone(*numbers: float) -> tuple[float, ...]:
    """Sums over the ranks when there is one."""
    return numbers


@dataclass(frozen=True)
class Update:
    """This rank's data of one optimizer update."""

    groups: Sequence[Group]
    pairs: Sequence[ContrastivePair]
    order_seed: str  # with a pair's id it decides the order in which the contexts are shown
    total: Callable[..., tuple[float, ...]] = alone  # of numbers over all ranks


class Term(Protocol):
    """A weighted part of the loss."""

    weight: float

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]: ...


def completion_logps(
    policy: Policy, groups: Sequence[Group], temperature: float
) -> tuple[list[list[Tensor]], Tensor]:
    """Log-probabilities per group and completion, and the entropy of every completion token."""
    batch = pack([g.packed() for g in groups], policy.positions, policy.processor.tokenizer.pad_token_id)
    logps_L, entropy_L, _ = policy(packed=batch, temperature=temperature)
    return batch.split(logps_L), entropy_L


class PolicyObjective:
    """GRPO and its variants on packed groups. Groups without any advantage have no gradient and are not run."""

    def __init__(self, settings: PolicyTerm, max_new_tokens: int, temperature: float) -> None:
        self.weight = settings.weight
        self.temperature = temperature
        given = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
        self.config = PolicyConfig.of_paper(
            settings.variant,
            kl_coef=settings.kl_coef,
            max_tokens=max_new_tokens,
            **{name: value for name, value in given.items() if value is not None},
        )

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        needed = [g for g in update.groups if self.config.kl_coef > 0 or bool(g.advantages_G.any())]
        sequences, tokens, trained_tokens = update.total(
            sum(len(g.completions) for g in update.groups), _n_tokens(update.groups), _n_tokens(needed)
        )
        totals = StepTotals(sequences, tokens)
        for groups in under_budget(needed, lambda g: g.packed().n_tokens(), budget_tokens):
            yield lambda groups=groups: self._share(policy, groups, totals, trained_tokens)  # type: ignore[misc]

    def _share(
        self, policy: Policy, groups: Sequence[Group], totals: StepTotals, trained_tokens: float
    ) -> tuple[Tensor, Metrics]:
        per_group, entropy_L = completion_logps(policy, groups, self.temperature)
        logps = [logp for group in per_group for logp in group]
        sampled = [c.logps.to(logps[0]) for g in groups for c in g.completions]
        old = [o.to(logps[0]) for g in groups for o in g.old_logps] or [logp.detach() for logp in logps]
        ref = [r.to(logps[0]) for g in groups for r in g.ref_logps]
        batch = PolicyBatch(
            logps_BT=pad_sequence(logps, batch_first=True),
            old_logps_BT=pad_sequence(old, batch_first=True),
            mask_BT=pad_sequence([torch.ones_like(logp) for logp in logps], batch_first=True),
            advantages_B=torch.cat([g.advantages_G for g in groups]).to(logps[0]),
            ref_logps_BT=pad_sequence(ref, batch_first=True) if ref else None,
        )
        loss, metrics = policy_loss(batch, self.config, totals)
        gap = sum(float((o - s).abs().sum()) for o, s in zip(old, sampled, strict=True))
        shares = {name: float(value) for name, value in metrics.items()}
        return (
            loss,
            {
                **shares,
                "entropy": float(entropy_L.sum()) / trained_tokens,
                "rollout_gap": gap
                / trained_tokens,  # mean |log-prob by the training forward - while sampling|, same weights, nats per token
            },
        )


def _n_tokens(groups: Sequence[Group]) -> int:
    return sum(len(c.ids) for g in groups for c in g.completions)


class SelectionObjective:
    """Context selection: teacher-forced option logits of both contexts."""

    def __init__(self, settings: SelectionTerm) -> None:
        self.weight = settings.weight
        self.reverse = settings.reverse
        self.config = SelectionConfig(settings.clip, settings.clip_value, settings.orders)

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        shown = [
            self._prompts(policy, pair, random.Random(f"{update.order_seed}:{pair.id}"))
            for pair in update.pairs
        ]
        (n_rows,) = update.total(sum(len(prompts) for prompts in shown))
        n_instances = n_rows / self.config.rows_per_pair
        ids = option_ids(policy.processor, update.pairs) if update.pairs else []

        def at_most(prompts: list[tuple[EncodedPrompt, int]]) -> int:
            return max(len(p) for p, _ in prompts) * len(prompts)

        for batch in under_budget(shown, at_most, budget_tokens):
            yield lambda batch=batch: self._share(policy, batch, ids, n_instances)  # type: ignore[misc]

    def _prompts(
        self, policy: Policy, pair: ContrastivePair, rng: random.Random
    ) -> list[tuple[EncodedPrompt, int]]:
        """(prompt, index of the supporting option) in one random order or in both, of the pair and of its reverse. Both directions are
        asked of the same orders of the contexts, so that one forward over the contexts serves both."""
        context, confounder = contexts(policy.processor, pair)
        orders = [0, 1] if self.config.orders == "both" else [rng.randrange(2)]
        shown = {0: (context, confounder), 1: (confounder, context)}
        prompts = [(selection_prompt(policy.processor, pair, shown[at]), at) for at in orders]
        reverse = pair.reversed() if self.reverse else None
        if reverse is not None:
            prompts += [(selection_prompt(policy.processor, reverse, shown[at]), 1 - at) for at in orders]
        return prompts

    def _share(
        self, policy: Policy, batch: list[list[tuple[EncodedPrompt, int]]], ids: list[int], n_instances: float
    ) -> tuple[Tensor, Metrics]:
        rows = [row for prompts in batch for row in prompts]
        _, _, logits_BO = policy(selection=[prompt for prompt, _ in rows], option_ids=ids)
        support_B = torch.tensor([at for _, at in rows], device=logits_BO.device)
        loss, metrics = selection_loss(SelectionBatch(logits_BO, support_B), self.config, n_instances)
        return loss, {name: float(value) for name, value in metrics.items()}
