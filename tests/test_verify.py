"""Exact checks and the verifier's rules, each on pairs whose outcome is known. Planted faults: test_verify_faults.py."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_models import noise_image
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.assistants import Answers, AssistantSettings, Prompt, Refusal
from vlm_contextrl.data_recipes.curate.verify import (
    ExactBounds,
    Verifier,
    VerifierSettings,
    VerifyConfig,
    exact_checks,
    run,
)
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.prompts import vqa_messages
from vlm_contextrl.storage import read_pairs

BOUNDS = ExactBounds()


def smooth(seed: int, width: int = 128, height: int = 96) -> Image.Image:
    """A dark picture of soft blots, as photographs have them: noise of 8 x 6 px made larger, levels up to 127."""
    blots = noise_image(seed, 8, 6).resize((width, height), Image.Resampling.BICUBIC)
    return Image.eval(blots, lambda level: level // 2)


def pair(context: Image.Image, confounder: Image.Image, **changed: Any) -> ContrastivePair:
    """A pair about "circle" and "square" unless changed."""
    fields: dict[str, Any] = {
        "id": "p", "query": "Which shape?", "answer": "circle", "confounder_answer": "square", "recipe": "edit",
        "provenance": {"licence": "CC0-1.0"}, "context": EncodedImage.from_image(context),
        "confounder": EncodedImage.from_image(confounder),
    }  # fmt: skip
    return ContrastivePair(**{**fields, **changed})


def texts(**changed: Any) -> ContrastivePair:
    return replace(
        pair(smooth(0), smooth(1), **changed), context="It is a circle.", confounder="It is a square."
    )


def edited(image: Image.Image, side_px: int = 12) -> Image.Image:
    """A square at (20, 30) lighter by 128 levels, darker where it was light."""
    image = image.copy()
    image.paste(
        Image.eval(image.crop((20, 30, 20 + side_px, 30 + side_px)), lambda level: (level + 128) % 256),
        (20, 30),
    )
    return image


def test_an_edit_passes_with_its_figures() -> None:
    """12 x 12 of 128 x 96 px are 0.011719 of the picture; every channel there differs by 128, on average by 1.5."""
    measured, reason = exact_checks(pair(smooth(0), edited(smooth(0))), BOUNDS)
    assert reason == ""
    assert measured["same_size"] is True
    assert measured["changed_fraction"] == measured["changed_box_share"] == 0.011719
    assert measured["changed_box_px"] == [20, 30, 32, 42]
    assert measured["channel_difference"] == [1.5, 1.5, 1.5]
    assert measured["bounds"]["tolerance_levels"] == 16
    assert "found_recipes" not in measured["bounds"]
    json.dumps(measured, allow_nan=False)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_saving_again_is_no_edit(quality: int) -> None:
    other = jpeg(smooth(0), quality)
    assert other.tobytes() != smooth(0).tobytes()
    assert exact_checks(pair(smooth(0), other), BOUNDS)[1].startswith("unchanged: ")
    assert exact_checks(pair(smooth(0), jpeg(edited(smooth(0)), quality)), BOUNDS)[1] == ""


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"changed_fraction_min": 0.02}, "unchanged: 0.0117 of the pixels differ by more than 16 grey levels (the most by 128), expected"
         " at least 0.02"),
        ({"changed_box_min": 0.02}, "unchanged: the box around changes is 0.0117 of the picture, expected at least 0.02"),
        ({"ssim_max": 0.9}, "unchanged: SSIM is 0.9"),
        ({"changed_fraction_max": 0.01}, "changed_everything: 0.0117 of the pixels differ by more than 16 grey levels (the most by 128), "
         "expected at most 0.01"),
        ({"changed_box_max": 0.01}, "changed_everything: the box around changes is 0.0117 of the picture, expected at most 0.01"),
        ({"channel_difference_max": 1.4}, "changed_everything: a channel differs by 1.5 grey levels on average, expected at most 1.4"),
        ({"ssim_min": 0.999}, "changed_everything: SSIM is 0.9"),
    ],
)  # fmt: skip
def test_every_bound(bounds: dict[str, float], reason: str) -> None:
    """The edit of 12 x 12 px against one bound at a time, on either side of what it measures."""
    given = pair(smooth(0), edited(smooth(0)))
    assert exact_checks(given, ExactBounds.model_validate(bounds))[1].startswith(reason)
    loose = {
        name: value * (3 if name.endswith("_max") else 1 / 3)
        for name, value in bounds.items()
        if "ssim" not in name
    }
    assert exact_checks(given, ExactBounds.model_validate(loose))[1] == ""
    assert exact_checks(given, ExactBounds(tolerance_levels=127))[1] == ""
    assert exact_checks(given, ExactBounds(tolerance_levels=128))[1].startswith("unchanged: 0 of the pixels")


def test_pictures_of_two_sizes() -> None:
    """An edit keeps the size; two found pictures need not."""
    given = pair(smooth(0), smooth(0, 64, 48))
    measured, reason = exact_checks(given, BOUNDS)
    assert (measured["same_size"], measured["changed_fraction"]) == (False, 1.0)
    assert (
        reason
        == "changed_everything: 128 x 96 and 64 x 48 px, expected one size (or `edit` among found_recipes)"
    )
    assert exact_checks(replace(given, recipe="retrieve"), BOUNDS)[1] == ""


def test_found_pictures_may_differ_in_everything_but_not_in_nothing() -> None:
    other = pair(smooth(0), Image.eval(smooth(0), lambda level: 255 - level))
    assert exact_checks(other, BOUNDS)[1].startswith("changed_everything: ")
    measured, reason = exact_checks(replace(other, recipe="retrieve"), BOUNDS)
    assert reason == ""
    assert measured["changed_fraction"] > 0.8
    same = pair(smooth(0), jpeg(smooth(0), 90), recipe="retrieve")
    assert exact_checks(same, BOUNDS)[1].startswith("unchanged: ")


def test_texts_have_no_pixels() -> None:
    assert exact_checks(texts(), BOUNDS) == ({}, "")


class Scripted:
    """Gives the answers written down for (key) and remembers what it was asked."""

    revision = "script-1"

    def __init__(self, answers: Mapping[str, Answers]) -> None:
        self.answers = answers
        self.asked: list[Prompt] = []

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        self.asked += prompts
        found = [self.answers[prompt.key] for prompt in prompts]
        assert all(isinstance(answers, Refusal) or len(answers) == n for answers in found)
        return found


def verifier(on_context: Answers, on_confounder: Answers, **changed: Any) -> Verifier:
    settings = {"assistant": {"function": "a:b"}, "samples": len(on_context), **changed}
    made = Verifier(VerifierSettings.model_validate(settings))
    made.assistant = Scripted({"p:context": on_context, "p:confounder": on_confounder})
    return made


@pytest.mark.parametrize(
    ("samples", "right_on_context", "right_on_confounder", "code"),
    [
        (5, 5, 0, ""),
        (5, 4, 1, ""),  # 4 of 5 is the agreement of 0.8 on either side
        (5, 3, 0, "no_agreement"),
        (5, 5, 2, "no_agreement"),
        (5, 2, 0, "wrong_on_context"),
        (5, 0, 5, "wrong_on_context"),
        (5, 5, 3, "right_on_confounder"),
        (2, 1, 0, "wrong_on_context"),  # one half is no majority
        (2, 2, 1, "right_on_confounder"),
        (1, 1, 0, ""),
        (1, 0, 0, "wrong_on_context"),
        (1, 1, 1, "right_on_confounder"),
    ],
)
def test_rules(samples: int, right_on_context: int, right_on_confounder: int, code: str) -> None:
    def answers(right: int) -> list[str]:
        return ["circle"] * right + ["square"] * (samples - right)

    judge = verifier(answers(right_on_context), answers(right_on_confounder))
    ((said, reason),) = judge.judge([pair(smooth(0), smooth(1))])
    assert reason.partition(":")[0] == code
    assert said["context_share"] == right_on_context / samples
    assert said["confounder_share"] == right_on_confounder / samples
    assert said["confounder_answer_share"] == 1 - right_on_confounder / samples
    assert (said["name"], said["revision"]) == ("a:b", "script-1")
    assert (said["samples"], said["agreement"]) == (samples, 0.8)


@pytest.mark.parametrize("side", ["context", "confounder"])
def test_a_refused_prompt_rejects_its_pair(side: str) -> None:
    """By an endpoint that takes others; e.g. a content filter."""
    answers: dict[str, Answers] = {"context": ["circle"], "confounder": ["square"]}
    judge = verifier(*(answers | {side: Refusal("status 400: filtered")}).values(), samples=1)
    assert judge.judge([pair(smooth(0), smooth(1))]) == [
        ({}, f"verifier_refused: status 400: filtered (asked with the {side}), expected an answer")
    ]


def test_reason_tells_what_was_heard() -> None:
    judge = verifier(["A triangle.", "", "circle"], ["square"] * 3)
    ((said, reason),) = judge.judge([pair(smooth(0), smooth(1))])
    assert reason == (
        "wrong_on_context: gave 'circle' in 0.333 of the answers on the context and 0 on the confounder ('A triangle.', no answer, "
        "'circle'; 'square'), expected 'circle' on the context"
    )
    assert said["context_answers"] == ["A triangle.", None, "circle"]


def test_unknown_answer_of_the_confounder() -> None:
    """Whatever is not A will do, and there is nothing to record about A'."""
    judge = verifier(["circle"], ["I cannot tell"])
    ((said, reason),) = judge.judge([pair(smooth(0), smooth(1), confounder_answer=None)])
    assert (reason, said["confounder_answer_share"]) == ("", None)


