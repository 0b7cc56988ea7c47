"""Terms of the loss: how rollouts and pairs become batches for the policy and records for the objectives.

A term turns the data of one optimizer update into micro-batches under a token budget; each micro-batch gives its share of the update's
loss, so that shares add up to the same gradient whatever the budget. The trainer sums terms by weight and knows nothing else of them.

Shapes: P prompts, G completions per prompt, B rows, T tokens, O options.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_contextrl.asked_pairs import Asked, ask, further_contexts
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.objectives.policy import PolicyBatch, PolicyConfig, StepTotals, policy_loss
from vlm_contextrl.objectives.selection_loss import SelectionBatch, SelectionConfig, selection_loss
from vlm_contextrl.objectives.supervised import SupervisedBatch, supervised_loss
from vlm_contextrl.packing import Continuation, PackedRow, answered, pack, under_budget
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import option_ids
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.rollout import Completion
from vlm_contextrl.term_settings import PolicyTerm, SelectionRewardTerm, SelectionTerm, SupervisedTerm
from vlm_contextrl.training_rows import OtherContexts

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
    masked_prompt: EncodedPrompt | None = (
        None  # with parts of its images blackened, for a term about perception
    )
    masked_logps: list[Tensor] = field(default_factory=list)

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
    selections: Sequence[Group] = ()  # selection prompts with sampled completions


# Means over the tokens of groups that are trained on: without such a group there is nothing to take a mean of.
OVER_TRAINED_TOKENS = ("entropy", "rollout_gap", "selection_entropy", "selection_rollout_gap")


def mean_over_updates(collected: Sequence[Metrics]) -> Metrics:
    """Metrics of a step from those of its updates.

    An update whose groups all have equal rewards has no policy term: it counts as 0. One that was skipped, since something was not finite,
    counts with what it has.
    """
    found: Metrics = {}
    for name in sorted({name for metrics in collected for name in metrics}):
        values = [metrics[name] for metrics in collected if name in metrics]
        if name not in OVER_TRAINED_TOKENS:
            values += [0.0 for m in collected if name not in m and not m["skipped_updates"]]
        found[name] = sum(values) / len(values)
    return found


class Term(Protocol):
    """A weighted part of the loss. With weight 0 it is measured and not learned from."""

    weight: float

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]: ...


@runtime_checkable
class PreparedTerm(Term, Protocol):
    """A term that adds something of the sampling policy to the groups, before the updates of a rollout."""

    def prepare(self, policy: Policy, groups: Sequence[Group], seed: str, budget_tokens: int) -> None: ...


def completion_logps(
    policy: Policy, groups: Sequence[Group], temperature: float
) -> tuple[list[list[Tensor]], Tensor]:
    """Log-probabilities per group and completion, and the entropy of every completion token."""
    return row_logps(policy, [g.packed() for g in groups], temperature)


def row_logps(
    policy: Policy, rows: Sequence[PackedRow], temperature: float = 1.0
) -> tuple[list[list[Tensor]], Tensor]:
    """The same of any packed rows, per row and continuation."""
    batch = pack(rows, policy.positions, policy.processor.tokenizer.pad_token_id)
    logps_L, entropy_L, _ = policy(packed=batch, temperature=temperature)
    return batch.split(logps_L), entropy_L


def padded(logps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[B, T] of log-probs of different lengths, and 1 where there is one."""
    mask_BT = pad_sequence([torch.ones_like(logp) for logp in logps], batch_first=True)
    return pad_sequence(list(logps), batch_first=True), mask_BT


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

    def groups_of(self, update: Update) -> Sequence[Group]:
        return update.groups

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        own = self.groups_of(update)
        needed = [g for g in own if self.config.kl_coef > 0 or bool(g.advantages_G.any())]
        sequences, tokens, trained_tokens = update.total(
            sum(len(g.completions) for g in own), n_tokens(own), n_tokens(needed)
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
        logps_BT, mask_BT = padded(logps)
        batch = PolicyBatch(
            logps_BT=logps_BT,
            old_logps_BT=pad_sequence(old, batch_first=True),
            mask_BT=mask_BT,
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


def n_tokens(groups: Sequence[Group]) -> int:
    """Completion tokens."""
    return sum(len(c.ids) for g in groups for c in g.completions)


class SelectionRewardObjective(PolicyObjective):
    """The policy term's loss on selection prompts with sampled completions; its metrics, each behind `selection_`."""

    def __init__(
        self, settings: SelectionRewardTerm, policy: PolicyTerm, max_new_tokens: int, temperature: float
    ) -> None:
        super().__init__(policy, max_new_tokens, temperature)
        self.weight = settings.weight

    def groups_of(self, update: Update) -> Sequence[Group]:
        return update.selections

    def _share(
        self, policy: Policy, groups: Sequence[Group], totals: StepTotals, trained_tokens: float
    ) -> tuple[Tensor, Metrics]:
        loss, metrics = super()._share(policy, groups, totals, trained_tokens)
        return loss, {f"selection_{name}": value for name, value in metrics.items()}


class SelectionObjective:
    """Context selection: teacher-forced option logits of all contexts."""

    def __init__(self, settings: SelectionTerm, other_contexts: OtherContexts | None = None) -> None:
        """other_contexts: needed for more than two contexts."""
        if settings.contexts > 2 and other_contexts is None:
            raise ConfigError(
                f"selection_loss.contexts is {settings.contexts}, which `vlm-contextrl train` offers; expected 2 here"
            )
        self.weight = settings.weight
        self.settings, self.other_contexts = settings, other_contexts
        self.config = SelectionConfig(settings.clip, settings.clip_value, settings.orders)

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        shown = [
            self._asked(policy, pair, random.Random(f"{update.order_seed}:{pair.id}"))
            for pair in update.pairs
        ]
        (n_rows,) = update.total(sum(len(asked) for asked in shown))
        n_instances = n_rows / self.config.rows_per_pair
        ids = option_ids(policy.processor, update.pairs, self.settings.contexts) if update.pairs else []
        for batch in under_budget(shown, _padded_tokens, budget_tokens):
            yield lambda batch=batch: self._share(policy, batch, ids, n_instances)  # type: ignore[misc]

    def _asked(self, policy: Policy, pair: ContrastivePair, rng: random.Random) -> list[Asked]:
        return ask(
            policy.processor,
            pair,
            rng,
            both_orders=self.config.orders == "both",
            reverse=self.settings.reverse,
            others=further_contexts(self.settings, pair, self.other_contexts),
        )

    def _share(
        self, policy: Policy, batch: list[list[Asked]], ids: list[int], n_instances: float
    ) -> tuple[Tensor, Metrics]:
        rows = [asked for each in batch for asked in each]
        _, _, logits_BO = policy(selection=[asked.prompt for asked in rows], option_ids=ids)
        support_B = torch.tensor([asked.support for asked in rows], device=logits_BO.device)
        loss, metrics = selection_loss(SelectionBatch(logits_BO, support_B), self.config, n_instances)
        return loss, {name: float(value) for name, value in metrics.items()}


def _padded_tokens(asked: Sequence[Asked]) -> int:
    return max(len(each.prompt) for each in asked) * len(asked)


class SupervisedObjective:
    """Cross-entropy on the right letter after selection prompts, and on the end of the turn behind it."""

    def __init__(self, settings: SupervisedTerm) -> None:
        self.weight, self.reverse = settings.weight, settings.reverse

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        processor = policy.processor
        letters = option_ids(processor, update.pairs) if update.pairs else []
        asked = [
            each
            for pair in update.pairs
            for each in ask(
                processor, pair, random.Random(f"{update.order_seed}:{pair.id}"), reverse=self.reverse
            )
        ]
        tokenizer = processor.tokenizer
        # A letter inside a thought that stays open is no answer.
        thought = (
            tokenizer("</think>\n\n", add_special_tokens=False).input_ids if processor.opened_thought else []
        )
        end = tokenizer.eos_token_id
        answers = [torch.tensor([*thought, letters[each.support], end]) for each in asked]
        rows = answered([each.prompt for each in asked], answers, processor.image_token_id)
        (tokens,) = update.total(sum(map(len, answers)))
        for batch in under_budget(rows, PackedRow.n_tokens, budget_tokens):
            yield lambda batch=batch: self._share(policy, batch, tokens)  # type: ignore[misc]

    def _share(self, policy: Policy, rows: list[PackedRow], tokens: float) -> tuple[Tensor, Metrics]:
        per_row, _ = row_logps(policy, rows)
        batch = SupervisedBatch(*padded([logp for row in per_row for logp in row]))
        loss, metrics = supervised_loss(batch, tokens)
        return loss, {name: float(value) for name, value in metrics.items()}
