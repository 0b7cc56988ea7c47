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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from vlm_contextrl.commands.results import show_table, write_json, write_text
from vlm_contextrl.config import ModelSettings, RunConfig, load_config, validate
from vlm_contextrl.demo_report import (
    MEASURES,
    Measured,
    duration,
    facts,
    hardware,
    read_jsonl,
    report_data,
    summarise,
)
from vlm_contextrl.errors import InputError

CONFIG = "tiny_contextrl.yaml"
PAIR_SEED, QUESTION_SEED = 1101, 1102  # unlike, so that questions show other scenes than pairs
MODEL_FILE = "model.safetensors"
N_STAGES = 7


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How large a demo is. About `test_share` of the rows is held out (of the groups that share a scene)."""

    pairs: int
    questions: int
    test_share: float
    overrides: tuple[str, ...] = ()  # of the shipped configuration


# Held out: about 600 pairs and 1,250 questions, enough for intervals of a few points.
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
        self.config = _config(self.out, settings)
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.state = self._open()
        self.stage = 0

    def run(self) -> dict[str, Any]:
        """All stages that are not complete."""
        out, settings, data = self.out, self.settings, self.config.data
        shown = _short(out)
        if (out / "report.json").is_file():
            self._show(f"This demo is done. To run it again, remove {shown} first.")
        else:
            self._say(
                f"Stop with Ctrl-C when you like: the same command goes on where it stopped. Folder: {shown}"
            )
            rendered = {kind: out / "rendered" / kind for kind in ("pairs", "questions")}
            self._stage("render pairs", f"{settings.pairs:,} pairs of pictures", rendered["pairs"],
                        lambda: self._render("pairs", settings.pairs, PAIR_SEED, rendered["pairs"]))  # fmt: skip
            self._stage("render questions", f"{settings.questions:,} questions", rendered["questions"],
                        lambda: self._render("questions", settings.questions, QUESTION_SEED, rendered["questions"]))  # fmt: skip
            self._stage(
                "split", "no image and no scene on both sides", out / "data", lambda: self._split(rendered)
            )
            self._stage("measure before", f"{self.config.model.path} as shipped", out / "base.json",
                        lambda: self._measure(self.config.model, out / "base.json"))  # fmt: skip
            self._stage(
                "train",
                f"{self.config.steps} steps of GRPO and context selection",
                out / "run/final",
                self._train,
            )
            self._stage("measure after", "the trained model", out / "final.json",
                        lambda: self._measure(self._trained(), out / "final.json"))  # fmt: skip
            self._stage("report", "numbers, charts, examples", out / "report.json", self._report)
            self._show(f"To run the demo again from the start, remove {shown} first.")
        assert data.eval_pairs is not None
        summary: dict[str, Any] = _read(out / "report.json")
        return summary
