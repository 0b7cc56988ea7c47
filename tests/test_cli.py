"""The command line: what there is, how it fails, and every command once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from vlm_contextrl import __version__, result_files
from vlm_contextrl.cli import app, main
from vlm_contextrl.commands import training
from vlm_contextrl.commands.arguments import SETTINGS
from vlm_contextrl.errors import DataError, InputError

RECIPE = ["--out", "KEY=VALUE", "--config", "--json", "--engine", "--workers", "--settings"]
COMMANDS = {
    "": ["--version"],
    "pairs": [],
    "pairs render": ["KEY=VALUE", "--out", "--config", "--json", "--settings"],
    "pairs edit": ["--input", *RECIPE],
    "pairs retrieve": ["--input", *RECIPE],
    "pairs trajectories": ["--input", *RECIPE],
    "pairs verify": ["--input", *RECIPE],
    "pairs difficulty": ["--input", *RECIPE],
    "pairs dedupe": ["--input", *RECIPE],
    "pairs decontaminate": ["--input", *RECIPE],
    "pairs compose": RECIPE,
    "pairs import": ["--input", "--out", "--rows", "--licence", "--json"],
    "pairs export": ["--input", "--out", "--to", "--seed", "--style", "--json"],
    "pairs split": ["--input", "--out", "--fractions", "--seed", "--json"],
    "pairs stats": ["--input", "--json", "--html", "--sheet"],
    "train": ["CONFIG", "KEY=VALUE", "--out", "--resume", "--settings"],
    "merge": ["--model", "--adapter", "--out", "--dtype"],
    "probe": [
        "--model",
        "--pairs",
        "--adapter",
        "--questions",
        "--json",
        "--per-pair",
        "--limit",
        "--batch-pairs",
        "--style",
        "--max-new-tokens",
    ],
    "eval": [
        "--model",
        "--out",
        "--adapter",
        "--benchmarks",
        "--data-root",
        "--style",
        "--max-new-tokens",
        "--load-in-4bit",
        "--merge",
        "--dtype",
        "--attention",
        "--min-pixels",
        "--max-pixels",
        "--batch-size",
        "--engine",
        "--processes",
        "--limit",
        "--json",
        "--judge-url",
        "--judge-model",
        "--judge-key-variable",
        "--probe-mode",
        "--niah-lengths",
    ],
    "eval list": [],
    "eval fetch": ["--data-root", "--benchmarks"],
    "eval fixtures": ["--out", "--rows"],
    "compare": [
        "RUN_A RUN_B [...]",
        "--json",
        "--html",
        "--markdown",
        "--latex",
        "--published",
        "--shown",
        "--allow-different-settings",
    ],
    "study": ["CONFIG", "KEY=VALUE", "--out", "--quick", "--json", "--settings"],
    "app": [
        "--pairs",
        "--model",
        "--adapter",
        "--run",
        "--decisions",
        "--host",
        "--port",
        "--password-file",
        "--licence",
    ],
    "demo": ["--out", "--quick"],
    "doctor": ["--json"],
    "tinyvl": [],
    "bench": [],
    "bench engine": ["--json", "--quick"],
    "bench memory": ["CONFIG", "KEY=VALUE", "--json", "--measure"],
    "bench app": ["--json", "--pairs", "--side-px"],
    "bench retrieve": ["--json", "--rows", "--dimensions", "--side-rows"],
    "tinyvl build": ["KEY=VALUE", "--out", "--config", "--settings"],
}
INTERVAL = {"value", "n", "low", "high"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm-contextrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return call


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **attributes: Any) -> None:
    """Puts a module of the given content in place of a heavy one."""
    replacement = ModuleType(module)
    for name, value in attributes.items():
        setattr(replacement, name, value)
    monkeypatch.setitem(sys.modules, module, replacement)


# ---------------------------------------------------------------- what there is


def test_commands_and_flags() -> None:
    """A command or flag more is a promise more: it is added here on purpose."""
    found: dict[str, list[str]] = {}

    def visit(name: str, command: Any) -> None:
        found[name] = [
            parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.metavar)
            for parameter in command.params
        ]
        for child, inner in getattr(command, "commands", {}).items():
            visit(f"{name} {child}".strip(), inner)

    visit("", typer.main.get_command(app))
    assert {name: sorted(flags) for name, flags in found.items()} == {
        name: sorted(flags) for name, flags in COMMANDS.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    for flag in COMMANDS[command]:
        assert flag in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"vlm-contextrl {__version__}\n", "")


def test_module_is_runnable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlm_contextrl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"vlm-contextrl {__version__}\n"


# ---------------------------------------------------------------- how it fails


def test_user_error_is_one_line_and_status_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("row 3: found\n  two lines")

    monkeypatch.setattr("vlm_contextrl.dataset_report.stats.stats", fail)
    assert run("pairs", "stats", "--input", "x") == (2, "", "error: row 3: found two lines\n")


def test_usage_error_is_status_2(run: Run) -> None:
    assert run("pairs", "stats")[0] == 2
    assert run("probe", "--model", "tinyvl", "--pairs", "x", "--limit", "0")[0] == 2
    assert run("nonsense")[0] == 2
    assert run()[0] == 2


def test_interrupt_is_status_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_contextrl.dataset_report.stats.stats", interrupt)
    assert run("pairs", "stats", "--input", "x")[0] == 130


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/x"),
            "/runs/x: No space left on device; free space there",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/runs"),
            "/runs: Permission denied; free space there or name another",
        ),
        (
            OutOfMemoryError("CUDA out of memory.\nmore"),
            "out of memory on the device: CUDA out of memory. Lower optim",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vlm_contextrl.dataset_report.stats.stats", fail)
    status, _, told = run("pairs", "stats", "--input", "x")
    assert status == 2
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1


def test_error_of_ours_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vlm_contextrl.dataset_report.stats.stats", fail)
    monkeypatch.setattr(sys, "argv", ["vlm-contextrl", "pairs", "stats", "--input", "x"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("flag", ["--json", "--per-pair"])
def test_output_file_in_a_missing_folder_is_refused_before_the_work(
    run: Run, tmp_path: Path, flag: str
) -> None:
    status, _, err = run(
        "probe", "--model", "no-model", "--pairs", "none", flag, tmp_path / "none" / "r.json"
    )
    assert status == 2
    assert f"the folder {tmp_path / 'none'} does not exist" in err


def test_output_file_that_is_a_folder_is_refused(run: Run, tmp_path: Path) -> None:
    status, _, err = run("doctor", "--json", tmp_path)
    assert status == 2
    assert "is a folder" in err


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """NaN is not JSON; the older result stays, and nothing unfinished lies beside it."""
    path = tmp_path / "r.json"
    result_files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        result_files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- pairs


def test_render_split_and_stats(run: Run, tmp_path: Path) -> None:
    settings = tmp_path / "render.yaml"
    settings.write_text("count: 12\nsize_px: 56\n")
    for rows in ("pairs", "questions"):
        status, out, err = run(
            "pairs", "render", "--out", tmp_path / rows, "--config", settings, f"rows={rows}", "seed=3",
            "--json", tmp_path / f"{rows}.json",
        )  # fmt: skip
        assert (status, err) == (0, "")
        assert "rows: 12" in out
        assert json.loads((tmp_path / f"{rows}.json").read_text())["rows"] == 12

    status, out, _ = run(
        "pairs", "split", "--input", tmp_path / "pairs", "--input", tmp_path / "questions",
        "--out", tmp_path / "split", "--fractions", "train=0.5,test=0.5", "--json", tmp_path / "split.json",
    )  # fmt: skip
    assert status == 0
    assert "questions" in out
    parts = json.loads((tmp_path / "split.json").read_text())["inputs"]["pairs"]
    assert parts["train"]["rows"] + parts["test"]["rows"] == 12

    folder = tmp_path / "split" / "pairs" / "train"
    status, out, _ = run("pairs", "stats", "--input", folder, "--json", tmp_path / "stats.json")
    assert status == 0
    assert "CC0-1.0" in out
    assert json.loads((tmp_path / "stats.json").read_text())["rows"] == parts["train"]["rows"]


def test_render_names_an_unknown_setting(run: Run, tmp_path: Path) -> None:
    status, _, err = run("pairs", "render", "--out", tmp_path / "x", "count=3", "sed=1")
    assert status == 2
    assert "did you mean 'seed'?" in err


@pytest.mark.parametrize("fractions", ["train", "train=most", "=0.5,test=0.5", "a=0.5,a=0.5", "train=0.5"])
def test_split_refuses_fractions_that_are_none(
    run: Run, tmp_path: Path, pairs_folder: Path, fractions: str
) -> None:
    status, _, err = run(
        "pairs", "split", "--input", pairs_folder, "--out", tmp_path / "x", "--fractions", fractions
    )
    assert status == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_split_refuses_two_inputs_of_one_name(run: Run, tmp_path: Path) -> None:
    status, _, err = run(
        "pairs", "split", "--input", "a/pairs", "--input", "b/pairs", "--out", tmp_path / "x"
    )
    assert status == 2
    assert "'pairs'" in err


def test_stats_shows_data_as_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets in an answer are not markup."""
    counts = {name: {"[red]x[/red]": 1} for name in ("domains", "recipes", "answer_types", "question_types")}
    found = {
        **counts, "path": "p", "kind": "pairs", "rows": 1, "rejects": 0, "licences": {"": 1},
        "answers": {":cat: [bold]": 1}, "distinct_answers": 1, "changed_fraction": None,
    }  # fmt: skip
    monkeypatch.setattr("vlm_contextrl.dataset_report.stats.stats", lambda _: found)
    _, out, _ = run("pairs", "stats", "--input", tmp_path)
    assert "[red]x[/red]" in out
    assert ":cat: [bold]" in out
    assert "(none)" in out


