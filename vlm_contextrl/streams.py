"""Endless shuffled passes over a dataset whose whole state is one number."""

from __future__ import annotations

import random


class ShuffledStream:
    """Indices of 0..n-1 in passes, each pass in an order of its own that depends on seed, name and pass only."""

    def __init__(self, n: int, seed: int, name: str) -> None:
        self.n, self.seed, self.name = n, seed, name
        self.position = 0
        self._order: list[int] = []
        self._pass = -1

    def take(self, count: int) -> list[int]:
        """The next `count` indices."""
        return [self._next() for _ in range(count)]

    def _next(self) -> int:
        number, offset = divmod(self.position, self.n)
        if number != self._pass:
            self._order = list(range(self.n))
            random.Random(f"{self.seed}:{self.name}:{number}").shuffle(self._order)
            self._pass = number
        self.position += 1
        return self._order[offset]
