"""Looking things up in a scene: one or two words of a fact, answered by the facts that hold them.

The description of a scene lists its facts, one phrase each. A query is one word or two words of one phrase ("red", "circle top"),
sometimes with a word swapped for one of another scene, so that nothing may be found. It is what every question about a picture starts
with, without the grammar of a question. The vision stage and the `Look up` turns of the language stages ask the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SWAP_SHARE = 0.25
BACKGROUND_WEIGHT = 0.2  # the last phrase; seen at once and rarely asked for
SMALL_WORDS = ("a", "at", "of", "to")


@dataclass(frozen=True)
class Lookup:
    """`words` in the order of their phrase; `found` are the phrases that hold all of them."""

    words: tuple[str, ...]
    found: tuple[tuple[str, ...], ...]


def phrases_of(description: str) -> list[tuple[str, ...]]:
    """`a sign: cyan board, arrow up.` to (`cyan`, `board`), (`arrow`, `up`)."""
    facts = description.removesuffix(".").split(": ", 1)[-1]
    return [tuple(phrase.split()) for phrase in facts.split(", ")]


def lookups(description: str, n: int, vocabulary: tuple[str, ...], rng: Random) -> list[Lookup]:
    """`n` queries about one description; swapped words come from `vocabulary`."""
    phrases = phrases_of(description)
    weights = [1.0] * (len(phrases) - 1) + [BACKGROUND_WEIGHT]
    out = []
    for _ in range(n):
        phrase = [word for word in rng.choices(phrases, weights)[0] if word not in SMALL_WORDS]
        at = sorted(rng.sample(range(len(phrase)), min(len(phrase), rng.choice((1, 2)))))
        words = [phrase[i] for i in at]
        if vocabulary and rng.random() < SWAP_SHARE:
            words[rng.randrange(len(words))] = rng.choice(vocabulary)
        out.append(Lookup(tuple(words), tuple(p for p in phrases if set(words) <= set(p))))
    return out
