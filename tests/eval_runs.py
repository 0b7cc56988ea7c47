"""Small run folders as `vlm-contextrl eval` leaves them, made by code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.scoring import measures

SETTINGS = {
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "adapter": None,
    "style": "reasoning",
    "max_new_tokens": 2048,
    "min_pixels": None,
    "max_pixels": 1_003_520,
    "dtype": "bfloat16",
    "load_in_4bit": False,
    "engine": "transformers",
    "data_root": None,
    "limit": None,
    "versions": {"torch": "2.13.0"},
}


def sample(part: str, number: int, correct: bool, **changes: Any) -> dict[str, Any]:
    """One scored sample; the answer is always B, the wrong one A."""
    letter = "B" if correct else "A"
    return {
        "id": f"{number}",
        "part": part,
        "category": "",
        "question": f"Which shape is number {number}?",
        "options": ["circle", "square"],
        "answer": "B",
        "answer_type": "choice",
        "completion": f"I look at it. \\boxed{{{letter}}}",
        "extracted": letter,
        "correct": correct,
        "truncated": False,
        "picture": None,
        **changes,
    }


def samples(name: str, right: Sequence[int], **changes: Any) -> list[dict[str, Any]]:
    """Samples of a benchmark's first part, right where `right` is 1."""
    part = BENCHMARKS[name].parts[0].name
    return [sample(part, number, bool(value), **changes) for number, value in enumerate(right)]


def write_run(
    path: Path,
    benchmarks: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    failed: Mapping[str, str] | None = None,
    stock: float | None = None,
    **settings: Any,
) -> Path:
    """A finished run: benchmark -> its samples."""
    path.mkdir(parents=True, exist_ok=True)
    run = {**SETTINGS, **settings}
    (path / "run.json").write_text(json.dumps(run))
    results = {}
    for name, of_benchmark in benchmarks.items():
        folder = path / name
        folder.mkdir(exist_ok=True)
        (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in of_benchmark))
        benchmark = BENCHMARKS[name]
        results[name] = {
            **measures(benchmark, of_benchmark),
            "stock": stock if benchmark.stock else None,
            "stock_metric": benchmark.stock.metric if benchmark.stock else None,
            "benchmark": benchmark.title,
            "split": benchmark.split,
            **{key: run[key] for key in ("style", "max_new_tokens", "limit")},
            "content_hash": "0" * 64,
        }
        (folder / "result.json").write_text(json.dumps(results[name]))
    (path / "results.json").write_text(json.dumps({"benchmarks": results, "failed": dict(failed or {})}))
    return path


def save_picture(run: Path, benchmark: str, name: str, colour: tuple[int, int, int] = (200, 60, 30)) -> str:
    """A small JPEG where a run keeps its pictures; its name."""
    folder = run / benchmark / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), colour).save(folder / name)
    return name