def test_a_choice_is_judged_by_its_letter() -> None:
    given = pair(
        smooth(0),
        smooth(1),
        answer="B",
        confounder_answer="A",
        options=("square", "circle"),
        answer_type="choice",
    )
    judge = verifier(["The answer is (B)."], ["square"])
    ((said, reason),) = judge.judge([given])
    assert (reason, said["context_answers"], said["confounder_answers"]) == ("", ["B"], ["A"])


def test_what_is_asked() -> None:
    """The question as in training, about one side at a time; nothing tells the answer."""
    judge, given = verifier(["circle"], ["square"]), pair(smooth(0), smooth(1))
    judge.judge([given])
    asked: list[Prompt] = judge.assistant.asked  # type: ignore[attr-defined]
    assert [(prompt.key, prompt.images) for prompt in asked] == [
        ("p:context", (given.context,)),
        ("p:confounder", (given.confounder,)),
    ]
    assert {prompt.text for prompt in asked} == {vqa_messages("Which shape?")[0]["content"][-1]["text"]}
    judge = verifier(["circle"], ["square"])
    assert judge.judge([texts()])[0][1] == ""
    asked = judge.assistant.asked  # type: ignore[attr-defined]
    assert asked[0].text == "It is a circle.\n\nWhich shape?\nAnswer directly."
    assert asked[1].text == "It is a square.\n\nWhich shape?\nAnswer directly."
    assert asked[0].images == ()
    assert judge.judge([]) == []


