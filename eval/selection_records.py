"""What a selection probe leaves per pair, and the measures of many pairs.

    by logits        margins, reverse_margins, control_margins: of the context over the confounder, context as A, context as B
    by generation    choices, reverse_choices, control_choices: "A", "B" or null, context as A, context as B

The reverse ones are of (A', C-, C+) and null when the confounder's answer is unknown; the control ones show the context in both places.
In each of them a pair is right (a tie counts one half), wrong, or unreadable, which is wrong:

    selection_accuracy         share of (pair, order) that is right
    order_consistent_accuracy  share of pairs right in both orders
    group_accuracy             share of pairs right in both orders and in both directions
    mean_margin                mean over pairs of the margin averaged over both orders; none by generation
    position_bias              share of (pair, order) that chooses A, a tie or an unreadable reply counting one half, minus one half
    same_image_control         selection_accuracy of the control: 0.5; less by half the share of unreadable replies
    unreadable                 share of (pair, order) whose reply names neither A nor B; none by logits

By logits these are the numbers of `vlm_contextrl.probe`. Intervals are bootstrapped over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.appended_lines import append_lines, cut_torn_line, read_lines
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.eval.settings import digest
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.prompts import selection_messages
from vlm_contextrl.row_schema import row_digest

Record = dict[str, Any]


def measures(records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """All measures of the module's docstring, {value, n, low, high} each."""
    right = [_right(record, "") for record in records]
    both_ways = [
        [*_right(record, ""), *_right(record, "reverse_")]
        for record in records
        if _shown(record, "reverse_") is not None
    ]
    control = [_right(record, "control_") for record in records]
    of_units = {
        "selection_accuracy": [_mean(orders) for orders in right],
        "order_consistent_accuracy": [float(min(orders) == 1) for orders in right],
        "group_accuracy": [float(min(orders) == 1) for orders in both_ways],
        "mean_margin": [_mean(record["margins"]) for record in records if "margins" in record],
        "position_bias": [_mean(_first(record)) - 0.5 for record in records],
        "same_image_control": [_mean(orders) for orders in control],
        "unreadable": [_mean([c is None for c in r["choices"]]) for r in records if "choices" in r],
    }
    return {name: bootstrap(values, seed) for name, values in of_units.items()}


def selection_shares(path: Path) -> dict[tuple[str, str], float]:
    """(id, digest of what was asked) -> share of both orders in which the context is chosen, of a probe's `per_pair.jsonl`."""
    records = list(read_lines(path, "delete it and run the probe again"))[1:]
    return {(record["id"], record["digest"]): _mean(_right(record, "")) for record in records}


def _shown(record: Record, which: str) -> list[Any] | None:
    found: list[Any] | None = record[f"{which}{'margins' if 'margins' in record else 'choices'}"]
    return found


def _right(record: Record, which: str) -> list[float]:
    """1, 0.5 or 0 with the context as A and as B."""
    shown = _shown(record, which)
    assert shown is not None, record["id"]
    if "margins" in record:
        return [_above_zero(margin) for margin in shown]
    return [float(choice == right) for choice, right in zip(shown, "AB", strict=True)]


def _first(record: Record) -> list[float]:
    """1 where A is chosen, 0 where B is, else 0.5; with the context as A and as B."""
    if "margins" in record:
        as_first, as_second = record["margins"]
        return [_above_zero(as_first), _above_zero(-as_second)]
    return [{"A": 1.0, "B": 0.0}.get(choice, 0.5) for choice in record["choices"]]


def _above_zero(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------- on disk


def pair_digest(pair: ContrastivePair) -> str:
    """sha256 of a pair's texts and pixels and of the words of its prompt."""
    texts = [side for side in (pair.context, pair.confounder) if isinstance(side, str)]
    messages = selection_messages(
        pair.query, pair.answer, pair.options, kind="text" if texts else "image", contexts=texts
    )
    return digest([row_digest(pair).hex(), messages])


class PairJournal:
    """`per_pair.jsonl`: a header, then a record per pair with the digest of what was asked, appended batch by batch."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Take up a file that a kill may have cut. Raises ConfigError when it was written under another header."""
        self._path = path
        self._known: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        lines = list(read_lines(path, "delete the line, its pair is then asked again"))
        if not lines:
            append_lines(path, [header])
        elif lines[0] != header:
            changed = sorted(key for key in {*lines[0], *header} if lines[0].get(key) != header.get(key))
            raise ConfigError(
                f"{path}: holds answers made with another {', '.join(changed)}; name another --out, or delete the file"
            )
        for record in lines[1:]:
            self._known[record["id"]] = record

    def find(self, pair_id: str, asked: str) -> Record | None:
        """The record of this very pair, or None."""
        record = self._known.get(pair_id)
        return record if record is not None and record["digest"] == asked else None

    def append(self, records: Sequence[Record]) -> None:
        """Write records and see them onto the disk."""
        append_lines(self._path, records)
        self._known |= {record["id"]: record for record in records}
