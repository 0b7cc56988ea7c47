"""The terms of the other arms on a model: what they show it, and which way a step moves it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny_models import (
    given_groups,
    gradients,
    image_pair,
    noise_image,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import perception, terms
from vlm_contextrl.asked_pairs import ask
from vlm_contextrl.config import PolicyTerm, SelectionTerm
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.objectives.selection_loss import SelectionBatch, SelectionConfig, selection_loss
from vlm_contextrl.packing import answered
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.perception import PerceptionObjective, blackened
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import contexts, option_ids, selection_prompt
from vlm_contextrl.rollout import Completion
from vlm_contextrl.term_settings import PerceptionTerm, SelectionRewardTerm, SupervisedTerm
from vlm_contextrl.terms import (
    Group,
    PolicyObjective,
    SelectionObjective,
    SelectionRewardObjective,
    SupervisedObjective,
    Term,
    Update,
)
from vlm_contextrl.training_rows import OtherContexts, selection_question

PAIRS = [image_pair(n, "8") for n in range(4)]
BUDGET = 10**6


def policy_of(folders: dict[str, Path]) -> Policy:
    return tiny_policy(folders["qwen2_5_vl"])


def measure(term: Term, policy: Policy, update: Update, budget: int = BUDGET) -> dict[str, float]:
    """Sums of loss and metrics, gradients left in place."""
    sums: dict[str, float] = {"loss": 0.0}
    for share in term.shares(policy, update, budget):
        loss, metrics = share()
        loss.backward()
        for name, value in {"loss": float(loss.detach()), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def moved(
    term: Term, policy: Policy, update: Update, rate: float = 1e-4
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums before and after one step of plain gradient descent."""
    before = measure(term, policy, update)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    policy.zero_grad()
    return before, measure(term, policy, update)


def sampled_selections(policy: Policy) -> list[Group]:
    """Selection prompts of all pairs, each with the completions A, B and x."""
    groups = []
    letters = option_ids(policy.processor, PAIRS)
    for pair in PAIRS:
        (asked,) = ask(policy.processor, pair, random.Random(pair.id))
        rewards = [0.0, 0.0, 0.0]
        rewards[asked.support] = 1.0
        advantages_PG, _ = group_advantages(torch.tensor([rewards]))
        ids = [torch.tensor([i]) for i in (*letters, ord("x"))]
        completions = [Completion(i, torch.zeros(1), False) for i in ids]
        row = selection_question(pair, asked.support)
        groups.append(Group(row, asked.prompt, completions, list("ABx"), rewards, advantages_PG[0]))
    return groups


def right_letter_probability(policy: Policy) -> float:
    """Mean over the same prompts, among the whole vocabulary."""
    total = 0.0
    for group in sampled_selections(policy):
        with torch.no_grad():
            ((logps,), _) = terms.row_logps(policy, [group.packed()])
        total += float(logps[group.rewards.index(1.0)].exp())
    return total / len(PAIRS)


# ---------------------------------------------------------------- which way a step moves the policy


def test_policy_term_raises_better_completions(qwen_folders: dict[str, Path]) -> None:
    """Advantage-weighted log-probability of the given completions goes up."""
    policy = policy_of(qwen_folders)
    groups = given_groups(policy)

    def gain() -> float:
        with torch.no_grad():
            per_group, _ = terms.completion_logps(policy, groups, 1.0)
        return sum(
            float(a * logp.mean())
            for g, logps in zip(groups, per_group, strict=True)
            for a, logp in zip(g.advantages_G, logps, strict=True)
        )

    before = gain()
    moved(PolicyObjective(PolicyTerm(term="policy"), 6, 1.0), policy, Update(groups, [], "0"))
    assert gain() > before


@pytest.mark.parametrize("n_contexts", [2, 3, 4])
def test_selection_loss_widens_margins(n_contexts: int, qwen_folders: dict[str, Path]) -> None:
    settings = SelectionTerm(term="selection_loss", weight=1, contexts=n_contexts, clip="none")
    term = SelectionObjective(settings, OtherContexts(VARIED, 0))
    before, after = moved(term, policy_of(qwen_folders), Update([], VARIED, "0"))
    assert after["margin"] > before["margin"]
    assert after["loss"] < before["loss"]


def test_supervised_raises_the_right_letter(qwen_folders: dict[str, Path]) -> None:
    policy = policy_of(qwen_folders)
    before, after = moved(
        SupervisedObjective(SupervisedTerm(term="supervised")), policy, Update([], PAIRS, "0")
    )
    assert after["supervised_loss"] < before["supervised_loss"]
    assert after["token_probability"] > before["token_probability"]