def test_the_embedded_model_verifies(tmp_path: Path, pairs_folder: Path) -> None:
    """Through the command's own entry, on rendered pairs: every pair is kept with verdicts or has a reason."""
    config = load_config(
        VerifyConfig, None, ["verifier.assistant.model.path=tinyvl", "verifier.assistant.max_new_tokens=8"]
    )
    summary = run(config, pairs_folder, tmp_path / "out", Engine())
    assert summary["kept"] + summary["rejects"] == summary["inputs"] == 24
    assert summary["kept"] == summary["rows"] > 0
    assert set(summary["rejected"]) <= {"wrong_on_context", "right_on_confounder"}
    given = {row.id: row for row in read_pairs(pairs_folder)}
    for row in read_pairs(tmp_path / "out"):
        assert row.verdicts["verifier"]["context_share"] == 1
        assert row.verdicts["verifier"]["name"] == "tinyvl"
        assert row.verdicts["exact"]["changed_fraction"] > 0
        assert replace(row, verdicts={}) == replace(given[row.id], verdicts={})


def test_verdicts_that_are_there_stay(tmp_path: Path) -> None:
    from vlm_contextrl.storage import write_rows

    given = pair(smooth(0), edited(smooth(0)), verdicts={"human": "yes", "exact": "old"})
    write_rows([given, pair(smooth(0), smooth(1), id="q")], tmp_path / "in", recipe="edit", config={})
    summary = run(VerifyConfig(), tmp_path / "in", tmp_path / "out", Engine())
    assert summary["rejected"] == {"changed_everything": 1}
    (row,) = read_pairs(tmp_path / "out")
    assert row.verdicts["human"] == "yes"
    assert row.verdicts["exact"]["same_size"] is True
    assert "verifier" not in row.verdicts
    assert (row.recipe, row.provenance) == ("edit", {"licence": "CC0-1.0", "source": "in"})


