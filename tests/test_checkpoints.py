"""Checkpoints: a run that was stopped and resumed is the run that was not; what is broken is one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.stopped_runs import Stopped, stop_at
from tests.tiny_models import ask, noise_image, plain_model, run_config, tiny_policy
from vlm_contextrl.checkpoints import export, load_checkpoint, save_checkpoint, usable_checkpoint
from vlm_contextrl.config import LoraSettings, RunConfig
from vlm_contextrl.errors import CheckpointError
from vlm_contextrl.trainer import train

ROOT = Path(__file__).parents[1]


class Small(nn.Module):
    """One trained matrix and one frozen vector."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.arange(2.0 * width).view(2, width))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def stepped(model: Small, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([model.trained], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.trained.pow(2).sum().backward()
        optimizer.step()
    return optimizer


def saved(folder: Path, step: int = 4, keep: int = 9) -> Path:
    model = Small()
    return save_checkpoint(folder, model, stepped(model, step), {"step": step, "note": 0.1}, keep)


# ---------------------------------------------------------------- one checkpoint


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    """Weights, optimizer and state; the next step from the copy is the next step from the original."""
    model, copy = Small(), Small()
    optimizer = stepped(model, 3)
    place = save_checkpoint(tmp_path, model, optimizer, {"step": 3, "questions": 12}, keep=1)
    other = stepped(copy, 0)
    assert load_checkpoint(place, copy, other) == {"step": 3, "questions": 12}
    assert torch.equal(copy.trained, model.trained)
    for m, o in ((model, optimizer), (copy, other)):
        o.zero_grad()
        m.trained.pow(2).sum().backward()
        o.step()
    assert torch.equal(copy.trained, model.trained)


