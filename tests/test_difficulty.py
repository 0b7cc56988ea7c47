"""Difficulty: pass rates of scripted answers and margins of written-down logits, by hand; the embedded model end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import image_pair, question, tiny_policy
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.assistants import Answers, Prompt, Refusal
from vlm_contextrl.data_recipes.curate.difficulty import DifficultyConfig, RatePairs, RateQuestions, run
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import QuestionRow
from vlm_contextrl.probe import contexts, probe
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.prompts import vqa_messages
from vlm_contextrl.storage import read_pairs, read_questions, verify_folder, write_rows

TINY = {"model": {"path": "tinyvl"}, "max_new_tokens": 8}


class Scripted:
    """Right in the first r of n answers to row q<r>."""

    revision = "script-1"

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> list[list[str]]:
        self.asked += prompts
        return [["7"] * int(prompt.key[1:]) + ["9"] * (n - int(prompt.key[1:])) for prompt in prompts]


def rated(rows: Sequence[QuestionRow], **settings: Any) -> tuple[list[Outcome], list[Prompt]]:
    step = RateQuestions(DifficultyConfig.model_validate({"assistant": {"function": "a:b"}, **settings}))
    script = Scripted()
    step.assistant = script
    return step(rows), script.asked


def test_pass_rates_by_hand() -> None:
    """0 to 8 of 8 right, band 0.1 to 0.9: none right is too hard, all right too easy, 1/8 to 7/8 stay."""
    outcomes, asked = rated([question(n) for n in range(9)])
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons[0] == "too_hard: pass rate 0 (0 of 8), expected 0.1 to 0.9"
    assert reasons[8] == "too_easy: pass rate 1 (8 of 8), expected 0.1 to 0.9"
    assert reasons[1:8] == [""] * 7
    verdicts = [outcome.rows[0].verdicts["difficulty"] for outcome in outcomes[1:8]]
    assert [verdict["pass_rate"] for verdict in verdicts] == [n / 8 for n in range(1, 8)]
    told = {(verdict["samples"], verdict["name"], verdict["revision"]) for verdict in verdicts}
    assert told == {(8, "a:b", "script-1")}
    assert asked[0].text == vqa_messages("How many?")[0]["content"][-1]["text"]
    assert asked[3].images == question(3).images


def test_a_refused_prompt_rejects_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Scripted.ask

    def ask(self: Scripted, prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        return [Refusal("status 400: too long"), *answered(self, prompts[1:], n)]

    monkeypatch.setattr(Scripted, "ask", ask)
    outcomes, _ = rated([question(n) for n in range(1, 4)])
    assert [outcome.reason for outcome in outcomes] == [
        "assistant_refused: status 400: too long, expected an answer",
        "",
        "",
    ]


def test_ends_of_the_band_are_in_it() -> None:
    """Of 4: 1/4 and 3/4 are the ends."""
    outcomes, _ = rated([question(n) for n in range(5)], samples=4, pass_rate={"low": 0.25, "high": 0.75})
    assert [outcome.reason.partition(":")[0] for outcome in outcomes] == ["too_hard", "", "", "", "too_easy"]


def test_images_and_texts_of_a_question_are_shown() -> None:
    row = replace(question(1, 2), context_text="Read this.", options=("7", "9"))
    _, (prompt,) = rated([row])
    assert prompt.text == "Read this.\n\nHow many?\nA. 7\nB. 9\nAnswer directly."
    assert prompt.images == row.images


class WrittenDown:
    """A policy that answers with given (A, B) logits and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self, processor: Processor, logits: Sequence[tuple[float, float]]) -> None:
        self.processor, self.logits = processor, logits
        self.asked: list[EncodedPrompt] = []

    def option_logits(
        self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int], budget_tokens: int
    ) -> Tensor:
        self.asked += prompts
        return torch.tensor(self.logits)


