"""Terms: their shares add up to one loss and one gradient, however the update is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import (
    context_is_first,
    given_groups,
    gradients,
    image_pair,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import terms
from vlm_contextrl.config import PolicyTerm, SelectionTerm
from vlm_contextrl.objectives.policy import PolicyBatch
from vlm_contextrl.packing import under_budget
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import contexts, selection_prompt
from vlm_contextrl.term_settings import SupervisedTerm
from vlm_contextrl.terms import PolicyObjective, SelectionObjective, SupervisedObjective, Term, Update


def update_of(policy: Policy, dtype: torch.dtype = torch.float32) -> Update:
    pairs = [image_pair(n, "8" if n % 2 else None) for n in range(5)]
    return Update(given_groups(policy, dtype), pairs, "0")


def policy_term(**settings: Any) -> PolicyObjective:
    return PolicyObjective(PolicyTerm(term="policy", **settings), max_new_tokens=6, temperature=1.0)


def selection_term(**settings: Any) -> SelectionObjective:
    return SelectionObjective(SelectionTerm(term="selection_loss", weight=0.5, **settings))


def run(
    term: Term, policy: Policy, update: Update, budget: int
) -> tuple[int, dict[str, float], dict[str, Tensor]]:
    """Number of shares, sums of loss and metrics, gradient."""
    sums: dict[str, float] = {"loss": 0.0}
    n = 0
    for n, share in enumerate(term.shares(policy, update, budget), start=1):  # noqa: B007
        loss, metrics = share()
        loss.backward()
        for name, value in {"loss": float(loss.detach()), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value
    return n, sums, gradients(policy)


# ---------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([3, 3, 3, 3], 6, [[3, 3], [3, 3]]),
        ([3, 3, 3, 3], 7, [[3, 3], [3, 3]]),
        ([1, 1, 4, 1], 6, [[1, 1], [4], [1]]),  # 1 1 4 padded to the longest would take 12, 4 1 would take 8
        ([1, 1, 4, 1], 8, [[1, 1], [4, 1]]),
        ([9, 1, 9], 4, [[9], [1], [9]]),  # over the budget: alone, never cut
        ([2, 2], 100, [[2, 2]]),
        ([], 4, []),
    ],
)
def test_under_budget(sizes: list[int], budget: int, expected: list[list[int]]) -> None:
    assert list(under_budget(sizes, lambda n: n, budget)) == expected


VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
CUT = [  # a term, a budget for two items at a time, and the number of items
    *((f"policy, {v}", lambda v=v: policy_term(variant=v), 160, 3) for v in VARIANTS),
    ("selection", lambda: selection_term(), 300, 5),
    ("selection, all", lambda: selection_term(orders="both", reverse=True, clip="one_sided"), 1200, 5),
    ("supervised", lambda: SupervisedObjective(SupervisedTerm(term="supervised")), 310, 5),
]


@pytest.mark.parametrize(("make", "budget", "n_items"), [c[1:] for c in CUT], ids=[c[0] for c in CUT])
def test_micro_batches_change_nothing(
    make: Callable[[], Term],
    budget: int,
    n_items: int,
    qwen_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One share, one per two items, or one per item: the same loss and gradient to 1e-12 in float64, and the same
    metrics (some are float32 counts)."""
    strict_float64(monkeypatch)
    policy = tiny_policy(qwen_folders["qwen3_vl"]).double()
    results = [run(make(), policy, update_of(policy, torch.float64), b) for b in (10**6, budget, 1)]
    assert [n for n, _, _ in results] == [1, (n_items + 1) // 2, n_items]
    _, expected, expected_grads = results[0]
    for _, found, found_grads in results[1:]:
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-12)
        assert found == pytest.approx(expected, abs=1e-6)
        assert worst_difference(found_grads, expected_grads) < 1e-12


# ---------------------------------------------------------------- the policy term


