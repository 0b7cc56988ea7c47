"""A run: one model over many benchmarks, probes and long texts, one process for each, everything on disk as it comes.

    RUN/run.json              settings, versions, content hashes of weights
    RUN/NAME/answers.R.jsonl  answers of process R, one line per sample, appended
    RUN/NAME/samples.jsonl    the same, scored, when the benchmark is finished
    RUN/NAME/rejects.jsonl    rows that cannot be asked, with the reason
    RUN/NAME/result.json      its accuracies
    RUN/NAME/log.txt          what its process printed
    RUN/results.json          all that is finished, and what failed with the reason
    RUN/report.html           the same to look at

The same command again goes on: a benchmark that is finished is not started, an answer that is on disk is not asked for.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlm_contextrl import __version__
from vlm_contextrl.child_processes import why_it_failed
from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.eval.asked import Asked
from vlm_contextrl.eval.journal import progress_of
from vlm_contextrl.eval.long_context import LONG_TEXTS
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.run_folders import read_object, read_samples
from vlm_contextrl.eval.run_report import write_run_report
from vlm_contextrl.eval.scoring import equal_weights, groups, mean_of_groups
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.eval.weights import weights_hash
from vlm_contextrl.eval.worker import Job
from vlm_contextrl.result_files import write_json

POLL_S = 0.5
REPORT_NAME = "report.html"
Progress = Callable[[Asked, int, int | None], None]  # answered samples, of how many (None: not known yet)


def evaluate(
    everything: Sequence[Asked],
    settings: EvalSettings,
    out: Path,
    *,
    processes: int = 1,
    progress: Progress = lambda asked, done, total: None,
) -> dict[str, Any]:
    """Run what is not finished yet and write `results.json`. What fails is named there; the others run.

    processes: per benchmark, data parallel, started by torchrun; probes and long texts take one. Raises ConfigError when `out` holds a run
    of another model, and for a stand-in that is asked for more than benchmarks.
    """
    _check(everything, settings)
    weights = _weights(settings)
    out.mkdir(parents=True, exist_ok=True)
    _same_run(out, settings, weights)
    failed: dict[str, str] = {}
    results: dict[str, Any] = {}
    for asked in everything:
        job = Job(
            asked.name,
            str(out / asked.name),
            settings.model_dump(mode="json"),
            weights,
            asked.kind,
            asked.source,
        )
        reason = _run(job, asked, processes if asked.kind == "benchmark" else 1, progress)
        if reason:
            failed[asked.name] = reason
        results = _write_results(out, settings, failed)
    write_run_report(out, out / REPORT_NAME)
    return results


def _check(everything: Sequence[Asked], settings: EvalSettings) -> None:
    kinds = {asked.kind for asked in everything}
    others = [asked.name for asked in everything if asked.kind != "benchmark"]
    if settings.is_stand_in and others:
        raise ConfigError(
            f"model: {settings.model} answers the benchmarks' questions only; leave out {', '.join(others)}"
        )
    if "long_text" in kinds and len(kinds) > 1:
        raise ConfigError(
            "--benchmarks: niah and longbench_v2 are for text models, the others for vision-language models; run them apart"
        )


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


def _run(job: Job, asked: Asked, processes: int, progress: Progress) -> str | None:
    """Start its process and wait. Returns why it failed, or None."""
    folder = Path(job.folder)
    folder.mkdir(exist_ok=True)
    write_json(folder / "job.json", asdict(job))
    worker = ["-m", "vlm_contextrl.eval.worker", str(folder / "job.json")]
    if processes > 1:
        worker = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *worker]
    with (
        (folder / "log.txt").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, *worker], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress(asked, *progress_of(folder))
                time.sleep(POLL_S)
        except BaseException:
            process.kill()
            raise
    progress(asked, *progress_of(folder))
    return None if process.returncode == 0 else why_it_failed(folder / "log.txt", process.returncode)


def _write_results(out: Path, settings: EvalSettings, failed: Mapping[str, str]) -> dict[str, Any]:
    """Of all that is finished in the folder, by this command or an earlier one."""
    finished = {
        path.parent.name: read_object(path)
        for path in sorted(out.glob("*/result.json"))
        if path.parent.name not in failed
    }
    benchmarks = [benchmark for benchmark in BENCHMARKS.values() if benchmark.name in finished]
    values = [groups(b, read_samples(out / b.name / "samples.jsonl").values()) for b in benchmarks]
    results = {
        "model": settings.model,
        "adapter": settings.adapter,
        "style": settings.style,
        "max_new_tokens": settings.max_new_tokens,
        "limit": settings.limit,
        "benchmarks": {benchmark.name: finished[benchmark.name] for benchmark in benchmarks},
        "average": mean_of_groups(*equal_weights(values)),
        "probes": {name: result for name, result in finished.items() if "selection_accuracy" in result},
        "long_texts": {name: finished[name] for name in LONG_TEXTS if name in finished},
        "failed": dict(failed),
    }
    write_json(out / "results.json", results)
    return results