def test_selection_reward_raises_the_rewarded_letter(qwen_folders: dict[str, Path]) -> None:
    """By the groups of selections alone: the groups about questions have no part in it. Metrics carry the term's name."""
    policy = policy_of(qwen_folders)
    term = SelectionRewardObjective(
        SelectionRewardTerm(term="selection_reward"), PolicyTerm(term="policy"), 6, 1.0
    )
    before = right_letter_probability(policy)
    sums, _ = moved(
        term, policy, Update(given_groups(policy), [], "0", selections=sampled_selections(policy))
    )
    assert right_letter_probability(policy) > before
    assert {"selection_policy_loss", "selection_entropy", "selection_rollout_gap"} <= set(sums)
    assert all(name.startswith("selection_") for name in sums if name != "loss")
    with_questions, alone = (
        measure(term, policy, Update(groups, [], "0", selections=sampled_selections(policy)))
        for groups in (given_groups(policy), [])
    )
    assert with_questions == alone


@pytest.mark.parametrize(
    ("coefficients", "name", "sign"),
    [
        ((1.0, 0.0, 0.0, False), "perception_kl", 1),
        ((0.0, 1.0, 0.0, False), "sampled_entropy", -1),
        ((0.0, 0.0, 1.0, True), "masked_entropy", -1),
    ],
)
def test_perception_term(
    coefficients: tuple[float, float, float, bool], name: str, sign: int, qwen_folders: dict[str, Path]
) -> None:
    """Each part by itself: the KL goes up, either entropy down."""
    gamma, eta, eta_masked, with_gradient = coefficients
    settings = PerceptionTerm(
        term="perception_kl",
        kl_coef=gamma,
        entropy_coef=eta,
        masked_entropy_coef=eta_masked,
        masked_gradient=with_gradient,
    )
    policy = policy_of(qwen_folders)
    term, groups = PerceptionObjective(settings, 1.0), given_groups(policy)
    term.prepare(policy, groups, "0", BUDGET)
    before, after = moved(term, policy, Update(groups, [], "0"))
    assert sign * (after[name] - before[name]) > 0
    assert before["perception_kl"] > 0


# ---------------------------------------------------------------- supervised


def test_supervised_loss_is_that_of_the_letter_and_the_end(qwen_folders: dict[str, Path]) -> None:
    """Mean over two tokens of each pair in both directions, as one forward per prompt gives them."""
    policy = policy_of(qwen_folders)
    letters, end = option_ids(policy.processor, PAIRS), policy.processor.tokenizer.eos_token_id
    total = 0.0
    for pair in PAIRS:
        for asked in ask(policy.processor, pair, random.Random(f"0:{pair.id}"), reverse=True):
            row = terms.PackedRow(
                asked.prompt, (terms.Continuation(torch.tensor([letters[asked.support], end])),)
            )
            with torch.no_grad():
                ((logps,),), _ = terms.row_logps(policy, [row])
            total -= float(logps.sum())
    found = measure(
        SupervisedObjective(SupervisedTerm(term="supervised", reverse=True)), policy, Update([], PAIRS, "0")
    )
    assert found["supervised_loss"] == pytest.approx(total / 16, abs=1e-5)


def test_right_minus_wrong_letter_is_the_margin(qwen_folders: dict[str, Path]) -> None:
    """What the supervised term calls right is what the selection loss calls right, also where both directions of a pair share a row."""
    policy = policy_of(qwen_folders)
    ids = option_ids(policy.processor, PAIRS)
    asked = [a for pair in PAIRS for a in ask(policy.processor, pair, random.Random(pair.id), reverse=True)]
    prompts, image_id = [each.prompt for each in asked], policy.processor.image_token_id

    def mean_logp(letters: list[int]) -> float:
        rows = answered(prompts, [torch.tensor([letter]) for letter in letters], image_id)
        assert len(rows) == len(PAIRS)
        with torch.no_grad():
            per_row, _ = terms.row_logps(policy, rows)
        return float(torch.stack([logp for row in per_row for logp in row]).mean())

    right, wrong = (mean_logp([ids[(each.support + turn) % 2] for each in asked]) for turn in (0, 1))
    with torch.no_grad():
        logits_BO = policy.option_logits(prompts, ids)
    support_B = torch.tensor([each.support for each in asked])
    _, metrics = selection_loss(SelectionBatch(logits_BO, support_B), SelectionConfig(), len(asked))
    assert right - wrong == pytest.approx(float(metrics["margin"]), abs=1e-5)
    assert abs(right - wrong) > 1e-3


# ---------------------------------------------------------------- choices among K contexts

VARIED = [
    ContrastivePair(
        **{
            **vars(image_pair(n, None)),
            "query": "How many?",
            "answer": str(n),
            "confounder_answer": str(n + 50),
        }
    )
    for n in range(6)
]


