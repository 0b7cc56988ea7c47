"""Two or more runs over the same samples: what differs, what is noise, which samples changed.

The first run is the baseline, every other run is held against it (`statistics.py`). Only benchmarks and probes that all runs have finished
are compared, and of them only samples that all runs have; what is left out is named. Runs that were asked differently are refused.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.eval.compare_probes import compare_probes
from vlm_contextrl.eval.published import MARK, METHODS, SOURCE, guessed_model, published
from vlm_contextrl.eval.registry import BENCHMARKS, Benchmark
from vlm_contextrl.eval.run_folders import Key, RunFolder, Sample, Samples, read_runs
from vlm_contextrl.eval.scoring import equal_weights, groups, mean_of_groups
from vlm_contextrl.eval.statistics import paired_comparison

# What must be the same: how questions are asked, how long an answer may be, what is seen of an image, which samples, who scores.
FAIR = ("style", "max_new_tokens", "min_pixels", "max_pixels", "limit", "judge")
_ASKED = ("question", "options", "answer")
Values = list[list[list[float]]]  # run, group, sample: 1 right, 0 wrong


@dataclass(frozen=True)
class Change:
    """A sample that one run has right and the other wrong. folders: of the benchmark in both runs."""

    key: Key
    before: Sample
    after: Sample
    folders: tuple[Path, Path]


@dataclass(frozen=True)
class _Matched:
    """One benchmark's samples in all runs, the same keys in the same order; what was left out; what was asked differently."""

    runs: Sequence[RunFolder]
    benchmark: Benchmark
    samples: list[Samples]
    only_in: dict[str, list[list[str]]]
    different: list[dict[str, Any]]


@dataclass
class Comparison:
    """result: what `--json` writes (docs/results.md). shown: (benchmark, run) -> changes to look at, drawn at random."""

    runs: list[RunFolder]
    result: dict[str, Any] = field(default_factory=dict)
    shown: dict[tuple[str, str], list[Change]] = field(default_factory=dict)


def compare_runs(
    paths: Sequence[Path],
    *,
    allow_different_settings: bool = False,
    published_model: str = "auto",
    shown: int = 0,
    seed: int = 0,
) -> Comparison:
    """Hold the runs at `paths[1:]` against the one at `paths[0]`.

    published_model: a key of `published.MODELS`, "none", or "auto": by the name of the baseline's model. shown: changes to keep for looking
    at, per benchmark, run and direction. Raises InputError for fewer than two runs, for what is no run and when nothing is in common,
    ConfigError for settings that differ.
    """
    if len(paths) < 2:
        raise InputError(f"compare: found {len(paths)} run, expected two or more, the baseline first")
    comparison = Comparison(read_runs(paths))
    runs, left_out, different, benchmarks = comparison.runs, {}, [], {}
    values: dict[str, Values] = {}
    for benchmark in BENCHMARKS.values():
        lacking = [run for run in runs if benchmark.name not in run.results]
        if len(lacking) == len(runs):
            continue
        if lacking:
            left_out[benchmark.name] = "; ".join(_why_lacking(run, benchmark) for run in lacking)
            continue
        matched = _match(runs, benchmark, allow_different_settings)
        if not matched.samples[0]:
            left_out[benchmark.name] = "the runs have no sample in common"
            continue
        different += matched.different
        values[benchmark.name] = [groups(benchmark, of_run.values()) for of_run in matched.samples]
        benchmarks[benchmark.name] = _entry(matched, values[benchmark.name], seed)
        for run, of_run in zip(runs[1:], matched.samples[1:], strict=True):
            comparison.shown[benchmark.name, run.name] = _drawn(matched, run, of_run, shown, seed)
    probes = compare_probes(runs, seed)
    if probes.different and not allow_different_settings:
        _refuse(probes.different[0])
    different += probes.different
    left_out |= probes.left_out
    if not benchmarks and not probes.entries:
        reasons = "".join(f"; {name}: {reason}" for name, reason in left_out.items())
        raise InputError(f"compare: no finished benchmark in common{reasons}; finish one in all runs first")
    comparison.result = {
        "baseline": runs[0].name,
        "runs": {run.name: {"path": str(run.path), "settings": dict(run.settings)} for run in runs},
        "different_settings": different,
        "left_out": left_out,
        "benchmarks": benchmarks,
        "average": _average(runs, list(values.values()), seed) if benchmarks else None,
        "probes": probes.entries,
    }
    _put_published_beside(comparison.result, published_model)
    return comparison


def _match(runs: Sequence[RunFolder], benchmark: Benchmark, allow_different_settings: bool) -> _Matched:
    """The samples that all runs have, in the baseline's order. Raises ConfigError when the runs were asked differently."""
    different = _settings_that_differ(runs, benchmark)
    if different and not allow_different_settings:
        _refuse(different[0])
    of_runs = [run.samples(benchmark.name) for run in runs]
    common = {key for key in of_runs[0] if all(key in of_run for of_run in of_runs)}
    samples = [{key: of_run[key] for key in of_runs[0] if key in common} for of_run in of_runs]
    different += _questions_that_differ(runs, samples, benchmark)
    if different and not allow_different_settings:
        _refuse(different[0])
    only_in = {
        run.name: [list(key) for key in of_run if key not in common]
        for run, of_run in zip(runs, of_runs, strict=True)
    }
    return _Matched(runs, benchmark, samples, only_in, different)


