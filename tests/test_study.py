"""Running a study: cells side by side, failures, and a study that is killed again and again ends with the same table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.killed_runs import kill_at
from tests.study_cells import MEASURED, accuracy, run_config
from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.study import cell_process, workers
from vlm_contextrl.study.cells import Cell
from vlm_contextrl.study.data import Rows
from vlm_contextrl.study.run import run_study
from vlm_contextrl.study.settings import StudyConfig, load_study
from vlm_contextrl.study.workers import make_slots, run_cells

# In place of a cell's process: does what its seed says.
STAND_IN = """
import json, os, sys, pathlib
job = json.load(open(sys.argv[1]))
run_dir, seed = pathlib.Path(job["run_dir"]), job["config"]["seed"]
if seed == 13:
    sys.exit("error: no luck")
if seed == 14:
    raise SystemExit("first\\nlast words")
if seed == 15:
    while os.read(0, 1): pass
    (run_dir.parent / "ended").touch()
    sys.exit(1)
run_dir.mkdir(parents=True)
(run_dir / "metrics.jsonl").write_text('{"step": 1, "reward_mean": 0.5}\\n{"step"')
measured = {name: {} for name in job["measured"]} | {"threads": {"of": os.environ["OMP_NUM_THREADS"]}}
(run_dir / "measures.json").write_text(json.dumps(measured))
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROGRAM", (sys.executable, "-c", STAND_IN))
    monkeypatch.setattr(workers, "POLL_S", 0.01)


def cells(folder: Path, *seeds: int) -> list[Cell]:
    return [
        Cell("a", seed, run_config(seed=seed), folder / "cells" / f"a-{seed}", MEASURED) for seed in seeds
    ]


@pytest.mark.usefixtures("stand_in")
def test_a_failed_cell_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = cells(tmp_path, 13, 1, 14, 2)
    failed = run_cells(planned, [{"OMP_NUM_THREADS": "3"}] * 2, tmp_path / "jobs", Console(soft_wrap=True))
    assert failed["a-13"] == "no luck"
    assert (
        failed["a-14"]
        == f"its process ended with status 1: last words; all of it is in {tmp_path / 'jobs/a-14.log'}"
    )
    assert list(failed) == ["a-13", "a-14"]
    assert [cell.is_finished for cell in planned] == [False, True, False, True]
    assert planned[1].measures()["threads"] == {"of": "3"}
    out = capsys.readouterr().out
    assert "a-1: done in" in out
    assert "(2 of 4)" in out
    assert "a-13: failed after" in out


@pytest.mark.usefixtures("stand_in")
def test_finished_cells_are_not_done_again(tmp_path: Path) -> None:
    planned = cells(tmp_path, 1)
    run_cells(planned, [{"OMP_NUM_THREADS": "1"}], tmp_path / "jobs", Console())
    before = (planned[0].run_dir / "measures.json").stat().st_mtime_ns
    assert run_cells(planned, [{}], tmp_path / "jobs", Console()) == {}
    assert (planned[0].run_dir / "measures.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("stand_in")
def test_a_cell_ends_when_the_study_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 15 waits for its pipe to be closed, as the real process does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_show", interrupt)
    (tmp_path / "cells").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(tmp_path, 15), [{}], tmp_path / "jobs", Console())
    assert (tmp_path / "cells/ended").exists()


def test_a_cell_that_lacks_a_measured_set_is_not_finished(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, 1)
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "measures.json").write_text('{"held_out": {}}')
    assert not cell.is_finished


