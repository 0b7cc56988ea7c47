"""What would give the answer away without being understood, and how much of it a dataset holds.

`telling` names stand in the question or in an answer and in exactly one of the two contexts. They are masked there; so are the ids of the
tasks. Names in both contexts stay: they tell nothing. In the question, names are identifiers with an underscore, a digit or a hump, numbers
and paths (`names_in`); in an answer, which is code, every word of three letters that is no keyword is one (`identifiers_in`).

`lexical_outcome`: does a bag of words pick the right context? It takes the one that holds more of the distinct words of question and
answer. 1 is right, 1/2 a tie, averaged over both directions of a pair: a reader of words alone gets 1/2 on a clean dataset, and a
long context wins nothing, for it wins in both directions. `longer_outcome` and `masks_outcome` ask the same of two cues that masking
may leave: a longer answer going with the longer context, and with the one that has more masks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from keyword import iskeyword

from vlm_contextrl.data_recipes.trajectories.masking import MASK, name_pattern

_PATH = re.compile(
    r"(?<![\w/.-])(?:[\w.-]+/)+[\w.-]+|\b[\w-]+\.(?:py|pyx|cfg|toml|rst|md|txt|ini|json|ya?ml|js|ts|go|rs|java|c|h|cpp)\b"
)
_WORD = re.compile(r"[A-Za-z_]\w{2,}|\d{3,}")
_NAME = re.compile(r"\w*(?:[a-z0-9][A-Z]|[A-Za-z]\d|[A-Za-z0-9]_[A-Za-z0-9]|[A-Z]{2}[a-z])\w*|_\w+|\d{3,}")
_ANY_WORD = re.compile(r"\w+")


def names_in(text: str) -> set[str]:
    """Names of a text."""
    words = {word for word in _WORD.findall(text) if _NAME.fullmatch(word)}
    return words | {path for found in _PATH.findall(text) if len(path := found.strip("./-")) > 2}


def identifiers_in(code: str) -> set[str]:
    """Words of code that are no keywords."""
    return {word for word in _WORD.findall(code) if not iskeyword(word)}


def telling(names: Iterable[str], contexts: Sequence[str]) -> list[str]:
    """Names that exactly one of two contexts holds, in order."""
    ordered = sorted(name for name in set(names) if not name_pattern([name]).search(MASK))
    held = [{name for name in ordered if name_pattern([name]).search(context)} for context in contexts]
    return [name for name in ordered if (name in held[0]) != (name in held[1])]


@dataclass(frozen=True)
class Shown:
    """A pair as a shortcut sees it: the question, and each side's answer and context."""

    query: str
    answers: tuple[str, str]
    contexts: tuple[str, str]


def lexical_outcome(pair: Shown) -> tuple[float, float]:
    """(outcome, margin): right picks over both directions, and by how much more of the words the right contexts hold (sum of shares)."""
    bags = [set(_words(context)) for context in pair.contexts]
    margins = []
    for side in (0, 1):
        asked = set(_words(f"{pair.query}\n{pair.answers[side]}"))
        shares = [len(asked & bag) / max(len(asked), 1) for bag in bags]
        margins.append(shares[side] - shares[1 - side])
    return sum(_picked(margin) for margin in margins) / 2, sum(margins)


def longer_outcome(pair: Shown) -> float:
    """Is the longer answer's context the longer one?"""
    answers, contexts = (
        len(pair.answers[0]) - len(pair.answers[1]),
        len(pair.contexts[0]) - len(pair.contexts[1]),
    )
    return _picked(answers * contexts)


def masks_outcome(pair: Shown) -> float:
    """Is the longer answer's context the one with more masks?"""
    masks = [context.count(MASK) for context in pair.contexts]
    return _picked((len(pair.answers[0]) - len(pair.answers[1])) * (masks[0] - masks[1]))


def too_lexical(outcomes: Sequence[tuple[float, float]], limit: float) -> set[int]:
    """Positions of the pairs to reject, the widest margins first, until the mean outcome is at most `limit`."""
    left = {position: outcome for position, (outcome, _) in enumerate(outcomes)}
    total = sum(left.values())
    rejected: set[int] = set()
    for position in sorted(left, key=lambda at: (-outcomes[at][0], -outcomes[at][1], at)):
        remaining = len(left) - len(rejected)
        if not remaining or total / remaining <= limit or left[position] <= limit:
            break
        rejected.add(position)
        total -= left[position]
    return rejected


def _picked(margin: float) -> float:
    return 0.5 if abs(margin) < 1e-12 else float(margin > 0)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _ANY_WORD.findall(text)]
