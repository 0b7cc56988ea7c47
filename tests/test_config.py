"""Configuration records: what is refused, and how the message leads to the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from vlm_contextrl.config import PolicyTerm, RunConfig, SelectionTerm, load_config, validate
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.records import Record, describe

MINIMAL = """\
name: run
steps: 10
data: {questions: q, pairs: p}
objective:
  - {term: policy}
  - {term: selection_loss, weight: 0.005}
"""


def from_text(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(RunConfig, path, overrides)


def refusal(tmp_path: Path, *overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def values() -> dict[str, Any]:
    return {"name": "run", "steps": 10, "data": {"questions": "q"}, "objective": [{"term": "policy"}]}


def test_minimal_configuration_takes_the_defaults(tmp_path: Path) -> None:
    config = from_text(tmp_path, MINIMAL)
    policy, selection = config.objective
    assert isinstance(policy, PolicyTerm)
    assert isinstance(selection, SelectionTerm)
    assert selection.weight == 0.005
    assert config.model.path == "tinyvl"
    assert config.data.pairs == Path("p")


def test_records_are_frozen(tmp_path: Path) -> None:
    config = from_text(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        config.seed = 1


def test_without_a_file_overrides_are_all() -> None:
    overrides = ["name=run", "steps=1", "data.questions=q", "objective=[{term: policy}]"]
    assert load_config(RunConfig, None, overrides).data.questions == Path("q")


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("sed=1", "sed", "seed"),
        ("optim.learning_rat=1e-5", "optim.learning_rat", "learning_rate"),
        ("model.lora.ranks=8", "model.lora.ranks", "rank"),
        ("data.question=x", "data.question", "questions"),
        ("objective.0.clip_hi=0.3", "clip_hi", "clip_high"),
        ("objective.1.clip_valu=5", "clip_valu", "clip_value"),
    ],
)
def test_unknown_key_names_the_nearest_one(tmp_path: Path, override: str, key: str, nearest: str) -> None:
    message = refusal(tmp_path, override)
    assert key in message
    assert f"did you mean {nearest!r}?" in message


def test_unknown_key_without_a_near_one_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rollout.zzz=1")
    assert "rollout.zzz" in message
    assert "completions_per_prompt" in message
    assert "temperature" in message


def test_keys_of_another_term_are_no_hint(tmp_path: Path) -> None:
    """`variant` is a key of the policy term only."""
    message = refusal(tmp_path, "objective.1.variant=grpo")
    assert (
        "known keys: clip, clip_value, contexts, orders, pairs_per_update, reverse, term, weight" in message
    )


def test_the_message_counts_further_problems(tmp_path: Path) -> None:
    assert "(and 1 more)" in refusal(tmp_path, "sed=1", "rollout.temperature=hot")


# ---------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("override", "where", "found"),
    [
        ("rollout.temperature=hot", "rollout.temperature", "'hot'"),
        ("rollout.temperature=0", "rollout.temperature", "0"),
        ("rollout.completions_per_prompt=1", "rollout.completions_per_prompt", "1"),
        ("steps=1.5", "steps", "1.5"),
        ("model.tuning=qlora", "model.tuning", "'qlora'"),
        ("optim.betas=[0.9]", "optim.betas", ""),
        ("log.trackers=[tensorbored]", "log.trackers.0", "'tensorbored'"),
        ("objective.1.orders=neither", "objective.1", "'neither'"),
        ("objective.0.term=polcy", "objective.0", "polcy"),
        ("objective=[]", "objective", ""),
    ],
)
def test_wrong_value_names_field_and_value(tmp_path: Path, override: str, where: str, found: str) -> None:
    message = refusal(tmp_path, override)
    assert where in message
    assert found in message


@pytest.mark.parametrize("missing", ["name", "data", "objective"])
def test_missing_key_is_named(missing: str) -> None:
    given = values()
    del given[missing]
    with pytest.raises(ConfigError, match=f"here: {missing} is missing"):
        validate(RunConfig, given, "here")


# ---------------------------------------------------------------- rules across fields


def test_steps_and_epochs_exclude_each_other(tmp_path: Path) -> None:
    assert "exactly one of `steps` and `epochs`" in refusal(tmp_path, "epochs=1")
    assert "exactly one of `steps` and `epochs`" in refusal(tmp_path, "steps=null")
    assert from_text(tmp_path, MINIMAL, "steps=null", "epochs=0.5").epochs == 0.5


def test_prompts_per_step_is_a_multiple_of_prompts_per_update(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rollout.prompts_per_step=100", "optim.prompts_per_update=64")
    assert "100" in message
    assert "64" in message


def test_selection_needs_pairs(tmp_path: Path) -> None:
    assert "data.pairs" in refusal(tmp_path, "data.pairs=null")


def test_exactly_one_policy_term(tmp_path: Path) -> None:
    assert "found 0" in refusal(tmp_path, "objective=[{term: selection_loss, weight: 1}]")
    assert "found 2" in refusal(tmp_path, "objective=[{term: policy}, {term: policy}]")


def test_no_term_twice(tmp_path: Path) -> None:
    twice = "{term: selection_loss, weight: 1}"
    assert "twice" in refusal(tmp_path, f"objective=[{{term: policy}}, {twice}, {twice}]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.tuning=lora", "model.train_vision=true"), "lora.vision"),
        (("model.tuning=full", "model.dtype=bfloat16"), "expected float32"),
        (("model.min_pixels=1000", "model.max_pixels=10"), "over max_pixels"),
        (("log.eval_every=5", "data.eval_pairs=null", "data.eval_questions=null"), "data.eval_pairs"),
        (("objective.1.weight=.nan",), "objective.1"),
        (("objective.0.weight=-1",), "objective.0"),
        (("optim.learning_rate=.inf",), "finite"),
        (("objective.0.rewards={}",), "rewards"),
        (("objective.0.clip_low=1.5",), "clip_low"),
        (("optim.betas=[2, 3]",), "betas"),
        (("name=../../evil",), "name"),
        (("name=..",), "name"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, *overrides)


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.0e-5", 1e-5), ("2e-6", 2e-6), ("0.001", 0.001)],
)
def test_exponents_are_numbers(tmp_path: Path, override: str, expected: float) -> None:
    """YAML 1.1 reads 1e-5 without a point as text."""
    assert from_text(tmp_path, MINIMAL, f"optim.learning_rate={override}").optim.learning_rate == expected


def test_exponents_in_a_file_are_numbers(tmp_path: Path) -> None:
    assert from_text(tmp_path, MINIMAL + "optim: {learning_rate: 1e-5}\n").optim.learning_rate == 1e-5


def test_later_overrides_win_and_reach_into_lists(tmp_path: Path) -> None:
    config = from_text(
        tmp_path,
        MINIMAL,
        "seed=1",
        "seed=2",
        "objective.1.weight=1e-3",
        "optim.betas=[0.8, 0.95]",
        "log.trackers=[tensorboard]",
        "objective.0.rewards.accuracy=1",
        "model.chat_template.enable_thinking=true",
    )
    assert config.seed == 2
    assert config.objective[1].weight == 1e-3
    assert config.optim.betas == (0.8, 0.95)
    assert config.log.trackers == ["tensorboard"]
    assert isinstance(config.objective[0], PolicyTerm)
    assert config.objective[0].rewards == {"accuracy": 1.0}
    assert config.model.chat_template == {"enable_thinking": True}


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert from_text(tmp_path, MINIMAL, "data.questions=a=b").data.questions == Path("a=b")


@pytest.mark.parametrize(
    "override",
    ["seed", "=1", "objective.7.weight=1", "objective.x.weight=1", "name.first=x", "seed=[1"],
)
def test_override_that_leads_nowhere_is_named(tmp_path: Path, override: str) -> None:
    assert repr(override) in refusal(tmp_path, override)


# ---------------------------------------------------------------- files


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(RunConfig, tmp_path / "none.yaml")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not readable"):
        load_config(RunConfig, tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx: 1", "!!python/object:os.system {}"])
def test_invalid_yaml(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, text=text)
    assert "run.yaml" in message
    assert "YAML" in message


def test_top_level_must_be_a_mapping(tmp_path: Path) -> None:
    assert "found list at the top level" in refusal(tmp_path, text="- 1\n")


def test_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    assert "name is missing" in refusal(tmp_path, text="")


# ---------------------------------------------------------------- description


class Inner(Record):
    depth: int = Field(3, description="how deep")


class Outer(Record):
    name: str
    inner: Inner = Inner(depth=4)
    other: Inner | None = Field(None, description="another one")
    many: list[Inner] = Field([])


def test_settings_are_described_with_their_defaults() -> None:
    assert list(describe(Outer)) == [
        ("name", "(needed)", ""),
        ("inner.depth", "4", "how deep"),
        ("other", "null", "another one"),
        ("other.depth", "3", "how deep"),
        ("many", "[]", ""),
    ]
