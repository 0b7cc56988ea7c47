"""`vlm-contextrl demo`: the newcomer's path from nothing to a report, on the embedded model.

    OUT/demo.json                             what was asked for, and the seconds spent per stage
    OUT/rendered/{pairs,questions}            pictures with exact ground truth
    OUT/data/{pairs,questions}/{train,test}   split jointly: no image and no scene is on both sides
    OUT/base.json                             the model as shipped, measured on the test splits
    OUT/run                                   the training run (configuration `tiny_contextrl`)
    OUT/final.json                            the trained model, measured the same way
    OUT/report.html, OUT/report.json          both compared

A stage is complete when its file or folder is there (each appears whole or not at all) and is not run twice:
an interrupted demo goes on where it stopped, training from its last checkpoint. A finished one is shown again.
Nothing is ever removed: to start over, remove the folder. Everything is seeded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm_contextrl.chart_parts import number
from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import run_config
from vlm_contextrl.commands.results import show_table, write_json, write_text
from vlm_contextrl.config import ModelSettings, RunConfig, load_config, validate
from vlm_contextrl.demo_report import MEASURES, duration, facts, hardware, read_jsonl, report_data, summarise
from vlm_contextrl.errors import InputError

CONFIG = "tiny_contextrl"
SEEDS = {"pairs": 1101, "questions": 1102}  # of the rendered scenes
N_STAGES = 6


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How large a demo is. `test_share` is the share of rows held out, by groups that share an image or a scene."""

    pairs: int
    questions: int
    test_share: float
    overrides: tuple[str, ...] = ()  # of the shipped configuration


# About 600 pairs and 1,250 questions are held out: intervals of a few points.
FULL = DemoSettings(pairs=3600, questions=7600, test_share=1 / 6)
# Under a minute: shows that every stage works, and measures nothing.
QUICK = DemoSettings(
    pairs=48,
    questions=64,
    test_share=0.25,
    overrides=(
        "steps=2",
        "rollout.prompts_per_step=8",
        "optim.prompts_per_update=8",
        "objective.1.pairs_per_update=4",
        "log.eval_every=2",
        "log.save_every=1",
    ),
)


def run(out: Path, quick: bool = False) -> dict[str, Any]:
    """Run, continue or show the demo in `out`; returns the content of report.json.

    Raises InputError when `out` holds something else, or a demo with other settings.
    """
    return Demo(Path(out), QUICK if quick else FULL).run()


class Demo:
    """One demo folder and the stages that fill it."""

    def __init__(self, out: Path, settings: DemoSettings) -> None:
        self.out, self.settings = out.resolve(), settings
        self.shown = Path(os.path.relpath(self.out))  # as people write it
        self.config = self._resolve_config()
        self.state = self._open()
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.stage = 0

    def run(self) -> dict[str, Any]:
        """All stages that are not complete yet, then the table."""
        if (self.out / "report.json").is_file():
            self.console.print(f"This demo is done already; remove {self.shown} to run it again.")
        else:
            self._say(f"The demo goes to {self.shown}. Stop with Ctrl-C when you like: the same command goes on.")
            size, config = self.settings, self.config
            self._run("render", f"{size.pairs:,} pairs, {size.questions:,} questions", "data", self._make_data)
            self._run("measure before", "the model as shipped", "base.json", lambda: self._measure(config.model, "base.json"))
            self._run("train", f"{config.steps} steps, GRPO and context selection", "run/final", self._train)
            self._run("measure after", "the trained model", "final.json", lambda: self._measure(self._trained(), "final.json"))
            self._run("report", "numbers, charts, examples", "report.json", self._report)
        summary = self._read("report.json")
        self._show(summary)
        return summary
