"""`pairs`: make, import, split, describe and export datasets of contrastive pairs and questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_contextrl.commands import leaf, recipes
from vlm_contextrl.commands.arguments import (
    ConfigFile,
    JsonFile,
    ListSettings,
    NewFolder,
    Overrides,
    output_file,
)
from vlm_contextrl.commands.results import show_summary, show_table
from vlm_contextrl.errors import InputError
from vlm_contextrl.result_files import write_json, write_text

app = typer.Typer(help="Make, import, split, describe and export datasets.", no_args_is_help=True)


@app.command()
def render(
    out: NewFolder,
    overrides: Overrides = None,
    config: ConfigFile = None,
    json_file: JsonFile = None,
    list_settings: ListSettings = False,
) -> None:
    """Render pairs, or questions (rows=questions), with exact ground truth."""
    from vlm_contextrl.config import load_config

    settings = load_config(leaf("vlm_contextrl.data_recipes.render:RenderConfig"), config, overrides or [])
    summary = leaf("vlm_contextrl.data_recipes.render:run")(settings, out)
    write_json(json_file, summary)
    show_summary(summary)


for _recipe in (
    recipes.edit, recipes.retrieve, recipes.trajectories, recipes.compose,
    recipes.verify, recipes.difficulty, recipes.dedupe, recipes.decontaminate,
):  # fmt: skip
    app.command()(_recipe)


@app.command("import")
def import_(
    input_path: Annotated[
        Path,
        typer.Option(
            "--input", metavar="PATH", help="Parquet, an image folder, a .jsonl file, or a dataset folder."
        ),
    ],
    out: NewFolder,
    rows: Annotated[
        Literal["pairs", "questions"] | None,
        typer.Option("--rows", help="Which rows to take. Default: those of the first one's kind."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Licence of the rows that name none.")
    ] = "",
    json_file: JsonFile = None,
) -> None:
    """Read what others wrote, check every row, and keep it as a dataset folder."""
    from vlm_contextrl.foreign.imports import import_rows

    summary = import_rows(input_path, out, kind=rows, licence=licence, watch=_watch("import"))
    write_json(json_file, summary)
    show_summary(summary)


@app.command()
def export(
    input_folder: Annotated[Path, typer.Option("--input", metavar="DIR", help="Dataset folder.")],
    out: NewFolder,
    to: Annotated[
        Literal["imagefolder", "official", "trl", "parquet"],
        typer.Option("--to", help="The format to write."),
    ],
    seed: Annotated[int, typer.Option(help="Order of the two images (official, trl).")] = 0,
    style: Annotated[
        Literal["direct", "reasoning", "plain"], typer.Option(help="How questions ask for the answer (trl).")
    ] = "reasoning",
    json_file: JsonFile = None,
) -> None:
    """Write a dataset folder in a format of others."""
    from vlm_contextrl.exports import export_rows

    summary = export_rows(input_folder, out, to, seed=seed, style=style, watch=_watch("export"))
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
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with charts and 24 examples.", callback=output_file
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Write a picture of 6 rows (PNG).", callback=output_file
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Describe what a dataset folder holds: counts, a page, a picture of examples."""
    from vlm_contextrl.dataset_report.stats import stats as count

    found = count(input_folder)
    if html is not None:
        from vlm_contextrl.dataset_report.page import dataset_page

        found["balance"] = leaf("vlm_contextrl.data_recipes.curate.balance:balance")(input_folder)
        write_text(html, dataset_page(input_folder, balance=found["balance"]))
    if sheet is not None:
        from vlm_contextrl.dataset_report.contact_sheet import contact_sheet

        _save_png(contact_sheet(input_folder), sheet)
    write_json(json_file, found)
    _show_stats(found)


def _show_stats(found: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for group in ("domains", "recipes", "answer_types", "question_types", "licences", "answers", "rejected"):
        counts = found.get(group, {}).items()
        total = found["rejects"] if group == "rejected" else found["rows"]
        rows += [
            (group if i == 0 else "", name or "(none)", n, f"{n / total:.1%}")
            for i, (name, n) in enumerate(counts)
        ]
    for measure in ("changed_fraction", "similarity"):
        quantiles = {name: value for name, value in (found.get(measure) or {}).items() if name != "n"}
        rows += [
            (measure if i == 0 else "", name, f"{value:.4f}", "")
            for i, (name, value) in enumerate(quantiles.items())
        ]
    counted = f"{found['rows']} {found['kind']}, {found['rejects']} rejects"
    title = f"{found['path']}: {counted}, {found['distinct_answers']} distinct answers"
    show_table(title, ("field", "value", "rows", "share"), rows)
    for finding in (found.get("balance") or {}).get("unbalanced", ()):
        print(f"unbalanced: {finding['text']}")


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


def _watch(label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Counts rows as they pass, on a terminal."""

    def watch(rows: Iterable[Any]) -> Iterable[Any]:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield from progress.track(rows, total=len(rows) if isinstance(rows, Sized) else None)

    return watch


def _save_png(picture: Any, path: Path) -> None:
    unfinished = path.with_name(f".{path.name[:100]}.unfinished")
    try:
        picture.save(unfinished, "PNG", optimize=True)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        unfinished.unlink(missing_ok=True)
