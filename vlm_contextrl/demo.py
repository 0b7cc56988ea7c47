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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import run_config
from vlm_contextrl.commands.results import show_table
from vlm_contextrl.config import ModelSettings, RunConfig, load_config, validate
from vlm_contextrl.demo_report import duration, facts, hardware, read_jsonl, report_data, summarise
from vlm_contextrl.errors import InputError
from vlm_contextrl.report.chart_parts import MISSING, number
from vlm_contextrl.report.numbers import MEASURES
from vlm_contextrl.result_files import write_json, write_text

CONFIG = "tiny_contextrl"
SEEDS = {"pairs": 1101, "questions": 1102}  # of the rendered scenes
RENDER = "vlm_contextrl.data_recipes.render"
N_STAGES = 5


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How large a demo is. `test_share` is the share of rows held out, by groups that share an image or a scene."""

    domains: tuple[str, ...] = ("charts", "dials")  # what TinyVL can compare (docs/log.md)
    choice_share: float = 0.4  # of the questions that allow options
    pairs: int
    questions: int
    test_share: float
    overrides: tuple[str, ...] = ()  # of the shipped configuration


# About 900 pairs and 1,100 questions are held out: intervals of a few points.
FULL = DemoSettings(pairs=6300, questions=7600, test_share=1 / 7)
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
        self.shown = out  # as the user wrote it
        self.config = self._resolve_config()
        self.state = self._open()
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.stage = 0

    def run(self) -> dict[str, Any]:
        """All stages that are not complete yet, then the table."""
        if (self.out / "report.json").is_file():
            self.console.print(f"This demo is done already; remove {self.shown} to run it again.")
        else:
            self._say(
                f"The demo goes to {self.shown}. Stop with Ctrl-C when you like: the same command goes on."
            )
            size, config = self.settings, self.config
            self._run(
                "render", f"{size.pairs:,} pairs, {size.questions:,} questions", "data", self._make_data
            )
            self._run(
                "measure before",
                "the model as shipped",
                "base.json",
                lambda: self._measure(config.model, "base.json"),
            )
            self._run("train", f"{config.steps} steps, GRPO and context selection", "run/final", self._train)
            self._run(
                "measure after",
                "the trained model",
                "final.json",
                lambda: self._measure(self._trained(), "final.json"),
            )
            self._run("report", "numbers, charts, examples", "report.json", self._report)
        summary = self._read("report.json")
        self._show(summary)
        return summary

    # ------------------------------------------------------------ the stages

    def _make_data(self) -> None:
        rendered = {kind: self.out / "rendered" / kind for kind in SEEDS}
        sizes = {"pairs": self.settings.pairs, "questions": self.settings.questions}
        for kind, folder in rendered.items():
            if not folder.exists():
                given = {"choice_share": self.settings.choice_share} if kind == "questions" else {}
                settings = leaf(f"{RENDER}:RenderConfig")(
                    count=sizes[kind], seed=SEEDS[kind], rows=kind, domains=self.settings.domains, **given
                )
                leaf(f"{RENDER}:run")(settings, folder)
        from vlm_contextrl.splits import run_split

        share = self.settings.test_share
        with self.console.status("split by image and scene"):
            run_split(rendered, self.out / "data", {"train": 1 - share, "test": share}, self.config.seed)

    def _measure(self, model: ModelSettings, name: str) -> None:
        """Probe and question accuracy on the test splits, every unit kept for paired comparisons."""
        from vlm_contextrl.intervals import bootstrap
        from vlm_contextrl.models import load_policy
        from vlm_contextrl.probe import probe
        from vlm_contextrl.storage import read_pairs, read_questions
        from vlm_contextrl.vqa import answer_questions

        data, seed = self.config.data, self.config.seed
        assert data.eval_pairs is not None
        assert data.eval_questions is not None
        pairs, questions = read_pairs(data.eval_pairs), read_questions(data.eval_questions)
        policy = load_policy(model, _device(), trainable=False)
        with self._bar("select", len(pairs)) as advance:
            measured = probe(policy, pairs, seed=seed, progress=advance)
        limit = self.config.rollout.max_new_tokens
        with self._bar("answer", len(questions)) as advance:
            answered = answer_questions(
                policy, questions, style=data.prompt_style, max_new_tokens=limit, progress=advance
            )
        measured["vqa_accuracy"] = bootstrap([float(a.correct) for a in answered], seed)
        measured["per_question"] = [asdict(a) for a in answered]
        measured["parameters"] = sum(p.numel() for p in policy.parameters())
        write_json(self.out / name, measured)

    def _train(self) -> None:
        from vlm_contextrl.trainer import train

        run_dir = self.out / "run"
        train(self.config, run_dir, resume=(run_dir / "config.yaml").is_file())

    def _trained(self) -> ModelSettings:
        final = str(self.out / "run/final")
        model = self.config.model
        changed = {"adapter": final} if model.tuning == "lora" else {"path": final, "adapter": None}
        return model.model_copy(update=changed)

    def _report(self) -> None:
        from vlm_contextrl.report.page import render_report
        from vlm_contextrl.storage import read_pairs

        base, final, config = self._read("base.json"), self._read("final.json"), self.config
        run_dir, spent_s = self.out / "run", self.state["spent_s"]
        steps = read_jsonl(run_dir / "metrics.jsonl")[-1]["step"]
        wall_s = round(sum(spent_s.values()), 1)
        summary = summarise(base, final, steps=steps, wall_s=wall_s, seed=config.seed)
        assert config.data.eval_pairs is not None
        device = _device()
        size = f"{base['parameters'] / 1e6:.1f} million parameters"
        page = report_data(
            summary,
            base,
            final,
            config=config,
            run_dir=run_dir,
            eval_pairs=read_pairs(config.data.eval_pairs),
            facts=facts(config, spent_s, device),
            lead=f"A vision-language model of {size}, {steps} training steps, {duration(wall_s)} in all on {hardware(device)}.",
        )
        write_text(self.out / "report.html", render_report(page))
        write_json(self.out / "report.json", summary)

    # ------------------------------------------------------------ the folder

    def _resolve_config(self) -> RunConfig:
        """The shipped configuration on the data of this folder."""
        shipped = load_config(RunConfig, run_config(CONFIG), self.settings.overrides)
        values = shipped.model_dump()
        data = self.out / "data"
        values["data"] |= {
            "questions": data / "questions/train",
            "pairs": data / "pairs/train",
            "eval_questions": data / "questions/test",
            "eval_pairs": data / "pairs/test",
        }
        return validate(RunConfig, values, CONFIG)

    def _open(self) -> dict[str, Any]:
        """The state of the demo in the folder; a new one when the folder is new or empty."""
        asked = {
            **asdict(self.settings),
            "config": self.config.model_dump(mode="json", exclude={"data", "log"}),
        }
        wanted: dict[str, Any] = json.loads(json.dumps(asked))
        place = self.out / "demo.json"
        if place.is_file():
            state: dict[str, Any] = self._read("demo.json")
            found = state.get("settings", {})
            if differing := [key for key in wanted if found.get(key) != wanted[key]]:
                raise InputError(
                    f"{self.shown}: holds a demo with other settings ({', '.join(differing)}); "
                    "remove it or name another folder with --out"
                )
            return state
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError(
                f"{self.shown}: exists and is no demo (no demo.json); name another folder with --out"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        state = {"settings": wanted, "spent_s": {}}
        write_json(place, state)
        return state

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.out / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{self.shown / name}: not readable as JSON ({error}); remove it and start again"
            ) from error
        return found

    # ------------------------------------------------------------ the terminal

    def _run(self, name: str, what: str, done: str, work: Callable[[], None]) -> None:
        """One stage: announced, skipped when `done` is there, timed (also when it is interrupted)."""
        self.stage += 1
        head = f"[{self.stage}/{N_STAGES}] {name}: {what}"
        if (self.out / done).exists():
            self._say(f"{head}: there already")
            return
        self._say(head)
        began = time.monotonic()
        try:
            work()
        finally:
            took = time.monotonic() - began
            spent = self.state["spent_s"]
            spent[name] = round(spent.get(name, 0.0) + took, 2)
            write_json(self.out / "demo.json", self.state)
        self._say(f"      {duration(took)}")

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.advance(task, done)

    def _show(self, summary: dict[str, Any]) -> None:
        rows = []
        for name, (label, _, scale, unit) in MEASURES.items():
            before, after = (cell(summary[side][name], scale, unit) for side in ("base", "final"))
            rows.append((label, before, after))
        for name, label in (
            ("selection_gain", "Selection gain, points"),
            ("vqa_gain", "Question gain, points"),
        ):
            rows.append((label, "", cell(summary[name], 100, "")))
        show_table("", ("(95% interval)", "before", "after"), rows)
        took = f"{summary['steps']} steps, {duration(summary['wall_s'])}"
        self._say(f"{took}. Open {self.shown / 'report.html'} in a browser.")


def cell(entry: dict[str, Any], scale: float, unit: str) -> str:
    """`52.6% (49.5 .. 55.5)`."""
    if entry["value"] is None:
        return MISSING
    value, low, high = (
        number(scale * entry[key], 1 if scale == 100 else 2) for key in ("value", "low", "high")
    )
    return f"{value}{unit} ({low} .. {high})"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
