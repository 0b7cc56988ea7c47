"""What the training loop refuses, and how it stops: prompts that do not fit, numbers that are none, bad rewards."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import given_update, records, run_config, tiny_policy, trainer_of
from vlm_contextrl import reference, terms
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError, DataError, InputError, MissingExtraError, RewardError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.storage import read_questions, write_rows
from vlm_contextrl.terms import Share, Update
from vlm_contextrl.trainer import NonFiniteUpdatesError, train

Make = Callable[..., RunConfig]


@pytest.fixture
def config(qwen_folders: dict[str, Path], noise_rows: dict[str, Path]) -> Make:
    """run_config on the Qwen2.5-VL folder."""
    return lambda **sections: run_config(qwen_folders["qwen2_5_vl"], noise_rows, **sections)


# ---------------------------------------------------------------- prompts that are too long


def prompt_lengths(config: RunConfig) -> dict[str, int]:
    policy = tiny_policy(Path(config.model.path))
    rows = read_questions(config.data.questions)
    return {row.id: len(reference.question_prompt(policy.processor, row)) for row in rows}


def test_overlong_prompts_are_an_error(config: Make, tmp_path: Path) -> None:
    """The message names the first row, its length, the limit and three ways out; nothing is written."""
    lengths = prompt_lengths(config())
    longest = max(lengths.values())
    first = next(id for id, n in lengths.items() if n == longest)
    over = sum(n == longest for n in lengths.values())
    message = (
        f"questions: {over} of 5 prompts are longer than {longest - 1} tokens, first {first} with {longest}, "
        f"longest {longest}; raise data.max_prompt_tokens, lower model.max_pixels, or set data.on_overlong=reject"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        train(config(data={"max_prompt_tokens": longest - 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overlong_prompts_can_be_rejected(config: Make, tmp_path: Path) -> None:
    """Each goes to rejects.jsonl with its length, none is trained on. The pairs are longer than any question, so
    they would all go: that is an error in either mode."""
    lengths = prompt_lengths(config())
    limit = sorted(lengths.values())[2]
    rejected = {id for id, n in lengths.items() if n > limit}
    settings = {"max_prompt_tokens": limit, "on_overlong": "reject", "pairs": None}
    objective = [{"term": "policy", "rewards": config().objective[0].rewards}]
    changed = config(steps=6, data=settings, objective=objective, log={"samples_per_step": 2})
    train(changed, tmp_path / "run")
    found = records(tmp_path / "run", "rejects")
    assert {(r["kind"], r["id"], r["reason"]) for r in found} == {
        ("questions", id, f"prompt of {lengths[id]} tokens") for id in rejected
    }
    assert {r["id"] for r in records(tmp_path / "run", "samples")} == set(lengths) - rejected
    with pytest.raises(DataError, match="^pairs: 4 of 4 prompts are longer"):
        train(config(data={"max_prompt_tokens": limit, "on_overlong": "reject"}), tmp_path / "other")


def strip(kind: str, folder: Path) -> Path:
    """A dataset with a good row and one whose picture is 300 times as wide as high, which the image processor refuses."""
    wide, square = (EncodedImage.from_image(Image.new("RGB", size)) for size in ((900, 3), (56, 56)))
    other = EncodedImage.from_image(Image.new("RGB", (56, 56), "red"))
    told: dict[str, Any] = {"query": "Which?", "answer": "a", "provenance": {"licence": "CC0-1.0"}}
    rows: list[Any] = [
        QuestionRow(id=name, images=(image,), **told)
        if kind == "questions"
        else ContrastivePair(id=name, context=image, confounder=other, **told)
        for name, image in (("good", square), ("wide", wide))
    ]
    write_rows(rows, folder, recipe="x", config={})
    return folder


def test_a_picture_that_cannot_be_shown_is_an_error_or_a_reject(config: Make, tmp_path: Path) -> None:
    folder = str(strip("questions", tmp_path / "rows"))
    objective = [{"term": "policy", "rewards": config().objective[0].rewards}]
    told = {"steps": 1, "objective": objective}
    with pytest.raises(DataError, match="aspect ratio"):
        train(config(**told, data={"questions": folder, "pairs": None}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(
        config(**told, data={"questions": folder, "pairs": None, "on_overlong": "reject"}), tmp_path / "other"
    )
    (reject,) = records(tmp_path / "other", "rejects")
    assert (reject["kind"], reject["id"]) == ("questions", "wide")
    assert "aspect ratio" in reject["reason"]


@pytest.mark.parametrize("kind", ["questions", "pairs"])
def test_held_out_rows_that_cannot_be_shown_are_told_before_training(
    kind: str, config: Make, tmp_path: Path
) -> None:
    folder = str(strip(kind, tmp_path / "rows"))
    with pytest.raises(DataError, match="aspect ratio"):
        train(config(data={f"eval_{kind}": folder}, log={"eval_every": 100}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what goes wrong


class Poisoned:
    """A term whose loss is `value`, or whose gradient is not finite."""

    weight = 1.0

    def __init__(self, value: float) -> None:
        self.value = value

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        parameter = next(p for p in policy.parameters() if p.requires_grad)
        if self.value == 0:
            yield lambda: ((parameter * 0).sum().sqrt(), {"part": 1.0})  # 0, with gradient inf * 0
        else:
            yield lambda: (parameter.sum() * self.value, {"part": self.value})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_updates_that_are_not_finite_are_skipped(value: float, config: Make, tmp_path: Path) -> None:
    """Weights stay as they are and the metrics hold no NaN; a good update in between starts the count anew; the
    third in a row stops the run."""
    trainer = trainer_of(config(optim={"max_skipped_updates": 3}), tmp_path)
    good, update = trainer.terms, given_update(trainer.policy)

    def weights() -> list[Tensor]:
        return [p.detach().clone() for p in trainer.trainable]

    def poisoned_update() -> dict[str, float]:
        trainer.terms = [Poisoned(value)]
        return trainer.update(update)

    before = weights()
    for _ in range(2):
        metrics = poisoned_update()
        assert metrics["skipped_updates"] == 1.0
        assert all(math.isfinite(v) for v in metrics.values())
        json.dumps(metrics, allow_nan=False)
    assert all(torch.equal(a, b) for a, b in zip(weights(), before, strict=True))
    trainer.terms = good
    assert trainer.update(update)["skipped_updates"] == 0.0
    assert not all(torch.equal(a, b) for a, b in zip(weights(), before, strict=True))
    for _ in range(2):
        poisoned_update()
    with pytest.raises(NonFiniteUpdatesError, match="3 updates in a row with a non-finite loss or gradient"):
        poisoned_update()


def spoil_losses(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int], bool]) -> None:
    """Policy losses, counted from 1, that are not a number."""
    original, calls = terms.policy_loss, 0

    def policy_loss(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, metrics = original(*args)
        return (loss * math.nan if spoiled(calls) else loss), metrics

    monkeypatch.setattr(terms, "policy_loss", policy_loss)


def test_a_run_goes_on_after_a_loss_that_is_none(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four updates is skipped and counted; the others train."""
    spoil_losses(monkeypatch, lambda n: n == 2)
    train(config(steps=4), tmp_path / "run")
    assert [each["skipped_updates"] for each in records(tmp_path / "run", "metrics")] == [0.0, 1.0, 0.0, 0.0]
    assert (tmp_path / "run" / "final").is_dir()


