"""From the demo's measurements to `report.json` and the data of its report page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlm_contextrl.config import RunConfig
from vlm_contextrl.intervals import bootstrap, paired_gain
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.report.gallery import Example, Sample, choose
from vlm_contextrl.report.numbers import MEASURES
from vlm_contextrl.report.page import ReportData
from vlm_contextrl.storage import read_manifest, read_rows

SAMPLES_SHOWN = 3  # of the first step and of the last

FORMS = {"open question": False, "multiple choice": True}

Measured = Mapping[str, Any]  # measures, per_pair, per_question; what base.json and final.json hold


def summarise(base: Measured, final: Measured, *, steps: int, wall_s: float, seed: int) -> dict[str, Any]:
    """report.json (docs/results.md). Gains are paired: the same pairs and questions before and after."""
    sides = {"base": base, "final": final}
    questions = {side: [float(q["correct"]) for q in m["per_question"]] for side, m in sides.items()}
    choices = {side: [share_right(p["margins"]) for p in m["per_pair"]] for side, m in sides.items()}
    for unit in ("per_question", "per_pair"):
        assert [u["id"] for u in base[unit]] == [u["id"] for u in final[unit]], (
            f"{unit} differ between the measurements"
        )
    return {
        **{side: {name: measured[name] for name in MEASURES} for side, measured in sides.items()},
        "vqa_gain": paired_gain(questions["base"], questions["final"], seed),
        "selection_gain": paired_gain(choices["base"], choices["final"], seed),
        "steps": steps,
        "wall_s": wall_s,
        "seed": seed,
        "per_domain": {
            domain: {
                side: {
                    "vqa": _of("domain", domain, measured["per_question"], questions[side], seed),
                    "selection": _of("domain", domain, measured["per_pair"], choices[side], seed),
                }
                for side, measured in sides.items()
            }
            for domain in sorted({u["domain"] for unit in ("per_pair", "per_question") for u in base[unit]})
        },
        "per_form": {
            form: {
                side: _of("has_options", has_options, measured["per_question"], questions[side], seed)
                for side, measured in sides.items()
            }
            for form, has_options in FORMS.items()
        },
    }


def share_right(margins: Sequence[float]) -> float:
    """Share of the option orders that were chosen right; a tie counts one half, as in the probe."""
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / len(margins)


def report_data(
    summary: Mapping[str, Any],
    base: Measured,
    final: Measured,
    *,
    config: RunConfig,
    run_dir: Path,
    eval_pairs: Sequence[ContrastivePair],
    facts: Mapping[str, str],
    lead: str,
) -> ReportData:
    """Everything the page shows, read from the run directory and the datasets."""
    outcomes, chosen = choose(base["per_pair"], final["per_pair"], config.seed)
    return ReportData(
        title="ContextRL demo: TinyVL before and after training",
        lead=lead,
        summary=summary,
        metrics=read_jsonl(run_dir / "metrics.jsonl"),
        evals=read_jsonl(run_dir / "evals.jsonl"),
        margins_before=[sum(p["margins"]) / 2 for p in base["per_pair"]],
        margins_after=[sum(p["margins"]) / 2 for p in final["per_pair"]],
        examples=[
            Example(
                eval_pairs[i], tuple(base["per_pair"][i]["margins"]), tuple(final["per_pair"][i]["margins"])
            )
            for i in chosen
        ],
        outcomes=outcomes,
        samples=_samples(read_jsonl(run_dir / "samples.jsonl"), config.data.questions),
        config=config.model_dump(mode="json"),
        facts=facts,
    )


def facts(config: RunConfig, spent_s: Mapping[str, float], device: str) -> dict[str, str]:
    """Data, times, versions and hardware, in words."""
    data = config.data
    folders = {"questions": data.questions, "pairs": data.pairs}
    held_out = {"questions": data.eval_questions, "pairs": data.eval_pairs}

    def counts(of: Mapping[str, Path | None]) -> str:
        return " and ".join(f"{read_manifest(path).rows:,} {kind}" for kind, path in of.items() if path)

    packages = ("vlm-contextrl", "torch", "transformers", "accelerate", "peft", "datasets")
    return {
        "trained on": counts(folders),
        "measured on": f"{counts(held_out)}, held out by image and scene",
        "seed": str(config.seed),
        "time": f"{duration(sum(spent_s.values()))}: "
        + ", ".join(f"{k} {duration(s)}" for k, s in spent_s.items()),
        "hardware": hardware(device),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }


def hardware(device: str) -> str:
    """The processor, and the accelerator when one is used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{cores} CPU cores ({_processor()}, {platform.system()})"
    if device == "cpu":
        return cpu
    import torch

    return f"{torch.cuda.get_device_name(device)}, {cpu}"


def duration(seconds: float) -> str:
    """`8 min 12 s`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file, none when it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _of(
    key: str, wanted: str | bool, units: Sequence[Mapping[str, Any]], values: Sequence[float], seed: int
) -> dict[str, Any]:
    return bootstrap([value for unit, value in zip(units, values, strict=True) if unit[key] == wanted], seed)


def _samples(records: Sequence[Mapping[str, Any]], questions: Path) -> list[Sample]:
    """Samples of the first and the last step, with the picture and the options of their question."""
    if not records:
        return []
    steps = dict.fromkeys((records[0]["step"], records[-1]["step"]))
    shown = [r for step in steps for r in [r for r in records if r["step"] == step][:SAMPLES_SHOWN]]
    _, rows = read_rows(questions)
    at = {record["id"]: index for index, record in enumerate(rows.records(["id"]))}
    samples = []
    for r in shown:
        row: Any = rows[at[r["id"]]]
        image = row.images[0] if row.images else None
        samples.append(
            Sample(r["step"], r["query"], r["answer"], r["completions"], r["rewards"], row.options, image)
        )
    return samples


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