def test_rows_of_an_image_folder_that_cannot_be_read_are_rejects(tmp_path: Path) -> None:
    """Of three rows one has no licence of its own and gets the configured one, one names a file that is not there."""
    for name, image in (("a.png", smooth(0)), ("b.png", edited(smooth(0)))):
        image.save(tmp_path / name)
    row = {
        "query": "Which shape?",
        "answer": "circle",
        "context_file_name": "a.png",
        "confounder_file_name": "b.png",
    }
    rows = [
        {**row, "id": "fine", "licence": "MIT"},
        {**row, "id": "bare"},
        {**row, "id": "gone", "context_file_name": "c.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(VerifyConfig(licence="CC0-1.0"), tmp_path, tmp_path / "out", Engine())
    assert (summary["inputs"], summary["kept"], summary["rejects"]) == (3, 2, 1)
    assert (summary["rejected"], summary["licences"]) == ({"unreadable": 1}, {"CC0-1.0": 1, "MIT": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bounds=null"], "bounds and verifier are both null"),
        (["bounds.ssim_min=0.9", "bounds.ssim_max=0.5"], "ssim_min 0.9 is over ssim_max 0.5"),
        (["bounds.changed_fraktion_max=1"], "did you mean 'changed_fraction_max'"),
        (["verifier.samples=3"], "assistant"),
        (
            ["verifier.assistant.model.path=tinyvl", "verifier.samples=3"],
            "samples is 3 and assistant.temperature 0",
        ),
        (["verifier.assistant.function=a:b", "verifier.agreement=0.4"], "agreement"),
    ],
)
def test_settings_that_make_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(VerifyConfig, None, overrides)
    assert "\n" not in str(refused.value)


def test_shipped_settings() -> None:
    config = load_config(VerifyConfig, Path(str(files("vlm_contextrl.configs") / "recipes/verify.yaml")))
    assert config.bounds == ExactBounds()
    assert config.verifier
    assert config.verifier.samples == 5


def test_a_verifier_that_is_not_there(tmp_path: Path, pairs_folder: Path) -> None:
    config = VerifyConfig(
        verifier=VerifierSettings(assistant=AssistantSettings(function="no_such_module:answer"))
    )
    with pytest.raises(ConfigError, match="no_such_module"):
        run(config, pairs_folder, tmp_path / "out", Engine())
    with pytest.raises(DataError, match="questions|not found"):
        run(VerifyConfig(), tmp_path / "nowhere", tmp_path / "out", Engine())


@pytest.mark.realdata
def test_photographs(realdata: Path) -> None:
    """Six photographs: an edit of a twentieth of the side passes, JPEG at quality 75 and more is no edit, another photograph at the
    same size is another picture."""
    names = sorted((realdata / "bench_blink").rglob("*.jpg"))[::60][:6]
    photographs = [Image.open(name).convert("RGB") for name in names]
    photographs = [image.resize((640, 480)) for image in photographs]
    codes: dict[str, list[str]] = {"edit": [], "saved again": [], "another": []}

    def code(context: Image.Image, confounder: Image.Image) -> str:
        return exact_checks(pair(context, confounder), BOUNDS)[1].partition(":")[0]

    for i, image in enumerate(photographs):
        codes["edit"].append(code(image, edited(image, 32)))
        codes["saved again"] += [code(image, jpeg(image, quality)) for quality in (75, 90)]
        codes["another"].append(code(image, photographs[i - 1]))
    print({name: {c: found.count(c) for c in set(found)} for name, found in codes.items()})
    assert len(photographs) == 6
    assert set(codes["edit"]) == {""}
    assert set(codes["saved again"]) == {"unchanged"}
    assert set(codes["another"]) == {"changed_everything"}
