"""A comparison as a table for a README (Markdown) or a paper (LaTeX with booktabs).

The best run of a row is bold only where its difference to the baseline is a verdict (`statistics.verdict`: the interval leaves out 0); a
baseline only where every other run is worse. Published numbers are never bold: they come from another harness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Result = Mapping[str, Any]

_MARKDOWN = {letter: f"\\{letter}" for letter in "\\`*_{}[]<>#|~"} | {"\n": " "}
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\n": " ", **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


class Row(NamedTuple):
    """One benchmark or the average, percent and points. differences: (value, low, high) per run but the first. bold: names of runs."""

    title: str
    n: int
    accuracies: dict[str, float]
    differences: dict[str, tuple[float, float, float]]
    published: tuple[float | None, ...]
    bold: frozenset[str]


def markdown_table(result: Result) -> str:
    """A GitHub table with a line that says how to read it."""
    methods = _methods(result)
    names = [_escaped(name, _MARKDOWN) for name in result["runs"]]
    mark = f" ({result['published']['mark']})" if methods else ""
    headers = ["benchmark", "n", names[0]]
    headers += [header for name in names[1:] for header in (name, "difference")]
    headers += [f"{method}{mark}" for method in methods]
    lines = [_joined(headers), _joined(["---", *["---:"] * (len(headers) - 1)])]
    for row in rows(result):
        cells = [_escaped(row.title, _MARKDOWN), f"{row.n}"]
        for name, accuracy in row.accuracies.items():
            cells.append(f"**{accuracy:.1f}**" if name in row.bold else f"{accuracy:.1f}")
            if name in row.differences:
                value, low, high = row.differences[name]
                cells.append(f"{value:+.1f} [{low:.1f}, {high:.1f}]")
        cells += ["" if value is None else f"{value:.1f}" for value in row.published]
        lines.append(_joined(cells))
    return "\n".join(lines) + f"\n\n{_escaped(caption(result), _MARKDOWN)}\n"


def latex_table(result: Result) -> str:
    """A `table` environment; needs the package booktabs."""
    methods = _methods(result)
    names = [_escaped(name, _LATEX) for name in result["runs"]]
    columns = "lr" + "r" + "rr" * (len(names) - 1) + "r" * len(methods)
    headers = ["Benchmark", "$n$", names[0]]
    headers += [header for name in names[1:] for header in (name, r"$\Delta$ [95\,\%]")]
    headers += [_escaped(method, _LATEX) for method in methods]
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if methods:
        first = len(headers) - len(methods)
        over = _escaped(str(result["published"]["mark"]), _LATEX)
        lines.append(" & " * first + rf"\multicolumn{{{len(methods)}}}{{c}}{{{over}}} \\")
        lines.append(rf"\cmidrule(lr){{{first + 1}-{len(headers)}}}")
    lines += [" & ".join(headers) + r" \\", r"\midrule"]
    blocks = ["\n".join(_latex_row(row) for row in block) for block in _blocks(result) if block]
    lines += ["\n\\midrule\n".join(blocks), r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\caption{{{_escaped(caption(result), _LATEX)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def rows(result: Result) -> list[Row]:
    """The benchmarks in the order of the registry, their average, the selection probes."""
    return [row for block in _blocks(result) for row in block]


def _blocks(result: Result) -> list[list[Row]]:
    average = [_row("Average", result["average"], result)] if result["average"] else []
    benchmarks, probes = (
        [_row(entry["benchmark"], entry, result) for entry in result[kind].values()]
        for kind in ("benchmarks", "probes")
    )
    return [benchmarks, average, probes]


def caption(result: Result) -> str:
    """What the numbers are, in one sentence or two."""
    said = (
        f"Accuracy in percent; difference to {result['baseline']} in points with its 95% interval (paired bootstrap over the same "
        "samples). Bold: best of the row, where the interval leaves out 0 and the sign test has p < 0.05."
    )
    if result["published"]:
        said += f" Published numbers: {result['published']['source']}, measured with another harness."
    return said


def _row(title: str, entry: Mapping[str, Any], result: Result) -> Row:
    accuracies = {name: 100 * found["value"] for name, found in entry["accuracy"].items()}
    differences = {
        name: (
            100 * found["difference"]["value"],
            100 * found["difference"]["low"],
            100 * found["difference"]["high"],
        )
        for name, found in entry["against_baseline"].items()
    }
    verdicts = {name: found["verdict"] for name, found in entry["against_baseline"].items()}
    best = {name for name, accuracy in accuracies.items() if accuracy == max(accuracies.values())}
    bold = {name for name in best if verdicts.get(name) == "better"}
    if best == {result["baseline"]} and set(verdicts.values()) == {"worse"}:
        bold = best
    published = entry.get("published") or {}
    shares = [published.get(method) for method in _methods(result)]
    return Row(
        title,
        entry["n"],
        accuracies,
        differences,
        tuple(None if share is None else 100 * share for share in shares),
        frozenset(bold),
    )


def _latex_row(row: Row) -> str:
    cells = [_escaped(row.title, _LATEX), f"{row.n}"]
    for name, accuracy in row.accuracies.items():
        cells.append(rf"\textbf{{{accuracy:.1f}}}" if name in row.bold else f"{accuracy:.1f}")
        if name in row.differences:
            value, low, high = row.differences[name]
            cells.append(f"${value:+.1f}$ {{\\scriptsize $[{low:.1f}, {high:.1f}]$}}")
    cells += ["" if value is None else f"{value:.1f}" for value in row.published]
    return " & ".join(cells) + r" \\"


def _methods(result: Result) -> list[str]:
    return list(result["published"]["methods"]) if result["published"] else []


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(letter, letter) for letter in text)


def _joined(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