def _entry(matched: _Matched, values: Values, seed: int) -> dict[str, Any]:
    """What the result holds about one benchmark."""
    runs, samples = matched.runs, matched.samples
    against = {}
    for run, of_run, of_values in zip(runs[1:], samples[1:], values[1:], strict=True):
        against[run.name] = {
            **paired_comparison(values[0], of_values, seed=seed),
            "samples_became_right": [list(key) for key in _changed(samples[0], of_run, now_right=True)],
            "samples_became_wrong": [list(key) for key in _changed(samples[0], of_run, now_right=False)],
        }
    n = len(samples[0])
    return {
        "benchmark": matched.benchmark.title,
        "n": n,
        "only_in": matched.only_in,
        "accuracy": _accuracies(runs, values, (), seed),
        "truncated": {
            run.name: sum(bool(sample.get("truncated")) for sample in of_run.values()) / n
            for run, of_run in zip(runs, samples, strict=True)
        },
        "against_baseline": against,
    }


def _average(runs: Sequence[RunFolder], benchmarks: Sequence[Values], seed: int) -> dict[str, Any]:
    """The mean over benchmarks: every benchmark weighs the same, and within it every group."""
    flat = [equal_weights([of_one[index] for of_one in benchmarks]) for index in range(len(runs))]
    values, weights = [groups_of_run for groups_of_run, _ in flat], flat[0][1]
    return {
        "n": sum(map(len, values[0])),
        "accuracy": _accuracies(runs, values, weights, seed),
        "against_baseline": {
            run.name: paired_comparison(values[0], of_run, weights, seed)
            for run, of_run in zip(runs[1:], values[1:], strict=True)
        },
    }


def _accuracies(
    runs: Sequence[RunFolder], values: Values, weights: Sequence[float], seed: int
) -> dict[str, Any]:
    return {run.name: mean_of_groups(of_run, weights, seed) for run, of_run in zip(runs, values, strict=True)}


def _put_published_beside(result: dict[str, Any], model: str) -> None:
    """The paper's numbers of a model in every entry; its average only beside that of all twelve."""
    key: str | None = model
    if model == "auto":
        key = guessed_model(str(result["runs"][result["baseline"]]["settings"].get("model")))
    numbers = published(key) if key in METHODS else {}
    for name, entry in result["benchmarks"].items():
        entry["published"] = numbers.get(name)
    is_whole = result["benchmarks"].keys() == BENCHMARKS.keys()
    if result["average"]:
        result["average"]["published"] = numbers.get("average") if is_whole else None
    source = {"source": SOURCE, "mark": MARK, "model": key}
    result["published"] = {**source, "methods": list(METHODS[str(key)])} if numbers else None


def _changed(before: Samples, after: Samples, *, now_right: bool) -> list[Key]:
    return [key for key, sample in before.items() if sample["correct"] != now_right == after[key]["correct"]]


def _drawn(matched: _Matched, run: RunFolder, of_run: Samples, shown: int, seed: int) -> list[Change]:
    """At most `shown` of each direction at random, so that the first rows of a benchmark do not stand for all of it."""
    name, before = matched.benchmark.name, matched.samples[0]
    folders = (matched.runs[0].path / name, run.path / name)
    rng = random.Random(f"changes:{name}:{seed}")
    drawn = []
    for now_right in (True, False):
        keys = _changed(before, of_run, now_right=now_right)
        drawn += rng.sample(keys, min(shown, len(keys)))
    return [Change(key, before[key], of_run[key], folders) for key in drawn]


# ---------------------------------------------------------------- is it fair?


def _settings_that_differ(runs: Sequence[RunFolder], benchmark: Benchmark) -> list[dict[str, Any]]:
    """Of FAIR and of the data, every setting that some run has otherwise than the baseline."""
    found = []
    of_runs = [
        {**run.settings, **run.results[benchmark.name], "data": run.data(benchmark.name)} for run in runs
    ]
    for setting in (*FAIR, "data"):
        values = [of_run.get(setting) for of_run in of_runs]
        for run, value in zip(runs[1:], values[1:], strict=True):
            if _is_other_data(values[0], value) if setting == "data" else value != values[0]:
                found.append(_difference(benchmark, setting, runs[0], values[0], run, value))
    return found


def _is_other_data(first: Any, second: Any) -> bool:
    """Whether fingerprints by part differ; that of files and a revision of the hub (`NAME@...`) cannot be held against each other."""
    parts = (first or {}).keys() & (second or {}).keys()
    return any(
        first[part] != second[part] and ("@" in first[part]) == ("@" in second[part]) for part in parts
    )


def _questions_that_differ(
    runs: Sequence[RunFolder], samples: Sequence[Samples], benchmark: Benchmark
) -> list[dict[str, Any]]:
    """The first sample per run that asks something else under the same id."""
    found = []
    for run, of_run in zip(runs[1:], samples[1:], strict=True):
        for key, before in samples[0].items():
            after = of_run[key]
            field = next((field for field in _ASKED if before[field] != after[field]), None)
            if field:
                name = f"{field} of sample {'/'.join(key)}"
                found.append(_difference(benchmark, name, runs[0], before[field], run, after[field]))
                break
    return found


def _difference(
    benchmark: Benchmark, setting: str, baseline: RunFolder, was: Any, run: RunFolder, value: Any
) -> dict[str, Any]:
    return {"benchmark": benchmark.name, "setting": setting, "values": {baseline.name: was, run.name: value}}


def _refuse(difference: dict[str, Any]) -> None:
    values = " and ".join(f"{_short(value)} in {run}" for run, value in difference["values"].items())
    raise ConfigError(
        f"compare: {difference['benchmark']}: {difference['setting']} is {values}; the difference would not be the model's alone "
        "(--allow-different-settings compares all the same)"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}\N{HORIZONTAL ELLIPSIS}"


def _why_lacking(run: RunFolder, benchmark: Benchmark) -> str:
    reason = run.failed.get(benchmark.name)
    return f"failed in {run.name} ({reason})" if reason else f"not finished in {run.name}"
