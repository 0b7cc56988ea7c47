"""`pairs`: make, split and describe datasets of contrastive pairs and questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import ConfigFile, JsonFile, NewFolder, Overrides
from vlm_contextrl.commands.results import show_summary, show_table, write_json
from vlm_contextrl.errors import InputError

app = typer.Typer(help="Make, split and describe datasets.", no_args_is_help=True)


@app.command()
def render(
    out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None
) -> None:
    """Render pairs, or questions (rows=questions), with exact ground truth."""
    from vlm_contextrl.config import load_config

    settings = load_config(leaf("vlm_contextrl.data_recipes.render:RenderConfig"), config, overrides or [])
    summary = leaf("vlm_contextrl.data_recipes.render:run")(settings, out)
    write_json(json_file, summary)
    show_summary(summary)


@app.command()
def split(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", metavar="DIR", help="Dataset folder; repeat to split several jointly."),
    ],
    out: NewFolder,
    fractions: Annotated[
        str, typer.Option(metavar="NAME=SHARE,...", help="Splits and their shares, which sum to 1.")
    ] = "train=0.8,test=0.2",
    seed: Annotated[int, typer.Option(help="Which rows go where.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Split dataset folders so that no image and no scene is on two sides."""
    from vlm_contextrl.splits import run_split

    summary = run_split(_by_name(inputs), out, parse_fractions(fractions), seed)
    write_json(json_file, summary)
    rows = [
        (name, split, part["rows"], part["folder"])
        for name, parts in summary["inputs"].items()
        for split, part in parts.items()
    ]
    show_table("", ("input", "split", "rows", "folder"), rows)


@app.command()
def stats(
    input_folder: Annotated[Path, typer.Option("--input", metavar="DIR", help="Dataset folder.")],
    json_file: JsonFile = None,
) -> None:
    """Count what a dataset folder holds."""
    from vlm_contextrl.dataset_stats import stats as count

    found = count(input_folder)
    write_json(json_file, found)
    rows: list[tuple[object, ...]] = []
    for group in ("domains", "recipes", "answer_types", "question_types", "licences", "answers"):
        counts = found[group].items()
        rows += [
            (group if i == 0 else "", name or "(none)", n, f"{n / found['rows']:.1%}")
            for i, (name, n) in enumerate(counts)
        ]
    if found["changed_fraction"]:
        quantiles = {name: value for name, value in found["changed_fraction"].items() if name != "n"}
        rows += [
            ("changed_fraction" if i == 0 else "", name, f"{value:.4f}", "")
            for i, (name, value) in enumerate(quantiles.items())
        ]
    counted = f"{found['rows']} {found['kind']}, {found['rejects']} rejects"
    title = f"{found['path']}: {counted}, {found['distinct_answers']} distinct answers"
    show_table(title, ("field", "value", "rows", "share"), rows)


def parse_fractions(text: str) -> dict[str, float]:
    """`train=0.8,test=0.2` as a mapping; InputError when it reads otherwise."""
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            raise InputError(
                f"--fractions: found {part.strip()!r}, expected NAME=SHARE as in train=0.8"
            ) from None
        if name in fractions:
            raise InputError(f"--fractions: split {name!r} is named twice")
        fractions[name] = value
    return fractions


def _by_name(folders: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise InputError(
                f"--input: {named[name]} and {folder} share the name {name!r}; rename one of them"
            )
        named[name] = folder
    return named
