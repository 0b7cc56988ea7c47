"""The arms as runs: stages, terms at weight 0, the shipped configurations, what is interrupted and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.stopped_runs import Stopped, stop_at
from tests.tiny_models import (
    ODD_BYTES,
    given_update,
    gradients,
    image_pair,
    odd_bytes,
    records,
    run_config,
    tiny_policy,
    trainer_of,
)
from vlm_contextrl import scored_rollouts, terms
from vlm_contextrl.commands.arguments import run_config as shipped
from vlm_contextrl.commands.training import train as train_command
from vlm_contextrl.config import RunConfig, load_config
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.prompt_lengths import PairLength
from vlm_contextrl.stages import other_contexts
from vlm_contextrl.storage import read_pairs, write_rows
from vlm_contextrl.trainer import train

Make = Callable[..., RunConfig]
POLICY = {"term": "policy", "rewards": {ODD_BYTES: 1.0}}
TERMS = {
    "selection_loss": {"term": "selection_loss", "weight": 0.5, "pairs_per_update": 3, "reverse": True},
    "three_contexts": {"term": "selection_loss", "weight": 0.5, "pairs_per_update": 3, "contexts": 3},
    "selection_reward": {"term": "selection_reward", "ratio": 1.0, "reverse": True},
    "perception_kl": {"term": "perception_kl", "kl_coef": 0.5},
    "masked_gradient": {"term": "perception_kl", "masked_gradient": True},
    "supervised": {"term": "supervised", "pairs_per_update": 3},
}


def weights(run: Path) -> dict[str, Tensor]:
    (file,) = (run / "final").glob("*.safetensors")
    found: dict[str, Tensor] = load_file(file)
    return found


def same_weights(run: Path, other: Path) -> bool:
    found, expected = weights(run), weights(other)
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def assert_same_run(run: Path, expected: Path) -> None:
    for stream in ("metrics", "samples"):
        assert (run / f"{stream}.jsonl").read_bytes() == (expected / f"{stream}.jsonl").read_bytes()
    assert same_weights(run, expected)


@pytest.fixture(scope="session")
def varied_rows(tmp_path_factory: pytest.TempPathFactory, noise_rows: dict[str, Path]) -> dict[str, Path]:
    """The questions of noise, and six pairs that ask the same and answer differently."""
    folder = tmp_path_factory.mktemp("varied") / "pairs"
    changed = {"query": "How many?"}
    pairs = [
        ContrastivePair(
            **{**vars(image_pair(n)), **changed, "answer": str(n), "confounder_answer": str(n + 50)}
        )
        for n in range(6)
    ]
    write_rows(pairs, folder, recipe="noise", config={})
    return noise_rows | {"pairs": folder}


@pytest.fixture
def config(qwen_folders: dict[str, Path], varied_rows: dict[str, Path]) -> Make:
    return lambda **sections: run_config(
        qwen_folders["qwen2_5_vl"], varied_rows, **{"objective": [POLICY], **sections}
    )


# ---------------------------------------------------------------- weight 0


TUNINGS = ["full", pytest.param("lora", marks=pytest.mark.slow)]


def two_updates_a_step(tuning: str) -> dict[str, Any]:
    return {"steps": 2, "optim": {"prompts_per_update": 1}, "model": {"tuning": tuning}}


@pytest.fixture(scope="module")
def plain_runs(
    qwen_folders: dict[str, Path], varied_rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Of the policy term alone, by tuning."""

    @cache
    def run(tuning: str) -> Path:
        folder = tmp_path_factory.mktemp(tuning)
        sections = two_updates_a_step(tuning)
        train(run_config(qwen_folders["qwen2_5_vl"], varied_rows, objective=[POLICY], **sections), folder)
        return folder

    return run


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", TERMS)
def test_a_term_at_weight_0_changes_nothing(
    name: str,
    tuning: str,
    config: Make,
    plain_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, samples and shared metrics to the bit, over two steps of two updates each. The term's own metrics are there; at its
    weight it does change the weights. A random model never names a letter, so it is rewarded for odd bytes."""
    monkeypatch.setattr(
        scored_rollouts, "selection_rewards", lambda texts, letter, kind: odd_bytes(texts, [])
    )
    without, at_0 = plain_runs(tuning), tmp_path / "at 0"
    sections = two_updates_a_step(tuning)
    train(config(**sections, objective=[POLICY, TERMS[name] | {"weight": 0.0}]), at_0)
    train(config(**sections, objective=[POLICY, {"weight": 1.0} | TERMS[name]]), tmp_path / "with")
    assert same_weights(at_0, without)
    assert not same_weights(tmp_path / "with", without)
    of_questions = [each for each in records(at_0, "samples") if not each["id"].endswith("~select")]
    assert of_questions == records(without, "samples")
    for found, expected in zip(records(at_0, "metrics"), records(without, "metrics"), strict=True):
        assert {key: found[key] for key in expected} == expected
        assert len(found) > len(expected)


def no_reward(completions: list[str], rows: list[Any]) -> list[float]:
    return [0.0] * len(completions)


def test_a_step_without_gradient_stays_one(config: Make, tmp_path: Path) -> None:
    """All rewards equal: nothing moves, nor does it with a term at weight 0, whose zero gradients would let AdamW decay the weights."""
    policy = {"term": "policy", "rewards": {f"{no_reward.__module__}:no_reward": 1.0}}
    optim = {"learning_rate": 0.1, "weight_decay": 0.5}
    objective = [policy, TERMS["selection_loss"] | {"weight": 0.0}]
    train(config(objective=objective, optim=optim), tmp_path / "run")
    start = weights_of_folder(Path(config().model.path))
    assert all(torch.equal(weight, start[name]) for name, weight in weights(tmp_path / "run").items())


def weights_of_folder(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def test_policy_at_weight_0(config: Make, tmp_path: Path) -> None:
    """The gradient of the other term alone, to the bit."""
    found = []
    for weight, kept in ((0.0, [0, 1]), (1.0, [1])):
        policy = tiny_policy(Path(config().model.path))
        objective = [POLICY | {"weight": weight}, TERMS["selection_loss"]]
        trainer = trainer_of(config(objective=objective), tmp_path / str(weight), policy)
        trainer.terms = [trainer.terms[i] for i in kept]
        trainer.backward(given_update(policy))
        found.append(gradients(policy))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---------------------------------------------------------------- stages


SFT = {"steps": 2, "objective": [{"term": "supervised", "pairs_per_update": 4}]}


def test_stages(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two supervised steps, then three of GRPO: one run, steps counted through. The first have no rollouts, the others no supervised
    loss; the second stage begins like a run of its own from the weights of the first, with a fresh optimizer and schedule."""
    optim = {"schedule": "cosine", "learning_rate": 1e-3, "warmup_steps": 2}
    before = [SFT | {"learning_rate": 5e-3}]
    train(config(before=before, optim=optim, log={"save_every": 2, "keep_checkpoints": 9}), tmp_path / "run")
    metrics = records(tmp_path / "run", "metrics")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5]
    assert ["supervised_loss" in m for m in metrics] == [True, True, False, False, False]
    assert ["reward_mean" in m for m in metrics] == [False, False, True, True, True]
    assert {s["step"] for s in records(tmp_path / "run", "samples")} == {3, 4, 5}
    half, three_quarters, quarter = (
        0.5,
        (1 + 0.5) / 2,
        (1 - 0.5) / 2,
    )  # cosine over 2 steps: 1, 1/2; over 3: 1, 3/4, 1/4
    expected = [5e-3 * half * 1, 5e-3 * 1 * half, 1e-3 * half, 1e-3 * three_quarters, 1e-3 * quarter]
    assert [m["learning_rate"] for m in metrics] == pytest.approx(expected)
    assert metrics[1]["supervised_loss"] < metrics[0]["supervised_loss"]


