"""A run directory as a page, also while it trains: the report's curves, held-out measurements over time, and the latest samples.

Reads what `runlog` writes and nothing else. A last line that is being written is left for the next time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm_contextrl.appended_lines import read_lines
from vlm_contextrl.errors import DataError
from vlm_contextrl.report.chart_parts import finite
from vlm_contextrl.report.gallery import Sample
from vlm_contextrl.report.page import ReportData, render_report

STREAMS = ("metrics", "evals", "samples", "timings")
SHOWN_SAMPLES = 8
_TAIL_BYTES = 4 * 1024 * 1024  # of the samples, which grow by megabytes: the page shows the last step
_ADVICE = "was it edited? the run itself writes whole lines"


def run_version(run: Path) -> str:
    """Changes whenever the run has written something."""
    files = [run / "config.yaml", *(run / f"{stream}.jsonl" for stream in STREAMS)]
    return "-".join(f"{file.stat().st_size:x}" if file.is_file() else "0" for file in files)


def run_page(run: Path) -> str:
    """The whole page. Raises DataError when a file cannot be read."""
    metrics = list(read_lines(run / "metrics.jsonl", _ADVICE))
    evals = list(read_lines(run / "evals.jsonl", _ADVICE))
    config = _config(run / "config.yaml")
    return render_report(
        ReportData(
            title=f"Run {config.get('name') or run.resolve().name}",
            lead=_lead(metrics, config, (run / "final").is_dir()),
            metrics=metrics,
            evals=evals,
            samples=_samples(_last_lines(run / "samples.jsonl")),
            config=config,
            facts=_facts(run, metrics, list(read_lines(run / "timings.jsonl", _ADVICE))),
        )
    )


def run_words(run: Path) -> str:
    """How far the run is, in one line."""
    config = _config(run / "config.yaml")
    return _lead(list(read_lines(run / "metrics.jsonl", _ADVICE)), config, (run / "final").is_dir())


def _lead(metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any], is_finished: bool) -> str:
    if not metrics:
        return "No step yet."
    of = f" of {config['steps']}" if config.get("steps") else ""
    return f"Step {metrics[-1].get('step')}{of}, {'finished' if is_finished else 'not finished'}."


def _facts(
    run: Path, metrics: Sequence[Mapping[str, Any]], timings: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    facts = {"run directory": str(run), "steps recorded": str(len(metrics))}
    seconds = [
        sum(finite(record.get(name)) or 0.0 for name in ("rollout_s", "update_s")) for record in timings
    ]
    if seconds:
        last = seconds[-50:]
        facts["seconds per step"] = f"{sum(last) / len(last):.2f} (mean of the last {len(last)})"
    return facts


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    return found if isinstance(found, dict) else {}


def _last_lines(file: Path) -> list[dict[str, Any]]:
    """Records of the last step in the last few megabytes."""
    if not file.is_file():
        return []
    with file.open("rb") as opened:
        size = file.stat().st_size
        opened.seek(max(0, size - _TAIL_BYTES))
        lines = opened.read().split(b"\n")
    whole = lines[:-1] if size <= _TAIL_BYTES else lines[1:-1]
    found: list[dict[str, Any]] = []
    for line in reversed(whole):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}: a line is not JSON ({error}); {_ADVICE}") from error
        if not isinstance(record, dict) or (found and record.get("step") != found[0].get("step")):
            break
        found.append(record)
    return found[::-1]


def _samples(records: Sequence[Mapping[str, Any]]) -> list[Sample]:
    return [
        Sample(
            int(record.get("step") or 0),
            str(record.get("query", "")),
            str(record.get("answer", "")),
            [str(text) for text in record.get("completions") or ()],
            [finite(reward) or 0.0 for reward in record.get("rewards") or ()],
        )
        for record in records[:SHOWN_SAMPLES]
        if len(record.get("completions") or ()) == len(record.get("rewards") or ())
    ]
