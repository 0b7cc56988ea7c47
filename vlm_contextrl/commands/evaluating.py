"""`eval`: benchmarks, selection probes, long texts; their data, and what there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    str,
    typer.Option(
        metavar="all|probes|NAME|DIR,...",
        help="The twelve, the selection probes, names of `eval list`, folders of pairs; commas between.",
    ),
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
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of a judge for open answers that rules find wrong.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="M", help="The judge's name at the endpoint.")
    ] = None,
    judge_key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = None,
    probe_mode: Annotated[
        Literal["logits", "generation"],
        typer.Option(help="Selection probes: by the options' logits, or by the letter of a reply."),
    ] = "logits",
    niah_lengths: Annotated[
        str, typer.Option(metavar="N,...", help="niah: tokens per prompt.")
    ] = "4096,8192,16384,32768",
    json_file: JsonFile = None,
) -> None:
    """Ask a model the benchmarks' questions and score its answers by rules.

    One process per benchmark; answers are on disk as they come, and the same command goes on after a kill. OUT/report.html shows the run.
    """
    if context.invoked_subcommand:
        return
    if model is None or out is None:
        raise ConfigError(
            f"eval: --{'out DIR' if model else 'model M'} is missing; see `vlm-contextrl eval --help`"
        )
    if (judge_url is None) != (judge_model is None) or (judge_key_variable and judge_url is None):
        raise ConfigError("--judge-url and --judge-model: give both, or neither and rules decide")
    everything = _chosen(benchmarks)
    judge = (
        {"url": judge_url, "model": judge_model, "key_variable": judge_key_variable} if judge_url else None
    )
    settings = _settings(
        model=model, adapter=str(adapter) if adapter else None, merge=merge, load_in_4bit=load_in_4bit, dtype=dtype, attention=attention,
        min_pixels=min_pixels, max_pixels=max_pixels, style=style, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size,
        data_root=data_root, limit=limit, judge=judge, probe_mode=probe_mode, niah_lengths=niah_lengths.split(","),
    )  # fmt: skip
    evaluate_all = leaf("vlm_contextrl.eval.runs:evaluate")
    with _bars(everything) as progress:
        results = evaluate_all(everything, settings, out, processes=processes, progress=progress)
    write_json(json_file, results)
    _show(results)
    print(f"report: {out / 'report.html'}")
    if failed := results["failed"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise InputError(f"{len(failed)} of {len(everything)} asked for have no result: {reasons}")


@app.command("list")
def list_benchmarks() -> None:
    """Show what a model can be asked: tasks, data, sizes, metrics, licences."""
    benchmarks = leaf("vlm_contextrl.eval.registry:BENCHMARKS").values()
    probes = leaf("vlm_contextrl.eval.selection_sets:SELECTION_SETS").values()
    texts = leaf("vlm_contextrl.eval.long_context:LONG_TEXTS")
    _print_table(
        ("benchmark", "samples", "data", "split", "stock metric", "licence"),
        [
            (b.name, f"{b.n:,}", b.parts[0].dataset, b.split, b.stock.metric if b.stock else "(asks a judge)", b.licence)
            for b in benchmarks
        ],
    )  # fmt: skip
    _print_table(
        ("selection probe", "rows", "data", "split", "source", "licence"),
        [(p.name, f"{p.part.n:,}", p.part.dataset, p.part.split, p.source, p.licence) for p in probes],
    )
    generated = ("as asked", "generated", "-")
    _print_table(
        ("long text", "samples", "data", "split", "licence"),
        [
            (name, *((f"{t.part.n:,}", t.part.dataset, t.part.split) if t.part else generated), t.licence)
            for name, t in texts.items()
        ],
    )
    print("Any folder of pairs is a selection probe, too.")


@app.command()
def fetch(
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")],
    benchmarks: Benchmarks = "all",
) -> None:
    """Fetch the benchmarks' data from the hub, for machines without a network."""
    parts = [part for asked in _chosen(benchmarks) for part in asked.parts]
    leaf("vlm_contextrl.eval.data_roots:fetch")(parts, data_root, print)


@app.command()
def fixtures(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder to write.")],
    rows: Annotated[int, typer.Option(min=4, metavar="N", help="Rows per task.")] = 4,
) -> None:
    """Write small made-up data in the published schema of every benchmark and selection set, to try a setup without any download."""
    leaf("vlm_contextrl.eval.fixtures:write_fixtures")(out, rows)
    leaf("vlm_contextrl.eval.selection_fixtures:write_selection_fixtures")(out, rows)
    print(f"out: {out}")


def _chosen(names: str) -> Any:
    return leaf("vlm_contextrl.eval.asked:chosen")(names)


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
def _bars(everything: Any) -> Iterator[Any]:
    """One bar per benchmark, probe or long text."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {asked.name: bar.add_task(asked.name, total=None, start=False) for asked in everything}

        def progress(asked: Any, done: int, total: int | None) -> None:
            task = tasks[asked.name]
            if not bar.tasks[task].started:
                bar.start_task(task)
            bar.update(task, completed=done, total=total)

        yield progress


def _show(results: dict[str, Any]) -> None:
    title = f"{results['model']}{' + ' + results['adapter'] if results['adapter'] else ''}"
    rows: list[tuple[str, ...]] = []
    for found in results["benchmarks"].values():
        stock = "-" if found["stock"] is None else f"{100 * found['stock']:.1f}"
        cut = f"{100 * found['truncated']:.0f}%"
        rows.append((found["benchmark"], *_percent(found["accuracy"]), stock, cut, str(found["rejects"])))
    if rows:
        rows.append(("average", *_percent(results["average"]), "", "", ""))
        show_table(title, ("benchmark", "accuracy", "95% interval", "n", "stock", "cut", "rejects"), rows)
    if results["probes"]:
        headers = ("probe", "accuracy (95%)", "both", "group", "bias A", "control")
        others = ("order_consistent_accuracy", "group_accuracy", "position_bias", "same_image_control")
        rows = []
        for name, found in results["probes"].items():
            value, interval, _ = _percent(found["selection_accuracy"])
            rows.append((name, f"{value} ({interval})", *(_percent(found[key])[0] for key in others)))
        show_table(title, headers, rows)
    if results["long_texts"]:
        lines = [
            (found["benchmark"], name, *_percent(entry))
            for found in results["long_texts"].values()
            for name, entry in {"all": found["accuracy"], **found["by_category"]}.items()
        ]
        show_table(title, ("long text", "of", "accuracy", "95% interval", "n"), lines)


def _print_table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    for row in (headers, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print()


def _percent(entry: dict[str, Any]) -> tuple[str, str, str]:
    if entry["value"] is None:
        return "-", "", str(entry["n"])
    value, low, high = (f"{100 * entry[key]:.1f}" for key in ("value", "low", "high"))
    return value, f"{low} .. {high}", f"{entry['n']:,}"
