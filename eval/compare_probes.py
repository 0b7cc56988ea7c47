"""Selection probes of several runs over the same pairs: selection accuracy with paired intervals, as of the benchmarks (`compare.py`).

A pair counts with the share of its two option orders in which the context is chosen. A pair that two runs show differently, by its
digest, is not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_contextrl.eval.run_folders import RunFolder
from vlm_contextrl.eval.scoring import mean_of_groups
from vlm_contextrl.eval.selection_records import selection_shares
from vlm_contextrl.eval.statistics import paired_comparison

_SEEN = ("min_pixels", "max_pixels")


@dataclass(frozen=True)
class ComparedProbes:
    """entries, left_out, different: as `benchmarks`, `left_out` and `different_settings` of a comparison's result."""

    entries: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    different: list[dict[str, Any]]


def compare_probes(runs: Sequence[RunFolder], seed: int = 0) -> ComparedProbes:
    """All runs against the first, for every probe that all of them have."""
    found = ComparedProbes({}, {}, [])
    for name in dict.fromkeys(name for run in runs for name in run.probes):
        lacking = [run.name for run in runs if name not in run.probes]
        if lacking:
            found.left_out[name] = f"not finished in {', '.join(lacking)}"
            continue
        shares = [selection_shares(run.path / name / "per_pair.jsonl") for run in runs]
        common = [key for key in shares[0] if all(key in of_run for of_run in shares)]
        if not common:
            found.left_out[name] = "the runs have no pair in common"
            continue
        kept = set(common)
        found.different.extend(_settings_that_differ(runs, name))
        values = [[[of_run[key] for key in common]] for of_run in shares]
        found.entries[name] = {
            "benchmark": f"{runs[0].probes[name]['set']}, selection",
            "n": len(common),
            "only_in": {
                run.name: [[key[0]] for key in of_run if key not in kept]
                for run, of_run in zip(runs, shares, strict=True)
            },
            "accuracy": {run.name: mean_of_groups(v, (), seed) for run, v in zip(runs, values, strict=True)},
            "against_baseline": {
                run.name: paired_comparison(values[0], v, seed=seed)
                for run, v in zip(runs[1:], values[1:], strict=True)
            },
        }
    return found


def _settings_that_differ(runs: Sequence[RunFolder], name: str) -> list[dict[str, Any]]:
    baseline, different = runs[0], []
    for setting in ("mode", *_SEEN):
        first, *others = (
            run.probes[name]["mode"] if setting == "mode" else run.settings.get(setting) for run in runs
        )
        different += [
            {"benchmark": name, "setting": setting, "values": {baseline.name: first, run.name: value}}
            for run, value in zip(runs[1:], others, strict=True)
            if value != first
        ]
    return different
