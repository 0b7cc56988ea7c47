"""How commands show and save what they found."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

_NUMBER = re.compile(r"[+\-\u2212]?\d|[\u2013\u2014-]?$")  # the dash of a missing value, too
_WIDTH_OF_A_FILE = 1000


def show_table(title: str, headers: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on stdout; cells are shown as they are, the first column on the left, numbers on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    for place, header in enumerate(headers):
        is_number = all(_NUMBER.match(row[place]) for row in cells)
        table.add_column(header, overflow="fold", justify="right" if is_number else "left")
    for row in cells:
        table.add_row(*row)
    # Text from a dataset is data: no markup, no emoji codes, no colours by guess. Files and pipes have no width to fit.
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    console = Console(markup=False, emoji=False, highlight=False, width=width)
    console.print(table)
    console.print()


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
