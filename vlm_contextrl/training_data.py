"""What the steps of a run take from its questions and pairs. All that has to be known to go on is the position in three shuffled orders."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from vlm_contextrl.asked_pairs import Asked, ask
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.processing import Processor
from vlm_contextrl.streams import ShuffledStream

Part = Callable[[Sequence[int]], Sequence[int]]  # what one rank takes of the numbers of an update


class TrainingData:
    """Questions and pairs, of which those at `question_at` and `pair_at` are used. Orders depend on the seed only."""

    def __init__(
        self,
        questions: Sequence[QuestionRow],
        question_at: list[int],
        pairs: Sequence[ContrastivePair],
        pair_at: list[int],
        seed: int,
    ) -> None:
        self._rows, self._row_at, self._pairs, self._pair_at = questions, question_at, pairs, pair_at
        self.n_questions, self.n_pairs, self._seed = len(question_at), len(pair_at), seed
        self._streams = {
            name: ShuffledStream(max(1, n), seed, name)
            for name, n in (
                ("questions", self.n_questions),
                ("pairs", self.n_pairs),
                ("selections", self.n_pairs),
            )
        }

    def most_images(self) -> int:
        """Images of the question that has most."""
        return max((len(self._rows[i].images) for i in self._row_at), default=0)

    def questions(self, n_updates: int, per_update: int, part: Part) -> list[dict[int, QuestionRow]]:
        """A rank's questions of every update of a step, by their numbers in the step over all ranks."""
        taken = self._streams["questions"].take(n_updates * per_update)
        return [
            {p: self._rows[self._row_at[taken[p]]] for p in numbers}
            for numbers in _by_update(n_updates, per_update, part)
        ]

    def selections(
        self, step: int, n_updates: int, per_update: int, part: Part, processor: Processor, *, reverse: bool
    ) -> list[dict[int, Asked]]:
        """The same of pairs to be asked about, each in an order and, with `reverse`, in a direction drawn for it."""
        taken = self._streams["selections"].take(n_updates * per_update)

        def asked(p: int) -> Asked:
            pair = self._pairs[self._pair_at[taken[p]]]
            rng = random.Random(f"{self._seed}:selections:{step}:{pair.id}")
            return rng.choice(ask(processor, pair, rng, reverse=reverse))

        return [{p: asked(p) for p in numbers} for numbers in _by_update(n_updates, per_update, part)]

    def pairs(self, count: int, part: Part) -> list[ContrastivePair]:
        """A rank's pairs of one update, of `count` over all ranks."""
        return [self._pairs[self._pair_at[i]] for i in part(self._streams["pairs"].take(count))]

    def positions(self) -> dict[str, int]:
        return {name: stream.position for name, stream in self._streams.items()}

    def go_to(self, positions: dict[str, Any]) -> None:
        for name, stream in self._streams.items():
            stream.position = positions[name]


def _by_update(n_updates: int, per_update: int, part: Part) -> list[Sequence[int]]:
    return [part(range(n * per_update, (n + 1) * per_update)) for n in range(n_updates)]
