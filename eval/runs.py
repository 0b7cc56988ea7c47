"""A run: one model over many benchmarks, one process per benchmark, everything on disk as it comes.

    RUN/run.json              settings, versions, content hashes of weights
    RUN/NAME/answers.R.jsonl  answers of process R, one line per sample, appended
    RUN/NAME/samples.jsonl    the same, scored, when the benchmark is finished
    RUN/NAME/result.json      its accuracies
    RUN/NAME/log.txt          what its process printed
    RUN/results.json          all benchmarks, and those that failed with the reason

The same command again goes on: a benchmark that is finished is not started, an answer that is on disk is not asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlm_contextrl import __version__
from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.eval.journal import count_answers
from vlm_contextrl.eval.registry import BENCHMARKS, Benchmark
from vlm_contextrl.eval.run_folders import read_object, read_samples
from vlm_contextrl.eval.scoring import equal_weights, groups, mean_of_groups
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.eval.weights import weights_hash
from vlm_contextrl.eval.worker import TOTAL_FILE, Job
from vlm_contextrl.result_files import write_json

POLL_S = 0.5
Progress = Callable[[Benchmark, int, int | None], None]  # answered samples, of how many (None: not known yet)


def chosen(names: str) -> list[Benchmark]:
    """The benchmarks of a comma-separated list, or all. Raises ConfigError for a name that is none."""
    if names == "all":
        return list(BENCHMARKS.values())
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in asked:
        if name not in BENCHMARKS:
            raise ConfigError(f"--benchmarks: {name!r} is none of {', '.join(BENCHMARKS)}, all")
    if not asked:
        raise ConfigError("--benchmarks: no name given; expected all, or names with commas between")
    return [BENCHMARKS[name] for name in asked]


def evaluate(
    benchmarks: Sequence[Benchmark],
    settings: EvalSettings,
    out: Path,
    *,
    processes: int = 1,
    progress: Progress = lambda benchmark, done, total: None,
) -> dict[str, Any]:
    """Run what is not finished yet and write `results.json`. A benchmark that fails is named there; the others run.

    processes: per benchmark, data parallel, started by torchrun. Raises ConfigError when `out` holds a run of another model.
    """
    weights = _weights(settings)
    out.mkdir(parents=True, exist_ok=True)
    _same_run(out, settings, weights)
    failed: dict[str, str] = {}
    results: dict[str, Any] = {}
    for benchmark in benchmarks:
        job = Job(
            benchmark.name, str(out / benchmark.name), settings.model_dump(mode="json"), weights, os.getpid()
        )
        reason = _run(job, benchmark, processes, progress)
        if reason:
            failed[benchmark.name] = reason
        results = _write_results(out, settings, benchmarks, failed)
    return results


def _weights(settings: EvalSettings) -> dict[str, str | None]:
    if settings.is_stand_in:
        return {"model": settings.model, "adapter": None}
    return {
        "model": weights_hash(settings.model),
        "adapter": weights_hash(settings.adapter) if settings.adapter else None,
    }


def _same_run(out: Path, settings: EvalSettings, weights: dict[str, str | None]) -> None:
    path = out / "run.json"
    record = {
        **settings.model_dump(mode="json"),
        "weights": weights,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "datasets")}
        | {"vlm-contextrl": __version__},
    }
    if path.exists():
        before = read_object(path)
        for key in (*settings.what_shapes_answers(), "weights"):
            if before.get(key) != record[key]:
                raise ConfigError(
                    f"{out}: holds a run with {key} = {before.get(key)!r}, asked for {record[key]!r}; name another --out"
                )
    elif any(out.iterdir()):
        raise InputError(
            f"{out}: is not empty and holds no run.json; expected a new folder or one of an earlier run"
        )
    write_json(path, record)


def _run(job: Job, benchmark: Benchmark, processes: int, progress: Progress) -> str | None:
    """Start the benchmark's process and wait. Returns why it failed, or None."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    write_json(folder / "job.json", asdict(job))
    worker = ["-m", "vlm_contextrl.eval.worker", str(folder / "job.json")]
    if processes > 1:
        worker = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *worker]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, *worker], stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                progress(benchmark, *_progress(folder))
                time.sleep(POLL_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
    progress(benchmark, *_progress(folder))
    return None if process.returncode == 0 else _reason(folder / "log.txt", process.returncode)


def _progress(folder: Path) -> tuple[int, int | None]:
    path = folder / TOTAL_FILE
    total = read_object(path)["samples"] if path.exists() else None
    return count_answers(folder), total


def _reason(log: Path, status: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[0]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return f"its process ended with status {status}: {last}; all of it is in {log}"


def _write_results(
    out: Path, settings: EvalSettings, benchmarks: Sequence[Benchmark], failed: dict[str, str]
) -> dict[str, Any]:
    finished, values = {}, []
    for benchmark in benchmarks:
        path = out / benchmark.name / "result.json"
        if benchmark.name not in failed and path.exists():
            finished[benchmark.name] = read_object(path)
            values.append(groups(benchmark, read_samples(path.parent / "samples.jsonl").values()))
    results = {
        "model": settings.model,
        "adapter": settings.adapter,
        "style": settings.style,
        "max_new_tokens": settings.max_new_tokens,
        "limit": settings.limit,
        "benchmarks": finished,
        "average": mean_of_groups(*equal_weights(values)),
        "failed": failed,
    }
    write_json(out / "results.json", results)
    return results
