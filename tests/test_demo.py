"""The demo: its stages and what it does with a folder that is not empty; its numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl import demo
from vlm_contextrl.config import RunConfig
from vlm_contextrl.demo import QUICK, Demo
from vlm_contextrl.demo_report import duration, share_right, summarise
from vlm_contextrl.errors import InputError
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.report.numbers import MEASURES

SMALL = replace(QUICK, pairs=24, questions=24, test_share=0.5)
KEYS = {"base", "final", "vqa_gain", "selection_gain", "steps", "wall_s", "seed", "per_domain", "per_form"}


def measured(
    margins: Sequence[Sequence[float]], correct: Sequence[bool], domains: Sequence[str]
) -> dict[str, Any]:
    """As base.json, with the measures that `summarise` only passes on left empty."""
    return {
        **{name: bootstrap([0.5]) for name in MEASURES},
        "per_pair": [
            {"id": f"p{i}", "domain": d, "margins": list(m)}
            for i, (m, d) in enumerate(zip(margins, domains, strict=True))
        ],
        "per_question": [
            {"id": f"q{i}", "domain": d, "has_options": d == "dials", "correct": c}
            for i, (c, d) in enumerate(zip(correct, domains, strict=True))
        ],
    }


class FakePolicy:
    """Stands for a model; knows which one."""

    def __init__(self, path: str) -> None:
        self.path = path

    def parameters(self) -> list[Any]:
        return []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring and training replaced: the trained model is right where the shipped one is wrong."""
    import vlm_contextrl.models
    import vlm_contextrl.probe
    import vlm_contextrl.trainer
    import vlm_contextrl.vqa

    made: list[str] = []

    def load_policy(model: Any, device: str, trainable: bool) -> FakePolicy:
        return FakePolicy(model.path)

    def probe(policy: FakePolicy, pairs: Any, seed: int, progress: Callable[[int], None]) -> dict[str, Any]:
        made.append(f"probe {Path(policy.path).name}")
        progress(len(pairs))
        margin = -1.0 if policy.path == "tinyvl" else 2.0
        per_pair = [{"id": p.id, "domain": p.domain, "margins": [margin, 1.0]} for p in pairs]
        return {**{name: bootstrap([0.5]) for name in MEASURES}, "per_pair": per_pair}

    def answer_questions(policy: FakePolicy, rows: Any, **settings: Any) -> list[Any]:
        right = policy.path != "tinyvl"
        return [vlm_contextrl.vqa.Answered(row.id, row.domain, False, "a", right) for row in rows]

    def train(config: RunConfig, run_dir: Path, *, resume: bool) -> None:
        made.append(f"train resume={resume}")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").touch()
        if "interrupt" in made and not resume:
            raise KeyboardInterrupt
        question = _first_question(config)
        sample = {"step": 1, **question, "completions": ["x", "x"], "rewards": [0.0, 0.0]}
        (run_dir / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        (run_dir / "metrics.jsonl").write_text(
            '{"step": 1, "reward_mean": 0.5}\n{"step": 2, "reward_mean": 0.6}\n'
        )
        (run_dir / "final").mkdir()

    monkeypatch.setattr(vlm_contextrl.models, "load_policy", load_policy)
    monkeypatch.setattr(vlm_contextrl.probe, "probe", probe)
    monkeypatch.setattr(vlm_contextrl.vqa, "answer_questions", answer_questions)
    monkeypatch.setattr(vlm_contextrl.trainer, "train", train)
    monkeypatch.setattr(demo, "QUICK", SMALL)
    return made


def _first_question(config: RunConfig) -> dict[str, str]:
    from vlm_contextrl.storage import read_questions

    row = read_questions(config.data.questions)[0]
    return {"id": row.id, "query": row.query, "answer": row.answer}


# ---------------------------------------------------------------- numbers


def test_share_right_counts_a_tie_one_half() -> None:
    assert share_right([1.0, -1.0]) == 0.5
    assert share_right([0.0, 2.0]) == 0.75


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (41.6, "42 s"), (59.9, "1 min 0 s"), (3600, "1 h 0 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_summary_by_hand() -> None:
    """Questions: 1 of 2 right before, both after: gain 0.5. Pairs: shares 0.5 and 0 before, 1 and 0.5 after:
    gain 0.5 for each, so its interval is the point 0.5."""
    base = measured([(1, -1), (-1, -1)], [True, False], ["charts", "dials"])
    final = measured([(1, 1), (1, -1)], [True, True], ["charts", "dials"])
    summary = summarise(base, final, steps=7, wall_s=1.5, seed=3)
    assert summary.keys() == KEYS
    assert summary["vqa_gain"]["value"] == 0.5
    assert summary["selection_gain"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert (summary["steps"], summary["wall_s"], summary["seed"]) == (7, 1.5, 3)
    dials = summary["per_domain"]["dials"]
    assert [dials[side]["vqa"]["value"] for side in ("base", "final")] == [0.0, 1.0]
    assert [dials[side]["selection"]["value"] for side in ("base", "final")] == [0.0, 0.5]
    assert dials["base"]["selection"]["n"] == 1
    choice = summary["per_form"]["multiple choice"]
    assert [choice[side]["value"] for side in ("base", "final")] == [0.0, 1.0]
    assert summary["per_form"]["open question"]["base"]["n"] == 1


def test_summary_of_different_pairs_is_refused() -> None:
    base = measured([(1, 1)], [True], ["charts"])
    final = measured([(1, 1)], [True], ["charts"])
    final["per_pair"][0]["id"] = "other"
    with pytest.raises(AssertionError, match="per_pair differ"):
        summarise(base, final, steps=1, wall_s=1, seed=0)


# ---------------------------------------------------------------- stages


def test_stages_write_report_and_numbers(
    tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demo.run(tmp_path / "demo", quick=True)
    assert calls == ["probe tinyvl", "train resume=False", "probe final"]
    assert summary == json.loads((tmp_path / "demo/report.json").read_text())
    assert summary.keys() == KEYS
    assert set(MEASURES) == summary["base"].keys() == summary["final"].keys()
    assert summary["vqa_gain"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert summary["selection_gain"]["value"] == 0.5
    assert summary["steps"] == 2
    assert {"vqa", "selection"} == set(next(iter(summary["per_domain"].values()))["base"])
    html = (tmp_path / "demo/report.html").read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert html.count("data:image/png") > 4
    out = capsys.readouterr().out
    assert [f"[{n}/5]" in out for n in range(1, 6)] == [True] * 5
    assert "Selection accuracy" in out
    assert "100.0 (100.0 .. 100.0)" in out
    assert "report.html" in out


def test_held_out_data_is_split_from_training_data(tmp_path: Path, calls: list[str]) -> None:
    from vlm_contextrl.row_schema import images_of
    from vlm_contextrl.storage import read_rows

    demo.run(tmp_path / "demo", quick=True)

    def seen(split: str) -> set[str]:
        folders = [tmp_path / "demo/data" / kind / split for kind in ("pairs", "questions")]
        return {
            image.pixel_hash()
            for folder in folders
            for row in read_rows(folder)[1]
            for image in images_of(row)
        }

    assert not seen("train") & seen("test")


def test_interrupted_demo_goes_on(
    tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    calls.append("interrupt")
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "demo", quick=True)
    spent = json.loads((tmp_path / "demo/demo.json").read_text())["spent_s"]
    assert set(spent) == {"render", "measure before", "train"}
    data = (tmp_path / "demo/data").stat().st_mtime_ns
    capsys.readouterr()
    summary = demo.run(tmp_path / "demo", quick=True)
    assert calls == ["interrupt", "probe tinyvl", "train resume=False", "train resume=True", "probe final"]
    assert (tmp_path / "demo/data").stat().st_mtime_ns == data
    assert capsys.readouterr().out.count("there already") == 2
    assert summary["steps"] == 2


def test_data_is_not_rendered_twice(tmp_path: Path, calls: list[str]) -> None:
    first = Demo(tmp_path / "demo", SMALL)
    first._make_data()
    pairs = (tmp_path / "demo/rendered/pairs/manifest.json").stat().st_mtime_ns
    (tmp_path / "demo/data").rename(tmp_path / "elsewhere")  # as if stopped between rendering and splitting
    Demo(tmp_path / "demo", SMALL)._make_data()
    assert (tmp_path / "demo/rendered/pairs/manifest.json").stat().st_mtime_ns == pairs
    assert (tmp_path / "demo/data/pairs/test/manifest.json").is_file()


def test_finished_demo_is_shown_again(
    tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = demo.run(tmp_path / "demo", quick=True)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")}
    done = len(calls)
    assert demo.run(tmp_path / "demo", quick=True) == first
    assert len(calls) == done
    assert "done already; remove" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")} == before


def test_other_settings_are_refused(tmp_path: Path, calls: list[str]) -> None:
    Demo(tmp_path / "demo", SMALL)
    with pytest.raises(InputError, match=r"demo with other settings \(pairs, overrides, config\); remove it"):
        Demo(tmp_path / "demo", replace(SMALL, pairs=25, overrides=(*SMALL.overrides, "seed=5")))


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="is no demo"):
        demo.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(InputError, match="is no demo"):
        demo.run(tmp_path / "demo")


def test_unreadable_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(InputError, match=r"demo\.json: not readable as JSON"):
        demo.run(tmp_path)


def test_configuration_is_the_shipped_one_on_the_folders_data(tmp_path: Path) -> None:
    config = Demo(tmp_path / "a b: c", demo.FULL).config
    assert config.data.questions == tmp_path / "a b: c/data/questions/train"
    assert config.data.eval_pairs == tmp_path / "a b: c/data/pairs/test"
    assert config.name == "tiny_contextrl"
    assert config.model.path == "tinyvl"


def test_adapters_are_loaded_as_adapters(tmp_path: Path) -> None:
    full = Demo(tmp_path / "full", SMALL)._trained()
    lora = Demo(tmp_path / "lora", replace(SMALL, overrides=("model.tuning=lora",)))._trained()
    assert (full.path, full.adapter) == (str(tmp_path / "full/run/final"), None)
    assert (lora.path, lora.adapter) == ("tinyvl", str(tmp_path / "lora/run/final"))


# ---------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_whole_path_on_a_random_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Every stage for real; a model that knows nothing must not be credited with anything by the control."""
    settings = replace(QUICK, overrides=(*QUICK.overrides, f"model.path={tiny_model_folder}"))
    summary = Demo(tmp_path / "demo", settings).run()
    assert summary.keys() == KEYS
    assert summary["base"]["same_image_control"]["value"] == 0.5
    assert summary["final"]["vqa_accuracy"]["n"] == summary["base"]["vqa_accuracy"]["n"] > 0
    again = Demo(tmp_path / "again", settings).run()
    assert {k: v for k, v in again.items() if k != "wall_s"} == {
        k: v for k, v in summary.items() if k != "wall_s"
    }


@pytest.mark.slow
def test_quick_demo_of_the_embedded_model(tmp_path: Path) -> None:
    summary = demo.run(tmp_path / "demo", quick=True)
    assert summary["wall_s"] > 0
    assert (tmp_path / "demo/report.html").stat().st_size > 50_000