# ---------------------------------------------------------------- train, demo, tinyvl


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the trainer was called with."""
    calls: dict[str, Any] = {}

    def train(config: Any, run_dir: Path, *, resume: bool = False) -> dict[str, Any]:
        calls.update(config=config, run_dir=run_dir, resume=resume)
        return {"step": 120, "accuracy": 0.51234567}

    stand_in(monkeypatch, "vlm_contextrl.trainer", train=train)
    return calls


def test_train_by_the_name_of_a_shipped_configuration(run: Run, trained: dict[str, Any]) -> None:
    status, out, _ = run("train", "tiny_contextrl", "optim.learning_rate=1e-5", "objective.1.weight=0.5")
    assert status == 0
    assert trained["run_dir"] == Path("runs/tiny_contextrl")
    assert trained["config"].optim.learning_rate == 1e-5
    assert trained["config"].objective[1].weight == 0.5
    assert not trained["resume"]
    assert "accuracy: 0.5123" in out


def test_train_by_path_into_a_named_folder(run: Run, trained: dict[str, Any], tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "configs" / "tiny_grpo.yaml"
    assert run("train", path, "--out", tmp_path / "r", "--resume", "steps=1")[0] == 0
    assert (trained["run_dir"], trained["resume"], trained["config"].steps) == (tmp_path / "r", True, 1)


def test_train_lists_the_shipped_configurations(run: Run, trained: dict[str, Any]) -> None:
    status, _, err = run("train", "tiny_contxtrl")
    assert status == 2
    assert "tiny_contextrl, tiny_da_rl, tiny_da_sft, tiny_grpo, tiny_papo" in err
    assert not trained


def test_demo(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Path, bool]] = []
    stand_in(monkeypatch, "vlm_contextrl.demo", run=lambda out, quick: calls.append((out, quick)))
    assert run("demo")[0] == 0
    assert run("demo", "--out", tmp_path, "--quick")[0] == 0
    assert calls == [(Path("runs/demo"), False), (tmp_path, True)]


def test_tinyvl_build(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    module = "vlm_contextrl.data_recipes.tinyvl"
    monkeypatch.setattr(f"{module}.run", lambda config, out: calls.append((config, out)) or {"steps": 1})
    status, out, _ = run("tinyvl", "build", "--out", tmp_path / "m", "seed=7")
    assert (status, calls[0][0].seed, calls[0][1]) == (0, 7, tmp_path / "m")
    assert "steps: 1" in out
    assert run("tinyvl", "build", "--out", tmp_path / "m", "sed=7")[0] == 2
    assert training.tinyvl_app.info.help


# ---------------------------------------------------------------- probe


def test_probe(
    run: Run, tmp_path: Path, tiny_model_folder: Path, pairs_folder: Path, questions_folder: Path
) -> None:
    status, out, _ = run(
        "probe", "--model", tiny_model_folder, "--pairs", pairs_folder, "--questions", questions_folder,
        "--json", tmp_path / "r.json", "--per-pair", tmp_path / "p.jsonl", "--limit", 6, "--batch-pairs", 4,
        "--max-new-tokens", 2,
    )  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / "r.json").read_text())
    for name in (
        "selection_accuracy",
        "order_consistent_accuracy",
        "same_image_control",
        "group_accuracy",
        "mean_margin",
        "position_bias",
        "vqa_accuracy",
    ):
        assert set(found[name]) == INTERVAL
        assert found[name]["n"] == 6
        assert name in out
    assert found["same_image_control"]["value"] == 0.5
    assert "per_pair" not in found
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) >= {"id", "margins"} for line in lines] == [True] * 6


def test_probe_names_what_it_cannot_read(
    run: Run, tmp_path: Path, pairs_folder: Path, questions_folder: Path
) -> None:
    """The data is looked at first: it is what can be checked without loading a model."""
    assert "none" in run("probe", "--model", "./m", "--pairs", tmp_path / "none")[2]
    assert "holds questions" in run("probe", "--model", "./m", "--pairs", questions_folder)[2]
    assert "no such model folder" in run("probe", "--model", "./m", "--pairs", pairs_folder)[2]


def test_results_may_go_into_a_pipe(tmp_path: Path) -> None:
    """A special file is written to, not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    result_files.write_json(pipe, {"a": 1})
    reader.join(timeout=10)
    assert json.loads(read[0]) == {"a": 1}
    assert pipe.is_fifo()


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        result_files.write_json(tmp_path / ("x" * 300), {})


@pytest.mark.parametrize("command", SETTINGS)
def test_settings_are_listed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command alone: nothing else need be given."""
    group = next(name for name in COMMANDS if name.split()[-1:] == [command]).split()
    monkeypatch.setattr(sys, "argv", ["vlm-contextrl", *group, "--settings"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert not exited.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "default", "meaning"]
    assert len(lines) > 6