def test_ten_in_a_row_stop_the_run(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good updates 1 to 3, then none: the tenth bad one ends the run at step 13. The last good checkpoint, of step 2, and those after it
    are kept as they were; the newest holds the weights of step 3. Without the fault the run goes on from there."""
    changed = config(steps=20, log={"save_every": 2, "keep_checkpoints": 9})
    with monkeypatch.context() as patch:
        spoil_losses(patch, lambda n: n > 3)
        with pytest.raises(NonFiniteUpdatesError, match="10 updates in a row"):
            train(changed, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert len(records(tmp_path / "run", "metrics")) == 12
    assert sorted(p.name for p in checkpoints.iterdir()) == [f"step_{n:06d}" for n in (2, 4, 6, 8, 10, 12)]
    fourth, twelfth = (load_file(checkpoints / f"step_{n:06d}" / "trainable.safetensors") for n in (4, 12))
    assert all(torch.equal(fourth[name], twelfth[name]) for name in fourth)
    metrics = train(changed, tmp_path / "run", resume=True)
    assert metrics["step"] == 20


def test_a_wide_gap_between_rollout_and_training_is_said_once(
    config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under autocast sampling and training round differently; with a limit below that there is one line, whatever the number of steps."""
    changed = config(steps=3, model={"autocast": "bf16"}, rollout={"max_logp_gap": 1e-9})
    metrics = train(changed, tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "rollout_gap" in line]
    assert len(said) == 1
    assert metrics["rollout_gap"] > 1e-9
    train(config(steps=1), tmp_path / "quiet")
    assert "rollout_gap" not in capsys.readouterr().err


def failing_reward(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    for row in rows:
        if row["id"] == "q3":
            raise KeyError("no such thing")
    return [0.0] * len(rows)


def test_a_failing_reward_names_its_row(config: Make, tmp_path: Path) -> None:
    """Five questions, two per step: by the third step q3 has come up. The run stops there."""
    name = f"{failing_reward.__module__}:failing_reward"
    objective = [{"term": "policy", "rewards": {name: 1.0}}]
    with pytest.raises(RewardError, match=r"failed on row 'q3': KeyError"):
        train(config(steps=3, objective=objective), tmp_path)
    assert not (tmp_path / "final").exists()


def test_an_unknown_reward_is_found_before_training(config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        train(config(objective=[{"term": "policy", "rewards": {"acuracy": 1.0}}]), tmp_path)


def test_run_folders(config: Make, tmp_path: Path) -> None:
    """An existing run is not overwritten, nothing cannot be resumed, other settings cannot be slipped in; the
    log section may change."""
    train(config(steps=1), tmp_path / "run")
    with pytest.raises(InputError, match="exists and is not empty"):
        train(config(steps=1), tmp_path / "run")
    with pytest.raises(InputError, match="nothing to resume"):
        train(config(steps=1), tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match=r"another configuration \(steps, rollout\)"):
        train(config(steps=2, rollout={"temperature": 0.5}), tmp_path / "run", resume=True)
    train(config(steps=1, log={"save_every": 1}), tmp_path / "run", resume=True)


def test_a_missing_tracker(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]  # makes the import fail
    with pytest.raises(MissingExtraError, match=re.escape("vlm-contextrl[wandb]")):
        train(config(log={"trackers": ["wandb"]}), tmp_path)
