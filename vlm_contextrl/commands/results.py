"""How commands show and save what they found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def show_table(title: str, headers: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on stdout; cells are shown as they are, the first column on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    # Text from a dataset is data: no markup, no emoji codes, no colours by guess.
    Console(markup=False, emoji=False, highlight=False).print(table)


def show_summary(summary: Mapping[str, Any]) -> None:
    """One `key: value` line per entry, nested mappings on one line, lists by their length."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {number(entry)}" for name, entry in value.items()) or None
        if isinstance(value, list):
            value = f"{len(value)} (all of them with --json)" if value else None
        if value is not None:
            print(f"{key}: {number(value)}")


def number(value: object) -> str:
    """Short form of a number; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
