"""The reviewed set as a new dataset folder beside the decisions: accepted pairs with what was said of them, the rest as rejects.

    reviewed-1, reviewed-2, ...    dataset folders; `verdicts["human"]` holds the decision, rejects.jsonl why a row is not there

The dataset that was reviewed is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vlm_contextrl.app.catalogue import Catalogue
from vlm_contextrl.app.decisions import DecisionLog, as_json
from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.storage import Manifest, write_rows


def export_reviewed(
    catalogue: Catalogue, log: DecisionLog, *, watch: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Path, Manifest]:
    """Write the accepted pairs; the folder and its manifest. watch: (pairs done, of how many).

    Raises InputError, with nothing written, while no pair is accepted.
    """
    log.refresh()
    states = [log.state(name) for name in catalogue.ids]
    if "accepted" not in states:
        raise InputError("no pair is accepted yet: nothing to export")
    out = _free(log.file.parent)
    rejects: list[tuple[str, str]] = []

    def accepted() -> Iterator[ContrastivePair]:
        for index, (name, state) in enumerate(zip(catalogue.ids, states, strict=True)):
            watch(index, len(states))
            try:
                pair = catalogue.pair(index)
            except DataError as error:
                rejects.append((name, f"broken: {error}"))
                continue
            if state != "accepted":
                rejects.append((name, _reason(log, name, state)))
                continue
            last = [one for one in log.standing(name) if one.decision == "accept"][-1]
            yield replace(pair, verdicts={**pair.verdicts, "human": as_json(last)})

    config = {
        "reviewed": str(catalogue.path),
        "input_content_hash": catalogue.content_hash,
        "decisions": log.file.name,
        "decision_lines": log.changed_since(0)[0],
    }
    manifest = write_rows(accepted(), out, recipe=catalogue.recipe, config=config, rejects=rejects)
    return out, manifest


def _reason(log: DecisionLog, name: str, state: str) -> str:
    said = "; ".join(
        f"{one.annotator}: {one.decision}{' (' + one.reason + ')' if one.reason else ''}"
        for one in log.standing(name)
    )
    return f"{state}: {said}" if said else f"{state}: nobody decided on it"


def _free(folder: Path) -> Path:
    number = 1
    while (folder / f"reviewed-{number}").exists():
        number += 1
    return folder / f"reviewed-{number}"
