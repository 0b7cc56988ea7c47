"""`eval`: benchmarks, their data, and what there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import JsonFile
from vlm_contextrl.commands.results import show_table
from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.result_files import write_json

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Benchmarks = Annotated[
    str, typer.Option(metavar="all|NAME,...", help="Which benchmarks; `eval list` names them.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Local data as `eval fetch` leaves it; without it: the hub."),
]


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="tinyvl, a folder, a hub id; or oracle, wrong, first: checks of the data."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; the same again goes on.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="Adapter folder.")] = None,
    benchmarks: Benchmarks = "all",
    data_root: DataRoot = None,
    style: Annotated[
        Literal["direct", "reasoning", "plain"], typer.Option(help="How a question asks for its answer.")
    ] = "reasoning",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, the same for every benchmark.")
    ] = 2048,
    load_in_4bit: Annotated[
        bool, typer.Option("--load-in-4bit", help="Weights of the language model in 4 bits (extra qlora).")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Make the adapter part of the weights before answering.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of the weights; auto: bfloat16 on a GPU, else float32."),
    ] = "auto",
    attention: Annotated[
        Literal["auto", "flash", "varlen", "flex", "two_part"], typer.Option(help="Attention of the prompts.")
    ] = "auto",
    min_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Lower bound on an image's pixels.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Upper bound on an image's pixels.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions answered together; changes no answer.")
    ] = 8,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What generates (vllm: extra vllm).")
    ] = "transformers",
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes per benchmark, data parallel, one GPU each.")
    ] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N samples of each task.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Ask a model the benchmarks' questions and score its answers by rules.

    One process per benchmark; answers are on disk as they come, and the same command goes on after a kill.
    """
    if context.invoked_subcommand:
        return
    if model is None or out is None:
        raise ConfigError(
            f"eval: --{'out DIR' if model else 'model M'} is missing; see `vlm-contextrl eval --help`"
        )
    runs = import_module("vlm_contextrl.eval.runs")
    chosen = runs.chosen(benchmarks)
    settings = _settings(
        model=model, adapter=str(adapter) if adapter else None, merge=merge, load_in_4bit=load_in_4bit, dtype=dtype, attention=attention,
        min_pixels=min_pixels, max_pixels=max_pixels, style=style, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size,
        data_root=data_root, limit=limit,
    )  # fmt: skip
    with _bars(chosen) as progress:
        results = runs.evaluate(chosen, settings, out, processes=processes, progress=progress)
    write_json(json_file, results)
    _show(results, chosen)
    if failed := results["failed"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise InputError(f"{len(failed)} of {len(chosen)} benchmarks have no result: {reasons}")


@app.command("list")
def list_benchmarks() -> None:
    """Show the benchmarks: tasks, data, sizes, metrics, licences."""
    registry = import_module("vlm_contextrl.eval.registry")
    rows = [
        (
            b.name,
            f"{b.n:,}",
            b.parts[0].dataset,
            b.split,
            b.stock.metric if b.stock else "(asks a judge)",
            b.licence,
        )
        for b in registry.BENCHMARKS.values()
    ]
    headers = ("name", "samples", "data", "split", "stock metric", "licence")
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    for row in (headers, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def fetch(
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")],
    benchmarks: Benchmarks = "all",
) -> None:
    """Fetch the benchmarks' data from the hub, for machines without a network."""
    runs = import_module("vlm_contextrl.eval.runs")
    data_roots = import_module("vlm_contextrl.eval.data_roots")
    parts = [part for benchmark in runs.chosen(benchmarks) for part in benchmark.parts]
    data_roots.fetch(parts, data_root, print)


@app.command()
def fixtures(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder to write.")],
    rows: Annotated[int, typer.Option(min=4, metavar="N", help="Rows per task.")] = 4,
) -> None:
    """Write small made-up data in the published schema of every benchmark, to try a setup without any download."""
    import_module("vlm_contextrl.eval.fixtures").write_fixtures(out, rows)
    print(f"out: {out}")


def _settings(**values: Any) -> Any:
    from pydantic import ValidationError

    if values["dtype"] == "auto":
        import torch

        values["dtype"] = "bfloat16" if torch.cuda.is_available() else "float32"
    try:
        return leaf("vlm_contextrl.eval.settings:EvalSettings")(**values)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


@contextmanager
def _bars(benchmarks: Any) -> Iterator[Any]:
    """One bar per benchmark."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {b.name: bar.add_task(b.name, total=None, start=False) for b in benchmarks}

        def progress(benchmark: Any, done: int, total: int | None) -> None:
            task = tasks[benchmark.name]
            if not bar.tasks[task].started:
                bar.start_task(task)
            bar.update(task, completed=done, total=total)

        yield progress


def _show(results: dict[str, Any], benchmarks: Any) -> None:
    rows = []
    for b in benchmarks:
        if b.name in results["benchmarks"]:
            found = results["benchmarks"][b.name]
            stock = "-" if found["stock"] is None else f"{100 * found['stock']:.1f}"
            rows.append((b.title, *_percent(found["accuracy"]), stock, f"{100 * found['truncated']:.0f}%"))
        else:
            rows.append((b.title, "failed", "", "", "", ""))
    rows.append(("average", *_percent(results["average"]), "", ""))
    title = f"{results['model']}{' + ' + results['adapter'] if results['adapter'] else ''}"
    show_table(title, ("benchmark", "accuracy", "95% interval", "n", "stock", "cut"), rows)


def _percent(entry: dict[str, Any]) -> tuple[str, str, str]:
    if entry["value"] is None:
        return "-", "", str(entry["n"])
    value, low, high = (f"{100 * entry[key]:.1f}" for key in ("value", "low", "high"))
    return value, f"{low} .. {high}", f"{entry['n']:,}"
