"""`probe`: what a model knows, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from vlm_contextrl.commands.arguments import JsonFile, PerPairFile
from vlm_contextrl.commands.results import number, show_table
from vlm_contextrl.result_files import write_json, write_jsonl

if TYPE_CHECKING:
    from vlm_contextrl.policy import Policy

R = TypeVar("R")

MEASURES = (
    "selection_accuracy",
    "order_consistent_accuracy",
    "same_image_control",
    "group_accuracy",
    "mean_margin",
    "position_bias",
)


def probe(
    model: Annotated[str, typer.Option(metavar="M", help="tinyvl, a local model folder or a hub id.")],
    pairs: Annotated[Path, typer.Option(metavar="DIR", help="Dataset folder of pairs.")],
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Adapter folder to load as well.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Questions to answer greedily, too.")
    ] = None,
    json_file: JsonFile = None,
    per_pair: PerPairFile = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the first N pairs and questions.")
    ] = None,
    batch_pairs: Annotated[int, typer.Option(min=1, metavar="N", help="Pairs per forward.")] = 16,
    style: Annotated[
        Literal["direct", "reasoning", "plain"], typer.Option(help="How the questions ask for their answer.")
    ] = "direct",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer to a question.")
    ] = 16,
) -> None:
    """Ask a model which of two contexts supports an answer.

    Every pair is shown in both orders and scored by the logits of A and B. A GPU is used when there is one.
    """
    from vlm_contextrl.foreign.rows import report_rejects
    from vlm_contextrl.storage import read_pairs, read_questions

    all_pairs = read_pairs(pairs)
    all_questions = read_questions(questions) if questions else None
    rejects = {"pairs": report_rejects(all_pairs, pairs)}
    if questions and all_questions is not None:
        rejects["questions"] = report_rejects(all_questions, questions)
    pair_rows = _first(all_pairs, limit)
    question_rows = None if all_questions is None else _first(all_questions, limit)
    policy, device, dtype = _load(model, adapter)

    from vlm_contextrl.intervals import bootstrap
    from vlm_contextrl.probe import probe as measure
    from vlm_contextrl.vqa import answer_questions

    with _bar("probe", len(pair_rows)) as advance:
        found = measure(policy, pair_rows, batch_pairs=batch_pairs, progress=advance)
    result: dict[str, Any] = {
        "model": model,
        "adapter": str(adapter) if adapter else None,
        "pairs": str(pairs),
        "device": device,
        "dtype": dtype,
        "rejects": rejects,
        **{name: found[name] for name in MEASURES},
    }
    if question_rows is not None:
        with _bar("answer", len(question_rows)) as advance:
            answered = answer_questions(
                policy, question_rows, style=style, max_new_tokens=max_new_tokens, progress=advance
            )
        result |= {"questions": str(questions), "style": style, "max_new_tokens": max_new_tokens}
        result["vqa_accuracy"] = bootstrap([float(each.correct) for each in answered])
    write_json(json_file, result)
    write_jsonl(per_pair, found["per_pair"])
    _show(result)


def _first(rows: Sequence[R], limit: int | None) -> Sequence[R]:
    """The first `limit` rows; without a limit the rows stay unread until they are needed."""
    return rows if limit is None else rows[:limit]


def _load(model: str, adapter: Path | None) -> tuple[Policy, str, str]:
    """Policy, device and dtype: a GPU when there is one, then in bfloat16, which is what 7B models fit in."""
    import torch

    from vlm_contextrl.config import ModelSettings
    from vlm_contextrl.models import load_policy

    on_gpu = torch.cuda.is_available()
    settings = ModelSettings(
        path=model, adapter=str(adapter) if adapter else None, dtype="bfloat16" if on_gpu else "float32"
    )
    device = "cuda" if on_gpu else "cpu"
    return load_policy(settings, device, trainable=False), device, settings.dtype


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


def _show(result: dict[str, Any]) -> None:
    rows = []
    for name in (*MEASURES, "vqa_accuracy"):
        if name in result:
            entry = result[name]
            interval = "" if entry["value"] is None else f"{entry['low']:.3f} .. {entry['high']:.3f}"
            value = "-" if entry["value"] is None else f"{entry['value']:.3f}"
            rows.append((name, value, interval, number(entry["n"])))
    title = f"{result['model']}{' + ' + result['adapter'] if result['adapter'] else ''} on {result['pairs']}"
    show_table(title, ("measure", "value", "95% interval", "n"), rows)
