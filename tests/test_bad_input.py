"""Bad input from the command line: one clear line, status 2, and nothing written half."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vlm_contextrl.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail; returns its one line."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["vlm-contextrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert exited.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@pytest.fixture
def config(
    tmp_path: Path, tiny_model_folder: Path, pairs_folder: Path, questions_folder: Path
) -> dict[str, Any]:
    """A run that would work."""
    return {
        "name": "run",
        "steps": 1,
        "model": {"path": str(tiny_model_folder)},
        "data": {"questions": str(questions_folder), "pairs": str(pairs_folder), "prompt_style": "direct"},
        "rollout": {"prompts_per_step": 2, "completions_per_prompt": 2, "max_new_tokens": 2},
        "optim": {"prompts_per_update": 2},
        "objective": [{"term": "policy"}, {"term": "selection_loss", "weight": 1.0, "pairs_per_update": 2}],
    }


def train(refused: Refused, tmp_path: Path, config: dict[str, Any], *overrides: str) -> str:
    """The error line of a run, after which no run directory may be left."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    line = refused("train", file, *overrides, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return line


def image_folder(tmp_path: Path, context: bytes | str, confounder: bytes, **fields: Any) -> Path:
    """A folder with one pair; `context` is a file's content or a name that leads elsewhere."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "b.png").write_bytes(confounder)
    name = "a.png"
    if isinstance(context, str):
        name = context
    else:
        (folder / name).write_bytes(context)
    row = {
        "id": "p1", "query": "What colour?", "answer": "red", "confounder_answer": "blue", "licence": "CC0-1.0",
        "context_file_name": name, "confounder_file_name": "b.png", **fields,
    }  # fmt: skip
    (folder / "metadata.jsonl").write_text(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")
    return folder


def png(colour: str, size: int = 56) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("context", "confounder", "fields", "expected"),
    [
        (b"not an image at all", png("blue"), {}, r"a\.png.*no image"),
        (png("red", 200)[:150], png("blue"), {}, r"a\.png.*truncated"),
        (bomb(), png("blue"), {}, "100000.*at most 50000000 pixels"),
        ("../outside.png", png("blue"), {}, "outside"),
        ("gone.png", png("blue"), {}, r"gone\.png"),
        (png("blue"), png("blue"), {}, "equal|identical|same"),
        (png("red"), png("blue"), {"licence": None}, "licence"),
        (png("red"), png("blue"), {"confounder_answer": "Red"}, "answer"),
    ],
    ids=[
        "corrupt",
        "truncated",
        "bomb",
        "outside",
        "missing-image",
        "equal-images",
        "no-licence",
        "same-answer",
    ],
)
def test_unusable_pairs(
    refused: Refused, tmp_path: Path, config: dict[str, Any], context: bytes | str, confounder: bytes,
    fields: dict[str, Any], expected: str,
) -> None:  # fmt: skip
    """The only pair of a folder cannot be used: the line names file, row and reason."""
    import re

    (tmp_path / "outside.png").write_bytes(png("red"))
    config["data"]["pairs"] = str(image_folder(tmp_path, context, confounder, **fields))
    line = train(refused, tmp_path, config)
    assert "metadata.jsonl" in line
    assert "p1" in line
    assert re.search(expected, line), line


def test_missing_files(refused: Refused, tmp_path: Path, config: dict[str, Any]) -> None:
    assert "nowhere.yaml" in refused("train", tmp_path / "nowhere.yaml")
    config["data"]["pairs"] = str(tmp_path / "nowhere")
    assert "nowhere" in train(refused, tmp_path, config)


def test_unknown_key_names_the_nearest(refused: Refused, tmp_path: Path, config: dict[str, Any]) -> None:
    config["optim"]["learning_rat"] = 1e-4
    line = train(refused, tmp_path, config)
    assert "optim.learning_rat" in line
    assert "'learning_rate'" in line


def test_wrong_type(refused: Refused, tmp_path: Path, config: dict[str, Any]) -> None:
    line = train(refused, tmp_path, config, "rollout.temperature=warm")
    assert "rollout.temperature" in line
    assert "'warm'" in line


def test_empty_dataset(refused: Refused, tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "empty").mkdir()
    config["data"]["questions"] = str(tmp_path / "empty")
    assert "empty" in train(refused, tmp_path, config)


def test_overlong_prompt(refused: Refused, tmp_path: Path, config: dict[str, Any]) -> None:
    line = train(refused, tmp_path, config, "data.max_prompt_tokens=20")
    assert "longer than 20 tokens" in line
    assert "data.max_prompt_tokens" in line


def test_unreadable_model_and_checkpoint(
    refused: Refused, tmp_path: Path, config: dict[str, Any], pairs_folder: Path
) -> None:
    """A model folder with cut weights, and a run whose only checkpoint is cut."""
    import shutil

    broken = tmp_path / "model"
    shutil.copytree(config["model"]["path"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    report = tmp_path / "probe.json"
    line = refused("probe", "--model", broken, "--pairs", pairs_folder, "--json", report)
    assert "weights cannot be read" in line
    assert not report.exists()

    from vlm_contextrl.config import RunConfig, validate
    from vlm_contextrl.runlog import RunDirectory

    RunDirectory(tmp_path / "run", validate(RunConfig, config, "test"), resume=False)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainable.safetensors").write_bytes(b"cut")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    line = refused("train", file, "--out", tmp_path / "run", "--resume")
    assert "step_000001: unreadable checkpoint" in line
