"""A read-only sequence whose rows are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

RowT_co = TypeVar("RowT_co", covariant=True)


class LazyRows(Sequence[RowT_co]):
    """Gives a subclass that knows `__len__` and `_row` the rest of a sequence.

    Negative indices count from the end; a slice is a list of rows.
    """

    @abstractmethod
    def _row(self, index: int) -> RowT_co:
        """The row at an index in [0, len)."""

    @overload
    def __getitem__(self, index: int) -> RowT_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowT_co]: ...
    def __getitem__(self, index: int | slice) -> RowT_co | list[RowT_co]:
        if isinstance(index, slice):
            return [self._row(position) for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(position)


class ChosenRows(LazyRows[RowT_co]):
    """Some rows of another sequence, by their indices."""

    def __init__(self, rows: Sequence[RowT_co], indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def _row(self, index: int) -> RowT_co:
        return self._rows[self._indices[index]]
