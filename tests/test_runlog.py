"""The run directory: what is refused, what is kept on resuming, what reaches the trackers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError, InputError, MissingExtraError
from vlm_contextrl.runlog import RunDirectory, check_run_folder


def config(**changes: Any) -> RunConfig:
    values = {
        "name": "test",
        "steps": 3,
        "data": {"questions": "questions"},
        "rollout": {"prompts_per_step": 2},
        "optim": {"prompts_per_update": 2},
        "objective": [{"term": "policy"}],
    }
    return RunConfig.model_validate(values | changes)


def test_the_resolved_configuration_is_saved(tmp_path: Path) -> None:
    """Defaults included, and it reads back as the same configuration."""
    RunDirectory(tmp_path / "run", config(seed=7), resume=False)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["seed"] == 7
    assert saved["optim"]["learning_rate"] == 1e-6
    assert RunConfig.model_validate(saved) == config(seed=7)


def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """Before a model is loaded."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match="cannot be made .*file is no folder that can be written to"):
            check_run_folder(place, config(), resume=False)


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path, config(), resume=False)
    message = f"^{re.escape(str(tmp_path))}: exists and is not empty; resume it with --resume"
    with pytest.raises(InputError, match=message):
        RunDirectory(tmp_path, config(), resume=False)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunDirectory(tmp_path, config(), resume=False)
    assert (tmp_path / "config.yaml").is_file()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume, config.yaml is missing; start without --resume"):
        RunDirectory(tmp_path / "none", config(), resume=True)
    assert not (tmp_path / "none").exists()


def test_resuming_with_another_configuration(tmp_path: Path) -> None:
    """The message names the sections that differ; how often to log and save may change."""
    RunDirectory(tmp_path, config(), resume=False)
    with pytest.raises(ConfigError, match=r"resumed with another configuration \(seed, optim\)"):
        RunDirectory(tmp_path, config(seed=1, optim={"prompts_per_update": 1}), resume=True)
    RunDirectory(tmp_path, config(log={"save_every": 7}), resume=True)


def test_records_come_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, config(), resume=False)
    records = [{"step": 1, "reward": 0.1 + 0.2, "text": "é\u2028\n"}, {"step": 2, "reward": 1e-300}]
    for record in records:
        run.write("metrics", record)
    assert run.read("metrics") == records
    assert run.read("samples") == []


def test_truncate_drops_later_and_cut_records(tmp_path: Path) -> None:
    """Steps 1 to 3, two samples each, and a record that was cut while being written: steps 1 and 2 stay."""
    run = RunDirectory(tmp_path, config(), resume=False)
    for step in (1, 2, 3):
        run.write("metrics", {"step": step})
        for id in "ab":
            run.write("samples", {"step": step, "id": id})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    run.truncate(2)
    assert run.read("metrics") == [{"step": 1}, {"step": 2}]
    assert [(r["step"], r["id"]) for r in run.read("samples")] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    run.truncate(0)
    assert run.read("metrics") == run.read("samples") == []


def test_tensorboard_gets_numbers(tmp_path: Path) -> None:
    """Scalars of metrics and the value of intervals; no texts, no step as a metric, no samples."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDirectory(tmp_path, config(log={"trackers": ["tensorboard"]}), resume=False)
    run.write("metrics", {"step": 1, "reward_mean": 0.25, "note": "x"})
    run.write("metrics", {"step": 2, "reward_mean": 0.5})
    run.write("evals", {"step": 2, "vqa_accuracy": {"value": 0.75, "n": 4, "low": 0.5, "high": 1.0}})
    run.write("samples", {"step": 2, "rewards": 1.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {"train/reward_mean": [(1, 0.25), (2, 0.5)], "eval/vqa_accuracy": [(2, 0.75)]}


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_tracker_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written, so that the run can be started again without it."""
    for module in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]  # makes the import fail
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'vlm-contextrl[{name}]'")):
        RunDirectory(tmp_path, config(log={"trackers": [name]}), resume=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_configuration_and_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    fake = SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda numbers, step: calls.append(("log", (numbers, step))),
    )
    monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    run = RunDirectory(tmp_path, config(log={"trackers": [name]}), resume=False)
    run.write("metrics", {"step": 4, "loss": 1.5})
    (_, given), logged = calls
    assert given["name"] == "test"
    assert given["config"]["steps"] == 3
    assert logged == ("log", ({"train/loss": 1.5}, 4))
