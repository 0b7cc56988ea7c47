"""Pairs as the model is asked about them: selection prompts in one order or in both, in either direction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from vlm_contextrl.pairs import Context, ContrastivePair
from vlm_contextrl.probe import contexts, processed, selection_prompt
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.term_settings import SelectionTerm
from vlm_contextrl.training_rows import OtherContexts


class Asked(NamedTuple):
    """A selection prompt. support: index of the option whose context supports the answer."""

    pair: ContrastivePair  # in the direction in which it is asked
    prompt: EncodedPrompt
    support: int


def ask(
    processor: Processor,
    pair: ContrastivePair,
    rng: random.Random,
    *,
    both_orders: bool = False,
    reverse: bool = False,
    others: Sequence[Context] = (),
) -> list[Asked]:
    """The pair in an order of its contexts drawn from `rng`, or in both orders.

    reverse: then the same for (A', C-, C+) where the confounder's answer is known, in the same orders, so that one forward over the
    contexts serves both directions. others: further contexts to choose among; they support neither answer.
    """
    own = list(contexts(processor, pair))
    more = [processed(processor, context, f"pair {pair.id}, another context") for context in others]
    reversed_pair = pair.reversed() if reverse else None
    asked: list[Asked] = []
    turned: list[Asked] = []
    for at in [0, 1] if both_orders else [rng.randrange(2 + len(more))]:
        rest = list(
            range(1, 2 + len(more))
        )  # numbers of the contexts that do not support the answer; 1 is the confounder
        if more:
            rng.shuffle(rest)
        order = [*rest[:at], 0, *rest[at:]]
        shown = [(own + more)[number] for number in order]
        asked.append(Asked(pair, selection_prompt(processor, pair, shown), at))
        if reversed_pair is not None:
            turned.append(
                Asked(reversed_pair, selection_prompt(processor, reversed_pair, shown), order.index(1))
            )
    return asked + turned


def further_contexts(
    term: SelectionTerm, pair: ContrastivePair, other_contexts: OtherContexts | None
) -> list[Context]:
    """What a term's choice shows besides the pair's own two."""
    if term.contexts == 2:
        return []
    assert other_contexts is not None
    found = other_contexts.of(pair, term.contexts - 2, for_either_answer=term.reverse)
    return [context for context, _ in found]