def rate_pairs(policy: Any) -> RatePairs:
    step = RatePairs(DifficultyConfig.model_validate({"assistant": TINY}))
    step.model = SimpleNamespace(policy=policy, revision="commit-1")  # type: ignore[assignment]
    return step


def test_margins_by_hand(qwen_folders: dict[str, Path]) -> None:
    """Context first: A - B, second: B - A. Means 1.5, 0 (always A, whatever is shown), 6 and -5.5, in a band of -5 to 5."""
    processor = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False).processor
    logits = [(2.0, 0.0), (0.0, 1.0), (9.0, 0.0), (9.0, 0.0), (5.0, 0.0), (0.0, 7.0), (0.0, 5.0), (6.0, 0.0)]
    policy, pairs = WrittenDown(processor, logits), [image_pair(n) for n in range(4)]
    outcomes = rate_pairs(policy)(pairs)
    assert [outcome.reason for outcome in outcomes] == [
        "",
        "",
        "too_easy: margin 6 (5 with the context first, 7 second), expected -5 to 5",
        "too_hard: margin -5.5 (-5 with the context first, -6 second), expected -5 to 5",
    ]
    verdicts = [outcome.rows[0].verdicts["difficulty"] for outcome in outcomes[:2]]
    assert [(verdict["margin"], verdict["margins"]) for verdict in verdicts] == [
        (1.5, [2.0, 1.0]),
        (0.0, [9.0, -9.0]),
    ]
    good, bad = (image.key for image in contexts(processor, pairs[0]))  # type: ignore[union-attr]
    assert [[image.key for image in prompt.images] for prompt in policy.asked[:2]] == [
        [good, bad],
        [bad, good],
    ]


def test_margins_are_those_of_the_probe(qwen_folders: dict[str, Path]) -> None:
    for folder in qwen_folders.values():
        policy, pairs = tiny_policy(folder, trainable=False), [image_pair(n) for n in range(5)]
        expected = [entry["margins"] for entry in probe(policy, pairs)["per_pair"]]
        found = rate_pairs(policy)._margins(pairs)
        assert [m for margins in found for m in margins] == pytest.approx(
            [m for margins in expected for m in margins], abs=1e-4
        )


def configured(**settings: Any) -> DifficultyConfig:
    return DifficultyConfig.model_validate({"assistant": TINY, "samples": 4, "batch_rows": 8, **settings})


def test_the_embedded_model_rates_questions(tmp_path: Path, questions_folder: Path) -> None:
    """Everything is accounted for, and the kept rows tell a rate within the band."""
    summary = run(configured(), questions_folder, tmp_path / "out", Engine())
    assert summary["kept"] + summary["rejects"] == summary["inputs"] == 24
    assert summary["kept"] == summary["rows"] > 0
    assert set(summary["rejected"]) <= {"too_easy", "too_hard"}
    verify_folder(tmp_path / "out")
    assert {row.verdicts["difficulty"]["pass_rate"] for row in read_questions(tmp_path / "out")} <= {
        0.25,
        0.5,
        0.75,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["questions", "pairs"])
def test_two_workers_find_what_one_finds(
    kind: str, tmp_path: Path, questions_folder: Path, pairs_folder: Path
) -> None:
    folder = questions_folder if kind == "questions" else pairs_folder
    one, two = (run(configured(), folder, tmp_path / str(n), Engine(workers=n)) for n in (1, 2))
    assert one["content_hash"] == two["content_hash"]
    assert one["rejected"] == two["rejected"]
    ids = [
        [json.loads(line)["id"] for line in file.read_text().splitlines()]
        for file in sorted(tmp_path.glob("*/rejects.jsonl"))
    ]
    assert ids[:1] * len(ids) == ids


