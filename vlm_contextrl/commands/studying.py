"""`study`: arms x seeds at equal budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_contextrl.commands.arguments import JsonFile, ListSettings, run_config
from vlm_contextrl.commands.results import show_table
from vlm_contextrl.result_files import write_json


def study(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="YAML file, or the name of a shipped one, e.g. study_tiny."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings by name, e.g. steps=50; --settings lists them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Study folder; the same again goes on.", show_default="runs/NAME"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, as `quick` of the file says.")] = False,
    json_file: JsonFile = None,
    list_settings: ListSettings = False,
) -> None:
    """Train every arm with every seed, measure all of them, compare.

    Cells that are finished are kept, those that were interrupted go on; a cell that failed is tried again.
    """
    from vlm_contextrl.study.run import CellsFailedError, run_study
    from vlm_contextrl.study.tables import (
        COST_PARTS,
        LABELS,
        accuracy_rows,
        cost_headers,
        cost_rows,
        difference_rows,
    )

    result, folder = run_study(run_config(config), out, overrides or [], quick=quick)
    write_json(json_file, result)
    # Headers of several lines, and the cost in two tables: for terminals of 80 columns.
    measures = ("arm", *(label.replace(", ", ",\n") for label in LABELS.values()))
    show_table("Accuracy, % (95% interval)", measures, accuracy_rows(result))
    show_table(f"Minus {result['baseline']}, points", measures, difference_rows(result))
    headers = [header.replace(" ", "\n") for header in cost_headers(result["baseline"])]
    rows = cost_rows(result)
    for title, places in COST_PARTS.items():
        show_table(title, [headers[i] for i in places], [[row[i] for i in places] for row in rows])
    print(f"Report: {folder / 'study.html'}")
    if result["failed"]:
        names = "; ".join(f"{name}: {reason}" for name, reason in result["failed"].items())
        raise CellsFailedError(f"cells failed: {names}; the same command tries them again")
