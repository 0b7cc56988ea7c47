"""The run directory: resolved configuration, metrics, samples, evaluations, and trackers on request.

metrics.jsonl holds no wall times, so that an interrupted and resumed run writes the same file as an unbroken
one; times are in timings.jsonl.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError, InputError, MissingExtraError

CONFIG = "config.yaml"
STREAMS = ("metrics", "timings", "samples", "evals")


def check_run_folder(path: Path, config: RunConfig, *, resume: bool) -> None:
    """InputError when a new run would write into an old one, ConfigError when a resumed run has other settings than it began with."""
    if not resume:
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(
                f"{path}: cannot be made ({there} is no folder that can be written to); name another with --out"
            )
        if path.exists() and any(path.iterdir()):
            raise InputError(
                f"{path}: exists and is not empty; resume it with --resume, or name another folder with --out"
            )
        return
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: nothing to resume, {CONFIG} is missing; start without --resume")
    try:
        before = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        raise InputError(
            f"{path / CONFIG}: cannot be read, so what the run began with is not known; start anew in another folder"
        )
    now = config.model_dump(mode="json")
    changed = [key for key in now if key != "log" and before.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"{path}: resumed with another configuration ({', '.join(changed)}); use the one of {path / CONFIG}"
        )


class RunDirectory:
    """Files of one run."""

    def __init__(self, path: Path, config: RunConfig, *, resume: bool, writes: bool = True) -> None:
        """Without `writes` (a rank that is not the first) nothing is made or written."""
        self.path, self._writes, self._trackers = path, writes, []
        if not writes:
            return
        check_run_folder(path, config, resume=resume)
        path.mkdir(parents=True, exist_ok=True)
        self._trackers = [_tracker(name, path, config) for name in config.log.trackers]
        if not resume:
            building = path / f".{CONFIG}"
            building.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            building.rename(path / CONFIG)

    def truncate(self, step: int) -> None:
        """Drop records of steps after `step`: they are made again."""
        if not self._writes:
            return
        for stream in STREAMS:
            file = self.path / f"{stream}.jsonl"
            if file.is_file():
                lines = file.read_text().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
                shorter = file.with_name(f".{file.name}")
                shorter.write_text("".join(kept))
                shorter.replace(file)

    def write(self, stream: str, record: Mapping[str, Any]) -> None:
        """Append one record; numbers of metrics and evals go to the trackers too."""
        if not self._writes:
            return
        with (self.path / f"{stream}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if stream in ("metrics", "evals"):
            prefix = "train" if stream == "metrics" else "eval"
            for tracker in self._trackers:
                tracker(
                    {f"{prefix}/{name}": value for name, value in _numbers(record).items()}, record["step"]
                )

    def read(self, stream: str) -> list[dict[str, Any]]:
        """All records of a stream."""
        file = self.path / f"{stream}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    flat = {
        k: v["value"] if isinstance(v, dict) and "value" in v else v for k, v in record.items() if k != "step"
    }
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float)}


def _tracker(name: str, path: Path, config: RunConfig) -> Any:
    resolved = config.model_dump(mode="json")
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(path / "tensorboard"))

            def to_tensorboard(numbers: Mapping[str, float], step: int) -> None:
                for key, value in numbers.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return to_tensorboard
        import importlib

        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"log.trackers names {name!r}, which is not installed: pip install 'vlm-contextrl[{name}]'"
        ) from error
    module.init(project="vlm-contextrl", name=config.name, config=resolved)
    return lambda numbers, step: module.log(dict(numbers), step=step)


def training_bar(*, shown: bool) -> Any:
    """A bar over the steps, with the fields below."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[reward]}  {task.fields[selection]}"), TimeRemainingColumn(), disable=not shown,
    )  # fmt: skip


def bar_fields(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the bar says of a step."""
    reward, selection = metrics.get("reward_mean"), metrics.get("selection_accuracy")
    return {
        "reward": "" if reward is None else f"reward {reward:.2f}",
        "selection": "" if selection is None else f"selection {selection:.2f}",
    }