def test_the_embedded_model_rates_pairs(tmp_path: Path, pairs_folder: Path) -> None:
    """A wide band keeps all; a band between the figures found splits them there."""
    everything = run(configured(margin={"low": -100, "high": 100}), pairs_folder, tmp_path / "all", Engine())
    assert (everything["kept"], everything["rejects"]) == (24, 0)
    margins = {row.id: row.verdicts["difficulty"]["margin"] for row in read_pairs(tmp_path / "all")}
    ordered = sorted(margins.values())
    low, high = (ordered[3] + ordered[4]) / 2, (ordered[19] + ordered[20]) / 2
    some = run(configured(margin={"low": low, "high": high}), pairs_folder, tmp_path / "some", Engine())
    assert (some["inputs"], some["kept"], some["rejected"]) == (24, 16, {"too_hard": 4, "too_easy": 4})
    assert {row.id for row in read_pairs(tmp_path / "some")} == {
        name for name, m in margins.items() if low <= m <= high
    }
    rejects = [json.loads(line) for line in (tmp_path / "some/rejects.jsonl").read_text().splitlines()]
    hard = {reject["id"] for reject in rejects if reject["reason"].startswith("too_hard: margin ")}
    assert hard == {name for name, m in margins.items() if m < low}


def test_rows_of_an_image_folder(tmp_path: Path) -> None:
    """Questions are found without a manifest, and so are pairs."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(question(ord(name)).images[0].data)
    shared = {"query": "How many?", "answer": "7", "licence": "MIT"}
    wide = configured(pass_rate={"low": 0, "high": 1}, margin={"low": -100, "high": 100})
    for kind, images in (
        ("questions", {"file_name": "a.png"}),
        ("pairs", {"context_file_name": "a.png", "confounder_file_name": "b.png"}),
    ):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({**shared, **images}))
        summary = run(wide, tmp_path, tmp_path / "out" / kind, Engine())
        assert (summary["kind"], summary["kept"]) == (kind, 1)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**shared, "file_name": "c.png"}))
    with pytest.raises(DataError, match="no usable questions .*c.png"):
        run(wide, tmp_path, tmp_path / "none", Engine())


def test_pairs_of_images_and_texts_do_not_mix(tmp_path: Path) -> None:
    text = replace(image_pair(1), context="It is 7.", confounder="It is 8.")
    write_rows([image_pair(0), text], tmp_path / "in", recipe="edit", config={})
    with pytest.raises(DataError, match="pairs p0 and p1: one has images, the other texts"):
        run(configured(), tmp_path / "in", tmp_path / "out", Engine())


def test_margins_need_a_model(tmp_path: Path, pairs_folder: Path) -> None:
    config = DifficultyConfig.model_validate({"assistant": {"function": "a:b"}})
    with pytest.raises(
        ConfigError, match="holds pairs, whose margins need .* set assistant.model.path instead of a:b"
    ):
        run(config, pairs_folder, tmp_path / "out", Engine())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "assistant is missing"),
        (
            ["assistant.model.path=tinyvl", "assistant.temperature=0"],
            "samples is 8 and assistant.temperature 0",
        ),
        (
            ["assistant.model.path=tinyvl", "pass_rate.low=0.5", "pass_rate.high=0.1"],
            "low 0.5 is over high 0.1",
        ),
        (
            ["assistant.model.path=tinyvl", "pass_rate.low=-1", "pass_rate.high=0.1"],
            "expected shares in 0 to 1",
        ),
        (["assistant.model.path=tinyvl", "pass_rat.low=0"], "did you mean 'pass_rate'"),
    ],
)
def test_settings_that_make_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(DifficultyConfig, None, overrides)
    assert "\n" not in str(refused.value)


def test_a_model_alone_is_enough() -> None:
    config = load_config(DifficultyConfig, None, ["assistant.model.path=tinyvl"])
    assert (config.samples, config.assistant.temperature) == (8, 1.0)


def test_shipped_settings() -> None:
    config = load_config(
        DifficultyConfig, Path(str(files("vlm_contextrl.configs") / "recipes/difficulty.yaml"))
    )
    assert config.assistant.model
    assert config.assistant.model.path == "tinyvl"