def test_a_stage_is_a_run_from_its_start(config: Make, tmp_path: Path) -> None:
    """The second stage, from the saved weights, as a run of its own: the same steps but for their numbers. Samples depend on the step, so
    only the first is compared: its weights move by what a new optimizer's first step does."""
    changed = config(before=[SFT], steps=1, log={"save_every": 2, "keep_checkpoints": 9})
    train(changed, tmp_path / "run")
    policy = tiny_policy(Path(changed.model.path), train_vision=False)
    trainer = trainer_of(changed, tmp_path / "own", policy)
    saved = load_file(tmp_path / "run/checkpoints/step_000002/trainable.safetensors")
    named = dict(policy.named_parameters())
    with torch.no_grad():
        for name, weight in saved.items():
            named[name].copy_(weight)
    trainer.step(3)
    after = load_file(tmp_path / "run/checkpoints/step_000003/trainable.safetensors")
    assert all(torch.equal(named[name].detach(), after[name]) for name in after)
    assert any(not torch.equal(saved[name], after[name]) for name in after)


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 4]])
def test_interrupted_stages(stops: list[int], config: Make, tmp_path: Path) -> None:
    """Stopped within the first stage, between the two, and in the second."""
    changed = config(before=[SFT], log={"save_every": 1})
    train(changed, tmp_path / "unbroken")
    for n, step in enumerate(stops):
        with pytest.raises(Stopped):
            train(changed, tmp_path / "run", resume=n > 0, on_step=stop_at(step))
    train(changed, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_epochs_of_stages(config: Make, tmp_path: Path) -> None:
    """Six pairs, four per update, one and a half passes: ceil(9 / 4) = 3 steps; then five questions, two per step: 3 steps."""
    first = {"epochs": 1.5, "objective": SFT["objective"]}
    trainer = trainer_of(config(before=[first], steps=None, epochs=1.0), tmp_path)
    assert [(stage.first, stage.last) for stage in trainer.stages] == [(1, 3), (4, 6)]


# ---------------------------------------------------------------- rollouts of selections


def test_selections_beside_the_questions(config: Make, tmp_path: Path) -> None:
    """Two updates of two questions and, at a ratio of 1/2, one selection each. Rewards are 0 or 1."""
    objective = [POLICY, {"term": "selection_reward", "ratio": 0.5}]
    rollout = {"prompts_per_step": 4}
    train(config(objective=objective, rollout=rollout, log={"samples_per_step": 9}), tmp_path)
    samples = [each for each in records(tmp_path, "samples") if each["step"] == 1]
    assert [each["id"].endswith("~select") for each in samples] == [False] * 4 + [True] * 2
    assert all(set(each["rewards"]) <= {0.0, 1.0} and each["answer"] in "AB" for each in samples[4:])
    first = records(tmp_path, "metrics")[0]
    assert first["selection_reward_mean"] == pytest.approx(sum(sum(s["rewards"]) for s in samples[4:]) / 6)
    assert {"selection_truncated", "selection_completion_tokens", "selection_zero_variance_groups"} <= set(
        first
    )


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_all_terms_together_are_resumed(tuning: str, config: Make, tmp_path: Path) -> None:
    """Every stream of data and every random choice goes on where it was, with a KL to the starting model, too."""
    objective = [POLICY | {"kl_coef": 0.1}] + [
        TERMS[n] for n in ("three_contexts", "selection_reward", "perception_kl", "supervised")
    ]
    switches = {"pair_source": "random", "pairs_as_questions": "selection"}
    changed = config(
        steps=5, objective=objective, data=switches, model={"tuning": tuning}, log={"save_every": 2}, rollout={"prompts_per_step": 4}
    )  # fmt: skip
    train(changed, tmp_path / "unbroken")
    with pytest.raises(Stopped):
        train(changed, tmp_path / "run", on_step=stop_at(3))
    train(changed, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


# ---------------------------------------------------------------- data switches


def test_pairs_as_questions_in_a_run(config: Make, tmp_path: Path) -> None:
    """Five questions and twelve rows from six pairs, seventeen prompts a step: one pass has each once. The pairs also go to the term."""
    objective = [POLICY, TERMS["selection_loss"]]
    rollout, optim = {"prompts_per_step": 17}, {"prompts_per_update": 17}
    data = {"pairs_as_questions": "selection"}
    changed = config(
        objective=objective, data=data, rollout=rollout, optim=optim, steps=1, log={"samples_per_step": 99}
    )
    train(changed, tmp_path)
    ids = [each["id"] for each in records(tmp_path, "samples")]
    assert len(set(ids)) == 17
    assert sum(id.endswith("~select") for id in ids) == 12


def test_random_pairs_in_a_run(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the selection loss sees: contexts of two different pairs."""
    seen: list[ContrastivePair] = []
    original = terms.ask

    def recorded(processor: Any, pair: ContrastivePair, *args: Any, **kwargs: Any) -> Any:
        seen.append(pair)
        return original(processor, pair, *args, **kwargs)

    monkeypatch.setattr(terms, "ask", recorded)
    data = {"pair_source": "random"}
    train(config(objective=[POLICY, TERMS["selection_loss"]], data=data, steps=2), tmp_path / "random")
    contexts = {pair.context for pair in seen}
    assert len(seen) == len(contexts) == 6  # all that there are
    assert all(pair.confounder in contexts - {pair.context} for pair in seen)
    assert all(pair.confounder_answer != pair.answer for pair in seen)


def test_long_choices_are_measured(config: Make, tmp_path: Path) -> None:
    """A prompt of three images is longer than one of two: a limit between them refuses the choice among three, before anything is
    written."""
    lengths = []
    two, three = (config(objective=[POLICY, TERMS[name]]) for name in ("selection_loss", "three_contexts"))
    policy = tiny_policy(Path(two.model.path))
    assert two.data.pairs
    pairs = read_pairs(two.data.pairs)
    for changed in (two, three):
        length = PairLength(changed, other_contexts(changed, pairs))
        lengths.append(max(length(policy, pair, "direct") for pair in pairs))
    assert lengths[1] > lengths[0] + 4
    limit = {"max_prompt_tokens": lengths[0]}
    train(config(objective=[POLICY, TERMS["selection_loss"]], data=limit, steps=1), tmp_path / "two")
    with pytest.raises(DataError, match="^pairs: 6 of 6 prompts are longer"):
        train(config(objective=[POLICY, TERMS["three_contexts"]], data=limit), tmp_path / "three")
    assert not (tmp_path / "three").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective.1={term: perception_kl}", "objective.0={term: supervised}"], "exactly one `policy` term, found 0"),
        (["before=[{steps: 1, objective: [{term: perception_kl}]}]"], "perception_kl term: it needs a policy term beside it"),
        (["before=[{steps: 1, objective: [{term: policy}]}]"], "before.0: found a policy term"),
        (["before=[{objective: [{term: supervised}]}]"], "before.0: give exactly one of `steps` and `epochs`"),
        (["before=[{steps: 1, objective: []}]"], "before.0.objective"),
        (["before=[{steps: 1, objective: [{term: supervised}]}]", "objective.0.kl_coef=0.1"], "kl_coef is over 0 after other stages"),
        (["before=[{steps: 1, objective: [{term: supervised}]}]", "data.pairs=null"], "supervised term: data.pairs"),
        (["objective.1={term: selection_reward}", "data.pairs=null"], "selection_reward term: data.pairs"),
        (["objective.1={term: selection_loss, weight: 1, contexts: 3, orders: both}"], "orders: both is for two contexts"),
        (["objective.1={term: selection_loss, weight: 1, contexts: 5}"], "contexts"),
        (["objective.1={term: supervised}", "objective.2={term: selection_loss, weight: 1, pairs_per_update: 4}"], "does not lead"),
        (["objective=[{term: policy}, {term: supervised}, {term: selection_loss, weight: 1, pairs_per_update: 4}]"],
         "pairs_per_update differs (supervised 32, selection_loss 4), expected one number"),
        (["data.pairs_as_questions=selection", "data.pairs=null"], "data.pairs_as_questions needs pairs"),
        (["data.pair_source=random", "data.pairs=null"], "data.pair_source needs pairs"),
        (["data.pairs_as_questions=both"], "data.pairs_as_questions"),
        (["objective.0.variant=cispo", "objective.0.clip_high=0.3"], "no effect with variant: cispo"),
        (["data.pairs_share=0.2"], "data.pairs_share has no effect without data.pairs_as_questions"),
        (["objective.1={term: perception_kl, mask_rate: 0.5}"], "did you mean 'mask_ratio'"),
        (["before=[{steps: 1, objective: [{term: supervised, weigth: 1}]}]"], "did you mean 'weight'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(changes: list[str], message: str) -> None:
    start = [
        "name=x",
        "steps=1",
        "data.questions=q",
        "data.pairs=p",
        "objective=[{term: policy}, {term: perception_kl}]",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, None, start + changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the shipped arms

ARMS = ("grpo", "contextrl", "selection_reward", "da_sft", "da_rl", "papo")


def arm(name: str) -> dict[str, Any]:
    return load_config(RunConfig, shipped(f"tiny_{name}")).model_dump()


def test_arms_differ_from_grpo_in_what_they_are_named_for() -> None:
    """Whatever else differed would be mistaken for the objective's effect."""
    grpo = arm("grpo")
    for name in ARMS[1:]:
        other = arm(name)
        assert other["objective"][0] == grpo["objective"][0]
        added = [term["term"] for term in other["objective"][1:]]
        before = [term["term"] for stage in other["before"] for term in stage["objective"]]
        switch = other["data"]["pairs_as_questions"]
        assert (added, before, switch) == {
            "contextrl": (["selection_loss"], [], None),
            "selection_reward": (["selection_reward"], [], None),
            "da_sft": ([], ["supervised"], None),
            "da_rl": ([], [], "selection"),
            "papo": (["perception_kl"], [], None),
        }[name]
        for config in (grpo, other):
            config["data"] = {
                k: v
                for k, v in config["data"].items()
                if k not in ("pairs", "pairs_as_questions", "pairs_share")
            }
        same = set(grpo) - {"name", "objective", "before"}
        assert {key: other[key] for key in same} == {key: grpo[key] for key in same}
    papo = arm("papo")["objective"][1]
    assert (papo["mask_ratio"], papo["square_px"], papo["masked_gradient"]) == (0.6, 14, False)
    assert 0.01 <= papo["kl_coef"] <= 0.02
    assert 0.03 <= papo["entropy_coef"] == papo["masked_entropy_coef"] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_a_shipped_arm_trains_and_resumes(
    name: str, questions_folder: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    """`vlm-contextrl train tiny_NAME` with the embedded model: some steps of less data, unbroken, and stopped after each of two
    checkpoints."""
    overrides = [
        "steps=3", f"data.questions={questions_folder}", "data.eval_questions=null", "data.eval_pairs=null", "rollout.prompts_per_step=4",
        "optim.prompts_per_update=4", "log.save_every=1",
    ]  # fmt: skip
    settings = arm(name)
    if settings["data"]["pairs"]:
        overrides.append(f"data.pairs={pairs_folder}")
    if settings["before"]:
        overrides.append("before.0.steps=2")
    for at, term in enumerate(settings["objective"]):
        if "pairs_per_update" in term:
            overrides.append(f"objective.{at}.pairs_per_update=4")
    train_command(f"tiny_{name}", overrides, tmp_path / "unbroken")
    config = load_config(RunConfig, shipped(f"tiny_{name}"), overrides)
    for n, step in enumerate((1, 3)):
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", resume=n > 0, on_step=stop_at(step))
    train_command(f"tiny_{name}", overrides, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    metrics = records(tmp_path / "run", "metrics")
    assert len(metrics) == (5 if name == "da_sft" else 3)
    assert all(m["skipped_updates"] == 0 for m in metrics)
    assert json.loads((tmp_path / "run/final/config.json").read_text())
    start = weights_of_folder(Path(str(shipped("tiny_grpo").parents[1])) / "vlm_contextrl/tinyvl")
    assert any(
        not torch.equal(w.float(), start[n].float())
        for n, w in weights(tmp_path / "run").items()
        if n in start
    )
