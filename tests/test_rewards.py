"""Rewards: built-in values, loading by name, and that no failure becomes a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl.errors import ConfigError, RewardError
from vlm_contextrl.rewards import accuracy, combined_rewards, load_reward

ROWS: list[Mapping[str, Any]] = [
    {"id": "q1", "answer": "red", "answer_type": "exact", "options": ()},
    {"id": "q2", "answer": "B", "answer_type": "choice", "options": ("square", "circle")},
    {"id": "q3", "answer": "12 cm", "answer_type": "numeric", "options": ()},
]


def length(completions: list[str], rows: list[Mapping[str, Any]]) -> list[float]:
    """A user's reward, loaded by its dotted name below."""
    return [float(len(text)) for text in completions]


NOT_A_FUNCTION = 3


def test_accuracy() -> None:
    assert accuracy(["Red.", "circle", "12"], ROWS) == [1.0, 1.0, 1.0]
    assert accuracy(["red or blue", "A or B", "12 m"], ROWS) == [0.0, 0.0, 0.0]
    assert accuracy(["\\boxed{red}", "<answer>B</answer>", "The answer is 12 cm."], ROWS) == [1.0, 1.0, 1.0]


def test_format_depends_on_the_style() -> None:
    completions = ["red", "Round, so \\boxed{B}", "so\nmany\nlines"]
    assert load_reward("format")(completions, ROWS) == [1.0, 1.0, 0.0]
    assert load_reward("format", style="reasoning")(completions, ROWS) == [0.0, 1.0, 0.0]


def test_load_by_path() -> None:
    for path in ("math:fsum", "math.fsum"):
        assert load_reward(path) is math.fsum
    assert load_reward("os:path.join").__name__ == "join"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", r"'acuracy' is unknown; did you mean 'accuracy'\?"),
        ("formatting", r"did you mean 'format'\?"),
        ("", r"did you mean"),
        ("no_such_package.rewards:f", r"'no_such_package.rewards' cannot be imported .*PYTHONPATH"),
        ("math:no_such_function", r"module 'math' has no 'no_such_function'"),
        ("math.pi", r"'math.pi' is a float, expected a function"),
        (":f", r"unknown"),
        ("math:", r"unknown"),
    ],
)
def test_load_errors_name_the_way_out(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_reward(name)


def test_a_module_that_fails_when_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_reward.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match="importing module 'odd_reward' failed: ZeroDivisionError: division by zero"
    ):
        load_reward("odd_reward:score")


def test_combined_by_hand() -> None:
    """Accuracy [1, 0, 1], length [3, 1, 2]; weights 1 and -0.1:

    1 - 0.3 = 0.7, 0 - 0.1 = -0.1, 1 - 0.2 = 0.8. The single rewards come back unweighted.
    """
    totals, single = combined_rewards(
        [("accuracy", accuracy, 1.0), ("length", length, -0.1)], ["red", "A", "12"], ROWS
    )
    assert totals == pytest.approx([0.7, -0.1, 0.8], abs=1e-12)
    assert single == {"accuracy": [1.0, 0.0, 1.0], "length": [3.0, 1.0, 2.0]}


def test_scalars_of_other_libraries_are_numbers() -> None:
    import numpy as np
    import torch

    def mixed(completions: list[str], rows: list[Mapping[str, Any]]) -> list[Any]:
        return [np.float32(0.5), torch.tensor(0.25), True]

    assert combined_rewards([("mixed", mixed, 1.0)], ["a", "b", "c"], ROWS)[0] == [0.5, 0.25, 1.0]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, "1.0", [1.0], {}])
def test_a_value_that_is_no_finite_number_names_reward_and_row(bad: object) -> None:
    def broken(completions: list[str], rows: list[Mapping[str, Any]]) -> list[Any]:
        return [bad if row["id"] == "q2" else 1.0 for row in rows]

    with pytest.raises(RewardError, match=r"'broken' returned .* for row 'q2'"):
        combined_rewards([("accuracy", accuracy, 1.0), ("broken", broken, 1.0)], ["a", "b", "c"], ROWS)


@pytest.mark.parametrize(
    ("result", "shown"), [([1.0], "1 values"), ([1.0] * 4, "4 values"), (None, "NoneType"), (1.0, "float")]
)
def test_a_wrong_length_is_an_error(result: Any, shown: str) -> None:
    with pytest.raises(RewardError, match=f"'short' returned {shown} for 3 completions .*'q1', 'q2', 'q3'"):
        combined_rewards([("short", lambda completions, rows: result, 1.0)], ["a", "b", "c"], ROWS)


def test_an_exception_names_the_row_that_raises() -> None:
    def divides(completions: list[str], rows: list[Mapping[str, Any]]) -> list[float]:
        return [1 / (len(text) - 1) for text in completions]

    with pytest.raises(RewardError, match="'divides' failed on row 'q3': ZeroDivisionError") as caught:
        combined_rewards([("divides", divides, 1.0)], ["aa", "bb", "c"], ROWS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_that_needs_the_whole_batch_names_all_rows() -> None:
    def fails_on_many(completions: list[str], rows: list[Mapping[str, Any]]) -> list[float]:
        if len(completions) > 1:
            raise OSError("server is gone")
        return [0.0]

    with pytest.raises(
        RewardError, match=r"failed on rows 'q1', 'q2', 'q3' and 1 more: OSError: server is gone"
    ):
        combined_rewards([("judge", fails_on_many, 1.0)], ["a"] * 4, [*ROWS, {"id": "q4"}])


def test_a_row_whose_answer_is_no_option_is_reported() -> None:
    bad = {"id": "q9", "answer": "E", "answer_type": "choice", "options": ("square", "circle")}
    with pytest.raises(RewardError, match="row 'q9': DataError"):
        combined_rewards([("accuracy", accuracy, 1.0)], ["B", "B"], [ROWS[1], bad])


def test_rewards_cannot_change_what_the_others_see() -> None:
    def greedy(completions: list[str], rows: list[Mapping[str, Any]]) -> list[float]:
        completions.clear()
        return [0.0] * len(rows)

    texts = ["red", "B", "12"]
    totals, _ = combined_rewards([("greedy", greedy, 1.0), ("accuracy", accuracy, 1.0)], texts, ROWS)
    assert totals == [1.0, 1.0, 1.0]
    assert texts == ["red", "B", "12"]


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="2 completions for 3 rows"):
        combined_rewards([("accuracy", accuracy, 1.0)], ["a", "b"], ROWS)
    with pytest.raises(ConfigError, match="at least one"):
        combined_rewards([], ["a"], ROWS[:1])
    with pytest.raises(ConfigError, match="no name twice"):
        combined_rewards([("accuracy", accuracy, 1.0)] * 2, ["a"], ROWS[:1])
    with pytest.raises(ConfigError, match="weight nan"):
        combined_rewards([("accuracy", accuracy, math.nan)], ["a"], ROWS[:1])
