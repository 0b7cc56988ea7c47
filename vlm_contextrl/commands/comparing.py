"""`compare`: what differs between runs of `eval`, and what is noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import JsonFile, output_file
from vlm_contextrl.commands.results import show_table
from vlm_contextrl.result_files import write_json, write_text


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B [...]", help="Run folders of `eval`; the first is the baseline."),
    ],
    json_file: JsonFile = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page, with pictures of what changed.",
            callback=output_file,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", callback=output_file),
    ] = None,
    latex: Annotated[
        Path | None,
        typer.Option("--latex", metavar="FILE", help="Write a LaTeX table (booktabs).", callback=output_file),
    ] = None,
    published: Annotated[
        Literal["auto", "qwen2_5_vl_7b", "qwen3_vl_8b", "none"],
        typer.Option(help="The paper's numbers to stand beside; auto: by the name of the baseline's model."),
    ] = "auto",
    shown: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Changed samples on the page, per benchmark and direction."),
    ] = 4,
    allow_different_settings: Annotated[
        bool,
        typer.Option(
            "--allow-different-settings",
            help="Compare runs of another style, answer length, image size, limit, judge or data all the same.",
        ),
    ] = False,
) -> None:
    """Compare runs over the same samples, with paired intervals and sign tests.

    A difference is better or worse only when its interval leaves out 0 and the sign test agrees; else it is within noise.
    """
    comparison = leaf("vlm_contextrl.eval.compare:compare_runs")(
        runs,
        allow_different_settings=allow_different_settings,
        published_model=published,
        shown=shown if html else 0,
    )
    write_json(json_file, comparison.result)
    if html:
        write_text(html, leaf("vlm_contextrl.eval.compare_report:compare_page")(comparison))
    if markdown:
        write_text(markdown, leaf("vlm_contextrl.eval.tables:markdown_table")(comparison.result))
    if latex:
        write_text(latex, leaf("vlm_contextrl.eval.tables:latex_table")(comparison.result))
    _show(comparison.result)


def _show(result: dict[str, Any]) -> None:
    baseline = result["baseline"]
    average = [{"benchmark": "average", **result["average"]}] if result["average"] else []
    entries = [*result["benchmarks"].values(), *average, *result["probes"].values()]
    for name in result["runs"]:
        if name != baseline:
            headers = ("benchmark", "n", baseline, name, "difference (95% interval)", "detectable", "verdict")
            show_table(
                f"{name} against {baseline}", headers, [_row(entry, baseline, name) for entry in entries]
            )
    for entry in result["different_settings"]:
        values = ", ".join(f"{value!r} in {run}" for run, value in entry["values"].items())
        print(f"{entry['benchmark']}: {entry['setting']} differs: {values}")
    for name, reason in result["left_out"].items():
        print(f"left out: {name}: {reason}")
    for name, entry in [*result["benchmarks"].items(), *result["probes"].items()]:
        for run, keys in entry["only_in"].items():
            if keys:
                print(
                    f"{name}: {len(keys)} samples of {run} are not in all runs, first {'/'.join(keys[0])}; they are not compared"
                )


def _row(entry: dict[str, Any], baseline: str, name: str) -> tuple[str, ...]:
    found = entry["against_baseline"][name]
    value, low, high = (100 * found["difference"][key] for key in ("value", "low", "high"))
    detectable = found["detectable"]
    return (
        entry["benchmark"],
        f"{entry['n']:,}",
        *(f"{100 * entry['accuracy'][run]['value']:.1f}" for run in (baseline, name)),
        f"{value:+.1f} ({low:.1f} .. {high:.1f})",
        "-" if detectable is None else f"{100 * detectable:.1f}",
        found["verdict"],
    )