def test_a_probe_that_was_added_is_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a finished cell was measured by before stays as it is."""
    asked: list[list[str]] = []

    def measure(config: Any, model: Path | None, sets: dict[str, Rows], units: Path) -> Iterator[Any]:
        asked.append(list(sets))
        for name in sets:
            yield name, {"vqa_accuracy": accuracy(0.5)}

    monkeypatch.setattr(cell_process, "measure_sets", measure)
    config = run_config()
    for measured in ({"held_out": MEASURED["held_out"]}, {**MEASURED, "probe_x": Rows(Path("x"), None)}):
        cell = Cell("grpo", 1, config, tmp_path / "untrained", measured, trains=False)
        assert not cell.is_finished
        cell_process.work(cell.job())
        assert cell.is_finished
    assert asked == [["held_out"], ["left_out", "probe_x"]]
    assert list(cell.measures()) == ["held_out", "left_out", "probe_x"]


def test_what_was_measured_before_a_set_failed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(config: Any, model: Path | None, sets: dict[str, Rows], units: Path) -> Iterator[Any]:
        yield "held_out", {"vqa_accuracy": accuracy(0.5)}
        raise DataError("probe: no luck")

    monkeypatch.setattr(cell_process, "measure_sets", measure)
    measured = {"held_out": MEASURED["held_out"], "probe_x": Rows(Path("x"), None)}
    cell = Cell("grpo", 1, run_config(), tmp_path / "untrained", measured, trains=False)
    with pytest.raises(DataError, match="no luck"):
        cell_process.work(cell.job())
    assert list(cell.measures()) == ["held_out"]
    assert not cell.is_finished


def test_slots() -> None:
    """Cells are pinned to their threads; with GPUs each cell has one, and more cells than GPUs share them."""
    given = {"name": "s", "arms": {"grpo": {}}, "seeds": [1], "folders": dict.fromkeys(
        ("questions", "pairs", "held_out_questions", "held_out_pairs"), "x")}  # fmt: skip
    asked = StudyConfig.model_validate(given | {"processes": 3, "threads": 2})
    assert [slot["OMP_NUM_THREADS"] for slot in make_slots(asked, [])] == ["2", "2", "2"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(asked, ["0", "3"])] == ["0", "3", "0"]
    assert len(make_slots(StudyConfig.model_validate(given), ["0", "1", "2", "3"])) == 4
    assert len(make_slots(StudyConfig.model_validate(given), [])) >= 1


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match="is no study"):
        run_study(study_file(tmp_path, "tinyvl"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def study_file(folder: Path, model: Path | str) -> Path:
    """2 arms x 2 seeds x 2 steps."""
    study = {
        "name": "small",
        "arms": {"grpo": "tiny_grpo", "contextrl": {"config": "tiny_contextrl", "objective.1.pairs_per_update": 4}},
        "settings": {
            "model.path": str(model), "rollout.prompts_per_step": 4, "rollout.completions_per_prompt": 4, "optim.prompts_per_update": 4,
            "log.save_every": 1,
        },
        "seeds": [1, 2],
        "steps": 2,
        "eval_every": 1,
        "eval_rows": 4,
        "render": {
            "domains": ["charts"], "left_out": ["dials"], "pairs": 24, "questions": 24, "test_share": 0.5, "left_out_pairs": 6,
            "left_out_questions": 6, "size_px": 56,
        },
        "processes": 2,
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


# ---------------------------------------------------------------- the real thing


def table(out: Path) -> dict[str, Any]:
    """study.json without what depends on the clock."""
    result: dict[str, Any] = json.loads((out / "study.json").read_text())
    for arm in result["arms"].values():
        for name in ("train_s", "cpu_s", "peak_mib"):
            del arm["cost"][name]
    del result["facts"]
    return result


@pytest.mark.slow
def test_a_study_that_is_killed_at_any_moment_gives_the_same_table(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    """Killed while rendering, before the first step, between steps and while measuring, then finished; and run in one go."""
    path = study_file(tmp_path, tiny_model_folder)
    run_study(path, tmp_path / "whole", ["processes=1"])
    expected = table(tmp_path / "whole")
    assert expected["failed"] == {}
    assert expected["arms"]["contextrl"]["measures"]["held_out"]["mean_margin"]["n_seeds"] == 2

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "vlm_contextrl", "study", str(path), "--out", str(out)]
    moments = [
        ("data/rendered/pairs", 1),
        ("cells/*/config.yaml", 1),
        ("cells/*/checkpoints/step_000001", 1),
        ("cells/*/final", 1),
        ("cells/*/measured/*_pairs.jsonl", 3),
        ("cells/*/checkpoints/step_000001", 4),
    ]
    for pattern, count in moments:
        kill_at(command, out, pattern, count)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "contextrl" in done.stdout
    assert table(out) == expected
    for name in ("grpo-1", "contextrl-2"):
        whole, killed = (folder / "cells" / name / "metrics.jsonl" for folder in (tmp_path / "whole", out))
        assert killed.read_bytes() == whole.read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}
    run_study(path, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")} == before
    assert table(out) == expected


@pytest.mark.slow
def test_cells_of_a_killed_study_end_with_it(tmp_path: Path, tiny_model_folder: Path) -> None:
    out = tmp_path / "out"
    path = study_file(tmp_path, tiny_model_folder)
    kill_at(
        [sys.executable, "-m", "vlm_contextrl", "study", str(path), "--out", str(out)], out, "jobs/*.lock", 1
    )
    wait(lambda: not processes_that_name(str(out)))


@pytest.mark.slow
def test_a_cell_that_cannot_be_trained_is_named_on_the_command_line(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    """An arm names a reward that is not there; the other arm gets its numbers."""
    path = study_file(tmp_path, tiny_model_folder)
    arms = load_study(path).arms
    contextrl = {**arms["contextrl"], "objective.0.rewards": {"no_such_module:f": 1.0}}  # type: ignore[dict-item]
    overrides = [f"arms.contextrl={json.dumps(contextrl)}", "seeds=[1]"]
    done = subprocess.run(
        [sys.executable, "-m", "vlm_contextrl", "study", str(path), *overrides, "--out", str(tmp_path / "out"),
         "--json", str(tmp_path / "r.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: cells failed: contextrl-1: " in done.stderr
    assert "no_such_module" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["failed"]) == ["contextrl-1"]
    assert result["arms"]["grpo"]["vqa_accuracy"]["n_seeds"] == 1


def processes_that_name(text: str) -> list[str]:
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(text in part for part in process.info["cmdline"] or []):
            found.append(str(process.pid))
    return found


def wait(reached: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < until_s
        time.sleep(0.05)