def test_two_contexts_are_the_pair_as_before(qwen_folders: dict[str, Path]) -> None:
    """Prompts, order and the place of the support: what a random number of the pair's own decides, for two contexts one bit of it."""
    processor = policy_of(qwen_folders).processor
    for pair in VARIED:
        (asked,) = ask(processor, pair, random.Random(pair.id))
        at = random.Random(pair.id).randrange(2)
        shown = contexts(processor, pair)[:: 1 - 2 * at]
        assert (asked.support, asked.pair) == (at, pair)
        assert torch.equal(asked.prompt.ids_T, selection_prompt(processor, pair, shown).ids_T)
        assert [i.key for i in asked.prompt.images] == [s.key for s in shown]  # type: ignore[union-attr]


def test_four_contexts(qwen_folders: dict[str, Path]) -> None:
    """The support is where it is said to be, in every place now and then; the others are the confounder and two more in any order, and
    in the other direction the confounder's place is the right one, of the same pictures."""
    processor = policy_of(qwen_folders).processor
    pair = VARIED[0]
    more = [VARIED[1].context, VARIED[2].context]
    context, confounder = (image.key for image in contexts(processor, pair))  # type: ignore[union-attr]
    others = [processor.process_image(c).key for c in more]  # type: ignore[arg-type]
    orders = set()
    for seed in range(60):
        forth, back = ask(processor, pair, random.Random(seed), reverse=True, others=more)
        keys = [image.key for image in forth.prompt.images]
        assert sorted(keys) == sorted([context, confounder, *others])
        assert (keys[forth.support], keys[back.support]) == (context, confounder)
        assert [image.key for image in back.prompt.images] == keys
        orders.add(tuple(keys))
        text = processor.decode(forth.prompt.ids_T.tolist())
        assert "Which image supports the answer? Output A, B, C or D directly." in text
    assert len(orders) > 15  # of 24


def test_four_contexts_are_a_cross_entropy(qwen_folders: dict[str, Path]) -> None:
    """Against the logits of A to D after the same prompts."""
    policy = policy_of(qwen_folders)
    others = OtherContexts(VARIED, 0)
    settings = SelectionTerm(term="selection_loss", weight=1, contexts=4, reverse=True, clip="none")
    found = measure(SelectionObjective(settings, others), policy, Update([], VARIED, "0"))
    ids, losses = option_ids(policy.processor, VARIED, 4), []
    assert [policy.processor.decode([i]) for i in ids] == list("ABCD")
    for pair in VARIED:
        more = [c for c, _ in others.of(pair, 2, for_either_answer=True)]
        for asked in ask(policy.processor, pair, random.Random(f"0:{pair.id}"), reverse=True, others=more):
            with torch.no_grad():
                logits_1O = policy.option_logits([asked.prompt], ids)
            losses.append(torch.nn.functional.cross_entropy(logits_1O, torch.tensor([asked.support])))
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    assert len(losses) == 12


def test_more_contexts_need_other_pairs() -> None:
    with pytest.raises(ConfigError, match="selection_loss.contexts is 3"):
        SelectionObjective(SelectionTerm(term="selection_loss", weight=1, contexts=3))


# ---------------------------------------------------------------- masked images


def test_squares_are_blackened() -> None:
    """Of 28 x 42 px, squares of 14 px: each is all black or as it was; the last column of 43 px is a square, too. The same seed gives
    the same; about the asked share is black; with 1 everything is."""
    picture = Image.new("RGB", (43, 28), (200, 100, 50))
    pixels = np.array(blackened(picture, 14, 0.5, "seed"))
    assert pixels.shape == (28, 43, 3)
    squares = [pixels[y : y + 14, x : x + 14] for y in (0, 14) for x in (0, 14, 28, 42)]
    assert {tuple(np.unique(s.reshape(-1, 3), axis=0).ravel()) for s in squares} == {
        (0, 0, 0),
        (200, 100, 50),
    }
    assert np.array_equal(pixels, np.array(blackened(picture, 14, 0.5, "seed")))
    assert not np.array_equal(pixels, np.array(blackened(picture, 14, 0.5, "other")))
    large = np.array(blackened(Image.new("RGB", (1400, 1400), "white"), 14, 0.6, "seed"))
    assert (large == 0).mean() == pytest.approx(0.6, abs=0.02)  # 4 deviations of 10,000 draws
    assert not np.array(blackened(noise_image(0), 14, 1.0, "seed")).any()


