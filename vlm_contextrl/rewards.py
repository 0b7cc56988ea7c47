"""Rewards: functions that give every completion a number. Built in: `accuracy` and `format`.

A reward takes the completions and, at the same index, the row that each one answers: a mapping with id,
answer, answer_type and options. It returns one finite number per completion. Anything else is a RewardError
that names the reward and the row, never a silent 0: a reward that fails quietly looks like a policy that
learns nothing.

Left out: rewards that see token ids or log-probs, asynchronous rewards, retries.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vlm_contextrl.answers import has_format, score_answer
from vlm_contextrl.errors import ConfigError, RewardError, first_line
from vlm_contextrl.prompts import Style

Row = Mapping[str, Any]
BUILT_IN = ("accuracy", "format")


class Reward(Protocol):
    """One finite number per completion; `rows[i]` is the row that `completions[i]` answers."""

    def __call__(self, completions: list[str], rows: list[Row], /) -> list[float]: ...


def accuracy(completions: list[str], rows: list[Row]) -> list[float]:
    """1 for a right answer, 0 for a wrong one or none; the comparison is that of the evaluation
    (`answers.py`)."""
    return [
        float(score_answer(text, row["answer"], row.get("answer_type", "exact"), row.get("options") or ()))
        for text, row in zip(completions, rows, strict=True)
    ]


def format_reward(completions: list[str], rows: list[Row], style: Style = "direct") -> list[float]:
    """1 for a completion in the form that the prompt style asks for, right or wrong, else 0."""
    return [float(has_format(text, style)) for text, _ in zip(completions, rows, strict=True)]


def load_reward(name: str, style: Style = "direct") -> Reward:
    """The built-in reward of this name, or a function of the user's: "pkg.module:function" or
    "pkg.module.function".

    style: the prompt style, which decides what `format` expects. Raises ConfigError.
    """
    if name == "accuracy":
        return accuracy
    if name == "format":
        return functools.partial(format_reward, style=style)
    module_name, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not module_name or not attribute:
        close = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)
        raise ConfigError(
            f"reward {name!r} is unknown; did you mean {close[0]!r}? Expected one of {', '.join(BUILT_IN)} "
            "or a function as 'package.module:function'"
        )
    try:
        function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except ImportError as error:
        raise ConfigError(
            f"reward {name!r}: module {module_name!r} cannot be imported ({error}); "
            "is its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"reward {name!r}: module {module_name!r} has no {attribute!r}") from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"reward {name!r}: importing module {module_name!r} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(function):
        raise ConfigError(f"reward {name!r} is a {type(function).__name__}, expected a function")
    reward: Reward = function
    return reward


def combined_rewards(
    rewards: Sequence[tuple[str, Reward, float]], completions: list[str], rows: list[Row]
) -> tuple[list[float], dict[str, list[float]]]:
    """Weighted sum per completion, and every reward by itself, unweighted.

    rewards: (name, function, weight) with distinct names. Raises RewardError, naming reward and row, when a
    function raises, returns the wrong number of values, or a value that is not a finite number.
    """
    if len(completions) != len(rows):
        raise ValueError(
            f"{len(completions)} completions for {len(rows)} rows; expected one row per completion"
        )
    names = [name for name, _, _ in rewards]
    if not rewards or len(set(names)) != len(names):
        raise ConfigError(f"rewards are {names}, expected at least one and no name twice")
    per_reward: dict[str, list[float]] = {}
    totals = [0.0] * len(completions)
    for name, function, weight in rewards:
        if not math.isfinite(weight):
            raise ConfigError(f"reward {name!r} has the weight {weight}, expected a finite number")
        values = _checked(name, function, completions, rows)
        per_reward[name] = values
        totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
    return totals, per_reward


def _checked(name: str, function: Reward, completions: list[str], rows: list[Row]) -> list[float]:
    try:
        found = function(list(completions), list(rows))
    except Exception as error:  # whatever a user's function raises, the message must say which row it was
        row = _culprit(function, completions, rows)
        raise RewardError(f"reward {name!r} failed on {row}: {type(error).__name__}: {error}") from error
    try:
        count = len(found)
    except TypeError:
        count = -1
    if count != len(completions):
        shown = type(found).__name__ if count < 0 else f"{count} values"
        raise RewardError(
            f"reward {name!r} returned {shown} for {len(completions)} completions ({_ids(rows)}); "
            "expected a list with one number each"
        )
    return [_number(name, value, row) for value, row in zip(found, rows, strict=True)]


def _number(name: str, value: object, row: Row) -> float:
    number = math.nan
    if value is not None and not isinstance(value, str | bytes):
        try:
            number = float(value)  # type: ignore[arg-type]  # bool, numpy and torch scalars are welcome
        except (TypeError, ValueError):
            number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"reward {name!r} returned {value!r} for row {row.get('id')!r}; expected a finite number"
        )
    return number


def _culprit(function: Reward, completions: list[str], rows: list[Row]) -> str:
    """Which row makes the function raise, found by giving it one row at a time; all of them when none does
    alone."""
    for completion, row in zip(completions, rows, strict=True):
        try:
            function([completion], [row])
        except Exception:
            return f"row {row.get('id')!r}"
    return _ids(rows)


def _ids(rows: list[Row]) -> str:
    shown = ", ".join(repr(row.get("id")) for row in rows[:3])
    return f"rows {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