def test_only_trained_weights_are_in_it(tmp_path: Path) -> None:
    place = saved(tmp_path)
    assert load_file(place / "trainable.safetensors").keys() == {"trained"}
    sizes = json.loads((place / "manifest.json").read_text())["files"]
    assert sizes == {p.name: p.stat().st_size for p in place.iterdir() if p.name != "manifest.json"}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        saved(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000009", "step_000010"]
    assert usable_checkpoint(tmp_path) == tmp_path / "step_000010"


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert usable_checkpoint(tmp_path / "checkpoints") is None
    assert usable_checkpoint(tmp_path) is None


def cut_weights(place: Path) -> None:
    file = place / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def no_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def cut_manifest(place: Path) -> None:
    file = place / "manifest.json"
    file.write_text(file.read_text()[:-5])


def missing_optimizer(place: Path) -> None:
    (place / "optimizer.pt").unlink()


@pytest.mark.parametrize("spoil", [cut_weights, no_manifest, cut_manifest, missing_optimizer])
def test_an_incomplete_checkpoint_is_passed_over(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before it serves, and one line says so; when none is left, one line is all there is."""
    older, newer = saved(tmp_path, 2), saved(tmp_path, 4)
    spoil(newer)
    assert usable_checkpoint(tmp_path) == older
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{newer}: unreadable checkpoint")
    assert line.endswith("going on from step_000002")
    spoil(older)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(newer))}: unreadable checkpoint") as caught:
        usable_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_was_being_written_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed process leaves behind has another name; it is removed with one line, and no checkpoint."""
    place = saved(tmp_path)
    unfinished = tmp_path / f".{place.name}.unfinished"
    place.rename(unfinished)
    assert usable_checkpoint(tmp_path) is None
    assert capsys.readouterr().err == f"{unfinished}: left by an interrupted save, removed\n"
    assert not unfinished.exists()
    assert saved(tmp_path) == place
    assert [p.name for p in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("file", ["trainable.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 400, b"\x80\x02garbage" * 40])
def test_an_unreadable_file_is_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    """Whatever the bytes are: the message names the checkpoint, no traceback of pickle or safetensors."""
    place = saved(tmp_path)
    (place / file).write_bytes(content)
    model = Small()
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(place))}: unreadable checkpoint") as caught:
        load_checkpoint(place, model, stepped(model, 0))
    assert "\n" not in str(caught.value)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    """A pickle that would run code is refused."""
    place, ran = saved(tmp_path), tmp_path / "ran"

    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    torch.save({"state": Touch()}, place / "optimizer.pt")
    model = Small()
    with pytest.raises(CheckpointError, match="unreadable checkpoint"):
        load_checkpoint(place, model, stepped(model, 0))
    assert not ran.exists()


def test_another_model(tmp_path: Path) -> None:
    """Other shapes or other names of weights: the first one is named, and nothing is loaded."""
    place = saved(tmp_path)
    wider = Small(4)
    with pytest.raises(CheckpointError, match=r"trained is \[2, 3\], the model has \[2, 4\]"):
        load_checkpoint(place, wider, stepped(wider, 0))
    frozen = Small()
    optimizer = stepped(frozen, 0)
    frozen.trained.requires_grad_(False)
    with pytest.raises(CheckpointError, match="1 weights differ from the configured model, first trained"):
        load_checkpoint(place, frozen, optimizer)


# ---------------------------------------------------------------- final/


def logits_of(policy: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = policy.option_logits([ask(policy.processor, "Why?", [noise_image(1)])], [65, 66])
    return logits


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_export_reloads_to_the_same_logits(
    tuning: str, qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A model folder that transformers opens, or an adapter folder for PEFT; both with the processor."""
    folder = qwen_folders["qwen3_vl"]
    policy = tiny_policy(folder, tuning=tuning, lora=LoraSettings(rank=4, alpha=8, vision=True))
    start = logits_of(policy)
    with torch.no_grad():
        for n, parameter in enumerate(p for p in policy.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)) * 0.1)
    expected = logits_of(policy)
    assert float((expected - start).abs().max()) > 1e-2
    export(policy, tmp_path / "final")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final"]
    if tuning == "full":
        reloaded = tiny_policy(tmp_path / "final", trainable=False)
        plain = dict(plain_model(tmp_path / "final").named_parameters())
        assert all(torch.equal(p, plain[name]) for name, p in policy.model.named_parameters())
    else:
        names = load_file(tmp_path / "final" / "adapter_model.safetensors")
        assert all(".lora_" in name for name in names)
        reloaded = tiny_policy(folder, trainable=False, adapter=str(tmp_path / "final"))
    torch.testing.assert_close(logits_of(reloaded), expected, rtol=0, atol=1e-5)
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / "final" / name).is_file()


# ---------------------------------------------------------------- stopped and resumed


def config_of(folder: Path, rows: dict[str, Path], tuning: str) -> RunConfig:
    """Seven steps of two of five questions: the third pass begins after every place where it is stopped."""
    return run_config(
        folder,
        rows,
        steps=7,
        model={"tuning": tuning},
        log={"save_every": 2, "keep_checkpoints": 1, "samples_per_step": 2},
    )


def final_weights(run: Path) -> dict[str, Tensor]:
    (file,) = (run / "final").glob("*.safetensors")
    found: dict[str, Tensor] = load_file(file)
    return found


def assert_same_run(run: Path, expected: Path) -> None:
    for stream in ("metrics", "samples"):
        assert (run / f"{stream}.jsonl").read_bytes() == (expected / f"{stream}.jsonl").read_bytes()
    found, weights = final_weights(run), final_weights(expected)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("family", "tuning"), [("qwen2_5_vl", "full"), ("qwen3_vl", "lora")])
def test_resumed_runs_are_the_unbroken_run(
    family: str, tuning: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """Stopped before the first checkpoint, right after one, and between two; then twice in one run. Metrics and
    samples to the byte, final weights to the bit."""
    config = config_of(qwen_folders[family], noise_rows, tuning)
    train(config, tmp_path / "unbroken")
    assert len((tmp_path / "unbroken" / "metrics.jsonl").read_text().splitlines()) == 7
    for stops in ([1], [4], [5], [3, 6]):
        run = tmp_path / "-".join(map(str, stops))
        for n, step in enumerate(stops):
            with pytest.raises(Stopped):
                train(config, run, resume=n > 0, on_step=stop_at(step))
            assert not (run / "final").exists()
        train(config, run, resume=True)
        assert_same_run(run, tmp_path / "unbroken")


def test_resuming_a_finished_run_changes_nothing(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    config = run_config(qwen_folders["qwen2_5_vl"], noise_rows, steps=2)
    metrics = train(config, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert train(config, tmp_path / "run", resume=True) == metrics
    assert_same_run(tmp_path / "run", tmp_path / "before")


def test_resuming_from_a_broken_checkpoint(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """The only checkpoint is cut: one line, and the run is left as it was."""
    config = config_of(qwen_folders["qwen2_5_vl"], noise_rows, "full")
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", on_step=stop_at(3))
    cut_weights(tmp_path / "run" / "checkpoints" / "step_000002")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="step_000002: unreadable checkpoint") as caught:
        train(config, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


KILLED = """
import os, random, signal, sys
from pathlib import Path

import torch

from vlm_contextrl import checkpoints, rollout, terms
from vlm_contextrl.config import RunConfig, load_config
from vlm_contextrl.trainer import train

config, run, where, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
owner, name, most = {
    "sampling": (rollout, "_draw", 40), "training": (torch.Tensor, "backward", 12), "scoring": (terms, "policy_loss", 5),
    "weights": (checkpoints, "save_file", 2), "optimizer": (torch, "save", 2),
}[where]
calls, original = random.Random(seed).randint(1, most), getattr(owner, name)

def counted(*args, **kwargs):
    global calls
    calls -= 1
    found = original(*args, **kwargs)
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

setattr(owner, name, counted)
train(load_config(RunConfig, config), run, resume=(run / "config.yaml").is_file())
"""
MOMENTS = ("sampling", "weights", "training", "optimizer", "scoring")


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_process_killed_five_times_ends_as_the_unbroken_run(
    tuning: str, qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """SIGKILL at random moments: while it samples, runs a backward pass, scores a loss, and twice within a checkpoint, after the weights
    and after the optimizer were written. Each time a new process goes on; the last one's run is the unbroken one to the bit."""
    config = config_of(qwen_folders["qwen2_5_vl"], noise_rows, tuning)
    config = config.model_copy(update={"steps": 14})
    train(config, tmp_path / "unbroken")
    run = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    said = []
    for seed, where in enumerate(MOMENTS):
        script = [sys.executable, "-c", KILLED, tmp_path / "unbroken" / "config.yaml", run, where, seed]
        done = subprocess.run(
            list(map(str, script)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (run / "final").exists()
        said.append(done.stderr)
    assert ["left by an interrupted save, removed" in each for each in said] == [
        False,
        False,
        True,
        False,
        True,
    ]
    train(config, run, resume=True)
    assert_same_run(run, tmp_path / "unbroken")