def test_masked_prompts(qwen_folders: dict[str, Path]) -> None:
    """The same tokens over other pictures of the same size, another mask in another step; groups without images have none. Their features
    are not kept: they never come again."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], train_vision=False)
    term, groups = PerceptionObjective(PerceptionTerm(term="perception_kl"), 1.0), given_groups(policy)
    term.prepare(policy, groups, "step 1", BUDGET)
    kept = set(policy._cache._items)
    keys = [[i.key for i in g.masked_prompt.images] if g.masked_prompt else [] for g in groups]
    assert [len(k) for k in keys] == [1, 2, 0, 1]
    for group, masked in zip(groups, keys, strict=True):
        if group.masked_prompt:
            assert torch.equal(group.masked_prompt.ids_T, group.prompt.ids_T)
            assert [i.grid_thw for i in group.masked_prompt.images] == [
                i.grid_thw for i in group.prompt.images
            ]
            assert not {i.key for i in group.prompt.images} & set(masked)
            assert [len(logp) for logp in group.masked_logps] == [len(c.ids) for c in group.completions]
    assert not kept & {key for each in keys for key in each}
    term.prepare(policy, groups, "step 2", BUDGET)
    assert all(
        g.masked_prompt is None or g.masked_prompt.images[0].key not in keys[n] for n, g in enumerate(groups)
    )


def test_a_mask_of_nothing_is_no_distance(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unmasked "masked" images give the log-probs of the images, resized as they are for the model: the KL is 0 and both entropies
    agree. With a mask they do not."""
    policy = policy_of(qwen_folders)
    term, groups = PerceptionObjective(PerceptionTerm(term="perception_kl"), 1.0), given_groups(policy)
    term.prepare(policy, groups, "0", BUDGET)
    masked = measure(term, policy, Update(groups, [], "0"))
    monkeypatch.setattr(perception, "blackened", lambda picture, *_: picture)
    term.prepare(policy, groups, "0", BUDGET)
    plain = measure(term, policy, Update(groups, [], "0"))
    assert plain["perception_kl"] == pytest.approx(0, abs=1e-6)
    assert plain["masked_entropy"] == pytest.approx(plain["sampled_entropy"], abs=1e-4)
    assert masked["perception_kl"] > 1e-3


def test_the_masked_gradient_is_asked_for(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off, the coefficient of the masked entropy changes no gradient; on, it does. On or off, the loss is the same."""
    strict_float64(monkeypatch)
    policy = policy_of(qwen_folders).double()

    def run(with_gradient: bool, coefficient: float) -> tuple[float, dict[str, Tensor]]:
        settings = PerceptionTerm(
            term="perception_kl", masked_gradient=with_gradient, masked_entropy_coef=coefficient
        )
        term, groups = PerceptionObjective(settings, 1.0), given_groups(policy, torch.float64)
        term.prepare(policy, groups, "0", BUDGET)
        return measure(term, policy, Update(groups, [], "0"))["loss"], gradients(policy)

    (loss, without), (_, still), (same_loss, other) = run(False, 0.5), run(False, 0.0), run(True, 0.5)
    assert worst_difference(without, still) == 0
    assert worst_difference(without, other) > 1e-6
    assert same_loss == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_micro_batches_of_the_perception_term(
    with_gradient: bool, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once or one by one: the same loss and gradient to 1e-12 in float64."""
    strict_float64(monkeypatch)
    policy = policy_of(qwen_folders).double()
    term = PerceptionObjective(PerceptionTerm(term="perception_kl", masked_gradient=with_gradient), 1.0)
    found = []
    for budget in (BUDGET, 1):
        groups = given_groups(policy, torch.float64)
        term.prepare(policy, groups, "0", budget)
        found.append((measure(term, policy, Update(groups, [], "0"), budget), gradients(policy)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert worst_difference(found[0][1], found[1][1]) < 1e-12


def test_nothing_to_look_at(qwen_folders: dict[str, Path]) -> None:
    """Groups without images: no forward at all."""
    policy = policy_of(qwen_folders)
    term, groups = PerceptionObjective(PerceptionTerm(term="perception_kl"), 1.0), given_groups(policy)[2:3]
    term.prepare(policy, groups, "0", BUDGET)
    assert measure(term, policy, Update(groups, [], "0")) == {"loss": 0.0}


def test_supervised_closes_a_thought_that_the_template_opens(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter inside the thought would be learned as an answer that no reward counts."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    monkeypatch.setitem(policy.processor.__dict__, "opened_thought", "<think>")
    given: list[str] = []
    original = terms.answered

    def recorded(prompts: Any, answers: Any, token: int) -> Any:
        given.extend(policy.processor.tokenizer.decode(ids) for ids in answers)
        return original(prompts, answers, token)

    monkeypatch.setattr(terms, "answered", recorded)
    list(
        SupervisedObjective(SupervisedTerm(term="supervised")).shares(policy, Update([], PAIRS, "0"), 10_000)
    )
    end = policy.processor.tokenizer.eos_token
    assert set(given) <= {f"</think>\n\n{letter}{end}" for letter in "AB"}
    assert len(given) == len(PAIRS)