def test_groups_without_advantage_are_counted_but_not_run(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four groups the last has equal rewards: three are run, and the loss is divided by all 12 completions.

    With a KL every group has a gradient, so all four are run.
    """
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    update = update_of(policy)
    batches: list[PolicyBatch] = []
    original = terms.policy_loss

    def recorded(batch: PolicyBatch, *args: Any) -> Any:
        batches.append(batch)
        assert (args[1].sequences, args[1].tokens) == (12, 33)
        return original(batch, *args)

    monkeypatch.setattr(terms, "policy_loss", recorded)
    run(policy_term(), policy, update, 10**6)
    for group in update.groups:
        group.ref_logps = [torch.zeros(len(c.ids)) for c in group.completions]
    run(policy_term(kl_coef=0.1), policy, update, 10**6)
    assert [len(b.advantages_B) for b in batches] == [9, 12]


def test_nothing_to_learn_from(qwen_folders: dict[str, Path]) -> None:
    """All rewards equal: no forward at all."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    update = Update(given_groups(policy)[3:], [], "0")
    assert run(policy_term(), policy, update, 10**6) == (0, {"loss": 0.0}, {})


def test_old_and_reference_logps_reach_the_loss(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every completion keeps its own, padded like its log-probs; without old ones the current ones serve."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    update = update_of(policy)
    batches: list[PolicyBatch] = []
    original = terms.policy_loss

    def recorded(batch: PolicyBatch, *args: Any) -> Any:
        batches.append(batch)
        return original(batch, *args)

    monkeypatch.setattr(terms, "policy_loss", recorded)
    run(policy_term(), policy, update, 10**6)
    assert torch.equal(batches[0].old_logps_BT, batches[0].logps_BT.detach())
    assert batches[0].ref_logps_BT is None

    number = 0
    for group in update.groups:
        for completion in group.completions:
            number += 1
            group.old_logps.append(torch.full((len(completion.ids),), -float(number)))
            group.ref_logps.append(torch.full((len(completion.ids),), -100.0 - number))
    run(policy_term(kl_coef=0.1), policy, update, 10**6)
    batch, lengths = batches[1], [len(c.ids) for g in update.groups for c in g.completions]
    assert batch.ref_logps_BT is not None
    for b, n in enumerate(lengths):
        assert batch.mask_BT[b].tolist() == [1.0] * n + [0.0] * (6 - n)
        assert batch.old_logps_BT[b, :n].tolist() == [-(b + 1.0)] * n
        assert batch.ref_logps_BT[b, :n].tolist() == [-101.0 - b] * n


def test_gap_between_rollout_and_training(qwen_folders: dict[str, Path]) -> None:
    """Mean |training - sampling| log-prob over the tokens that are trained. Claiming that sampling had log-probs
    higher by 0.5 gives 0.5."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    groups = given_groups(policy)
    with torch.no_grad():
        per_group, _ = terms.completion_logps(policy, groups, 1.0)
    for group, logps in zip(groups, per_group, strict=True):
        for completion, logp in zip(group.completions, logps, strict=True):
            completion.logps.copy_(logp + 0.5)
    _, metrics, _ = run(policy_term(), policy, Update(groups, [], "0"), 200)
    assert metrics["rollout_gap"] == pytest.approx(0.5, abs=1e-5)


# ---------------------------------------------------------------- the selection term


class Shown:
    """Records which prompts a policy is shown and gives flat logits."""

    def __init__(self, policy: Policy) -> None:
        self.processor = policy.processor
        self.prompts: list[Any] = []

    def __call__(self, selection: Any, option_ids: Any) -> tuple[None, None, Tensor]:
        self.prompts += selection
        return None, None, torch.zeros(len(selection), 2, requires_grad=True)


def test_one_order_or_both(qwen_folders: dict[str, Path]) -> None:
    """One row per pair in an order drawn from the update's seed and the pair's id, or two rows in both orders."""
    policy = Shown(tiny_policy(qwen_folders["qwen2_5_vl"]))
    pairs = [image_pair(n, None) for n in range(4)]
    expected = []
    for pair in pairs:
        shown = contexts(policy.processor, pair)
        expected.append(
            selection_prompt(policy.processor, pair, shown if context_is_first("0", pair) else shown[::-1])
        )
    assert len({context_is_first("0", pair) for pair in pairs}) == 2
    [share() for share in selection_term().shares(policy, Update([], pairs, "0"), 10**6)]  # type: ignore[arg-type]
    keys = [[image.key for image in p.images] for p in policy.prompts]
    assert keys == [[image.key for image in p.images] for p in expected]

    policy.prompts = []
    term = selection_term(orders="both")
    [share() for share in term.shares(policy, Update([], pairs, "0"), 10**6)]  # type: ignore[arg-type]
    keys = [[image.key for image in p.images] for p in policy.prompts]
    for n, pair in enumerate(pairs):
        good, bad = (image.key for image in contexts(policy.processor, pair))  # type: ignore[union-attr]
        assert keys[2 * n : 2 * n + 2] == [[good, bad], [bad, good]]


def test_reverse_pairs_are_added_where_known(qwen_folders: dict[str, Path]) -> None:
    """Five pairs, two of them with the confounder's answer: seven instances, and means over seven."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    shown = Shown(policy)
    term = selection_term(reverse=True)
    sums = [share()[1] for share in term.shares(shown, update_of(policy), 10**6)]  # type: ignore[arg-type]
    assert len(shown.prompts) == 7
    texts = [policy.processor.decode(p.ids_T.tolist()) for p in shown.prompts]
    assert ["Answer: 8\n" in text for text in texts] == [False, False, True, False, False, True, False]
    shown_images = [[image.key for image in prompt.images] for prompt in shown.prompts]
    assert shown_images[1] == shown_images[2], "one forward over the images serves both directions"
    assert sums[0]["selection_loss"] == pytest.approx(0.6931472, abs=1e-6)  # log 2: flat logits
