"""From answers to accuracies: the extractor that training rewards with, intervals by bootstrap within each part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from vlm_contextrl.eval.questions import Question, Verdict, judge_by_rules
from vlm_contextrl.eval.registry import Benchmark
from vlm_contextrl.intervals import N_RESAMPLES, bootstrap

ASKED = {field.name: field.name for field in fields(Question) if field.name != "images"} | {
    "text": "question"
}
Group = list[float]  # correctness of samples
Scorer = Callable[[Question, str], Verdict]


def question_record(question: Question) -> dict[str, Any]:
    """Everything of a question but its images, as JSON; its text is called `question`."""
    values = {key: getattr(question, name) for name, key in ASKED.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def recorded_question(record: Mapping[str, Any]) -> Question:
    """The question of an answer on disk, without images."""
    values: dict[str, Any] = {name: record[key] for name, key in ASKED.items()}
    frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return Question(images=(), **frozen)


def scored_samples(
    lines: Iterable[Mapping[str, Any]], scorer: Scorer = judge_by_rules
) -> list[dict[str, Any]]:
    """The answers with `extracted` and `correct`."""
    samples = []
    for line in lines:
        verdict = scorer(recorded_question(line), line["completion"])
        samples.append({**line, "extracted": verdict.extracted, "correct": verdict.correct})
    return samples


def measures(benchmark: Benchmark, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """accuracy, by_category, truncated of one benchmark's samples."""
    return {
        "accuracy": accuracy(benchmark, samples),
        "by_category": {
            category: bootstrap([float(s["correct"]) for s in samples if s["category"] == category])
            for category in sorted({s["category"] for s in samples if s["category"]})
        },
        "truncated": sum(bool(s["truncated"]) for s in samples) / len(samples) if samples else None,
    }


def accuracy(benchmark: Benchmark, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{value, n, low, high}: over all samples, or the mean of the parts where that is what is published."""
    return mean_of_groups(groups(benchmark, samples))


def groups(benchmark: Benchmark, samples: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """Correctness of the samples, in the groups whose means a benchmark's accuracy averages: one, or one per part."""
    by_group: dict[str, list[float]] = {}
    for sample in samples:
        by_group.setdefault("" if benchmark.pooled else sample["part"], []).append(float(sample["correct"]))
    return list(by_group.values())


def equal_weights(benchmarks: Sequence[Sequence[Group]]) -> tuple[list[Group], list[float]]:
    """The groups of all benchmarks, and their weights in the average: every benchmark weighs the same, within it every group."""
    flat = [(group, 1 / len(of_one) / len(benchmarks)) for of_one in benchmarks for group in of_one]
    return [group for group, _ in flat], [weight for _, weight in flat]


def mean_of_groups(
    values: Sequence[Sequence[float]], weights: Sequence[float] = (), seed: int = 0
) -> dict[str, Any]:
    """{value, n, low, high} of the weighted mean of the groups' means; the 95% interval resamples within each group."""
    n = sum(map(len, values))
    if not values or not all(len(group) for group in values):
        return {"value": None, "n": n, "low": None, "high": None}
    shares = np.asarray(weights or [1.0] * len(values))
    shares = shares / shares.sum()
    rng = np.random.default_rng(seed)
    means, value = np.zeros(N_RESAMPLES), 0.0
    for share, group in zip(shares, values, strict=True):
        numbers = np.asarray(group, dtype=np.float64)
        value += float(share * numbers.mean())
        means += share * numbers[rng.integers(0, len(numbers), (N_RESAMPLES, len(numbers)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": value, "n": n, "low": float(low), "high": float(high)}
