"""`pairs edit` from questions to pairs, with a painter in place of the diffusion model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from PIL import Image

from tests.tiny_editors import VERIFIER, WRITER, blank_question, edit_with_a_kill, open_painter, rejects
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.assistants import Answers, Prompt, Refusal
from vlm_contextrl.data_recipes.edit import EditConfig, recipe, run
from vlm_contextrl.data_recipes.edit.recipe import EditStep, made_smaller
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import DataError
from vlm_contextrl.images import changed_fraction
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import read_manifest, read_pairs, write_rows

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "open_editor", open_painter)


def config(**settings: Any) -> EditConfig:
    """Scripted writer, painter, no verifier."""
    values = {"writer": {"function": WRITER}, "editor": {"path": "painter"}, "batch_rows": 3}
    return EditConfig.model_validate(values | settings)


def questions(tmp_path: Path, rows: list[QuestionRow]) -> Path:
    write_rows(rows, tmp_path / "questions", recipe="blank", config={})
    return tmp_path / "questions"


def pair_of(row: QuestionRow, **settings: Any) -> ContrastivePair | str:
    """What becomes of one question, or the reason why nothing does."""
    (outcome,) = EditStep(config(**settings), open_painter(config().editor))([row])
    return outcome.rows[0] if outcome.rows else outcome.reason  # type: ignore[return-value]


def test_questions_become_pairs_or_reasons(tmp_path: Path) -> None:
    """Of 10 questions 4 work. A square of 14 x 14 px on 56 x 56 px is 196 / 3136 = 0.0625 of the picture."""
    two = blank_question(5).images * 2
    rows = [
        *map(blank_question, range(4)), blank_question(4, "How many? [silent]"), blank_question(5, images=two),
        blank_question(6, "How many? [same]"), blank_question(7, "How many? [broken]"), blank_question(8, "How many? [idle]"),
        blank_question(9, context_text="Some text."),
    ]  # fmt: skip
    out = tmp_path / "pairs"
    summary = run(config(seed=4), questions(tmp_path, rows), out, Engine())
    assert (summary["inputs"], summary["kept"], summary["rejects"], summary["rows"]) == (10, 4, 6, 4)
    assert summary["kept"] + summary["rejects"] == summary["inputs"]
    assert summary["rejected"] == Counter(
        writer_no_object=1, not_one_image=1, same_answer=1, editor_failed=1, unchanged=1, has_text=1
    )
    assert set(rejects(out)) == {f"q{n:03d}" for n in range(4, 10)}
    pairs = list(read_pairs(out))
    assert sum(summary["edited"].values()) == 4
    assert [pair.id for pair in pairs] == [f"q{n:03d}~edit" for n in range(4)]
    for pair, row in zip(pairs, rows, strict=False):
        sides = {
            "context": (pair.context, pair.answer),
            "confounder": (pair.confounder, pair.confounder_answer),
        }
        edited = pair.provenance["edited"]
        (other,) = sides.keys() - {edited}
        assert sides[edited][1] == "8"
        assert sides[other][1] == "7"
        original = sides[other][0]
        assert isinstance(original, EncodedImage)
        assert original.pixel_hash() == row.images[0].pixel_hash()
        assert pair.provenance["changed_fraction"] == 0.0625
        assert (pair.query, pair.answer_type, pair.domain, pair.recipe) == (
            "How many?",
            "numeric",
            "counting",
            "edit",
        )
        told = {
            "licence": "CC0-1.0",
            "source": "blank",
            "made_from": [row.id],
            "edit": "paint a square",
            "writer": WRITER,
            "seed": 4,
        }
        assert told.items() <= pair.provenance.items()
        assert {
            "editor": "painter",
            "editor_revision": "painter-1",
            "reencoded": False,
        }.items() <= pair.provenance.items()
        assert pair.verdicts["exact"]["changed_fraction"] == 0.0625


def test_neither_side_can_be_told_by_its_file() -> None:
    """The original was a JPEG; both sides are PNG now, written by the same code from pixels."""
    import io

    file = io.BytesIO()
    Image.linear_gradient("L").resize((56, 56)).convert("RGB").save(file, "JPEG")
    pair = pair_of(blank_question(1, images=(EncodedImage(file.getvalue()),)))
    assert isinstance(pair, ContrastivePair)
    for side in (pair.context, pair.confounder):
        assert isinstance(side, EncodedImage)
        assert side == EncodedImage.from_image(side.decode())


def test_half_of_the_pairs_are_mirrored() -> None:
    """100 fair coins show 30 to 70 heads but for odds of 1 in 25,000 (four standard deviations of 5)."""
    step = EditStep(config(), open_painter(config().editor))
    outcomes = step([blank_question(n) for n in range(100)])
    edited = Counter(outcome.rows[0].provenance["edited"] for outcome in outcomes)
    assert 30 <= edited["context"] <= 70
    assert edited.total() == 100


def test_a_pair_depends_on_seed_and_question_alone() -> None:
    """Neither the batch nor the order counts; another seed gives other squares and other coins."""
    rows = [blank_question(n) for n in range(20)]

    def made(order: list[int], size: int, seed: int = 0) -> dict[str, ContrastivePair]:
        step = EditStep(config(seed=seed), open_painter(config().editor))
        batches = [[rows[i] for i in order[at : at + size]] for at in range(0, 20, size)]
        return {pair.id: pair for batch in batches for outcome in step(batch) for pair in outcome.rows}  # type: ignore[misc]

    shuffled = list(range(20))
    Random(1).shuffle(shuffled)
    assert made(list(range(20)), 20) == made(shuffled, 3)
    other = made(list(range(20)), 20, seed=1)
    assert any(
        pair.provenance["edited"] != other[i].provenance["edited"] for i, pair in made(shuffled, 20).items()
    )
    assert all(
        pair.context != other[i].context for i, pair in made(shuffled, 20).items() if pair.answer == "8"
    )


def test_a_verifier_must_see_both_answers() -> None:
    """Whoever always says 7, or always 8, rejects every pair, whichever side is the edited one: the coin decides about no pair's fate.

    A blind one sees 7 on both: a pair with context 7 is refused because the confounder shows 7, a mirrored one because its context does
    not show 8.
    """
    settings = {"verifier": {"assistant": {"function": VERIFIER}}}
    rows = [blank_question(n) for n in range(12)]
    step = EditStep(config(**settings), open_painter(config().editor))
    kept = step(rows)
    assert all(outcome.rows for outcome in kept)
    verdict = kept[0].rows[0].verdicts["verifier"]
    assert (verdict["context_share"], verdict["confounder_share"], verdict["confounder_answer_share"]) == (
        1,
        0,
        1,
    )
    for mark in ("[blind]", "[seer]"):
        codes = Counter(
            outcome.reason.partition(":")[0] for outcome in step([blank_question(n, mark) for n in range(12)])
        )
        assert codes.keys() == {"right_on_confounder", "wrong_on_context"}


def test_a_refused_prompt_rejects_its_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's endpoint takes every prompt but the second."""
    step = EditStep(config(), open_painter(config().editor))
    ask = step.writer.ask

    def refuses(prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        answers = list(ask(prompts, n))
        answers[1] = Refusal("status 400: filtered")
        return answers

    monkeypatch.setattr(step.writer, "ask", refuses)
    outcomes = step([blank_question(n) for n in range(3)])
    assert [outcome.reason for outcome in outcomes] == [
        "",
        "writer_refused: status 400: filtered, expected a proposal",
        "",
    ]


def test_a_verifier_that_sees_a_third_answer_on_the_edited_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says 7 on the original and 9 on the edited picture, where the writer promised 8: refused on either side, with either code."""
    monkeypatch.setattr(
        "tests.tiny_editors.look", lambda text, images, seed: "79"[len(images[0].getcolors()) > 1]
    )
    step = EditStep(config(verifier={"assistant": {"function": VERIFIER}}), open_painter(config().editor))
    codes = Counter(
        outcome.reason.partition(":")[0] for outcome in step([blank_question(n) for n in range(12)])
    )
    assert codes.keys() == {"other_answer_unseen", "wrong_on_context"}
    assert codes.total() == 12


def test_large_pictures_are_made_smaller_on_both_sides() -> None:
    """112 x 56 px into 3136 px: the scale is sqrt(3136 / 6272) = 0.7071, the picture 79 x 39 px."""
    large = Image.new("RGB", (112, 56), "white")
    assert made_smaller(large, 3136).size == (79, 39)
    assert made_smaller(large, 112 * 56) is large
    pair = pair_of(blank_question(0, images=(EncodedImage.from_image(large),)), max_pixels=3136)
    assert isinstance(pair, ContrastivePair)
    sizes = {side.decode().size for side in (pair.context, pair.confounder) if isinstance(side, EncodedImage)}
    assert sizes == {(79, 39)}


def test_an_edited_picture_gets_the_size_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines that work at 1024 x 1024 px give such a picture back."""
    large = Image.new("RGB", (1024, 1024), "black")
    monkeypatch.setattr("tests.tiny_editors.SquarePainter.edit", lambda *arguments: large)
    pair = pair_of(
        blank_question(0), bounds={"changed_fraction_max": 1, "channel_difference_max": 255, "ssim_min": -1}
    )
    assert isinstance(pair, ContrastivePair)
    pictures = [side.decode() for side in (pair.context, pair.confounder) if isinstance(side, EncodedImage)]
    assert [picture.size for picture in pictures] == [(56, 56)] * 2
    assert changed_fraction(*pictures) == 1


def test_rows_without_a_licence_are_refused_and_counted(tmp_path: Path) -> None:
    """Line 2 of three names no licence; with `licence` it is taken."""
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for n in range(3):
        (folder / f"{n}.png").write_bytes(blank_question(n).images[0].data)
        row = {"id": f"q{n}", "question": "How many?", "answer": "7", "file_name": f"{n}.png"}
        lines.append(json.dumps(row | ({} if n == 1 else {"licence": "CC0-1.0"})))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    summary = run(config(), folder, tmp_path / "a", Engine())
    assert (summary["inputs"], summary["kept"], summary["rejects"]) == (3, 2, 1)
    assert "licence" in rejects(tmp_path / "a")["q1"]
    summary = run(config(licence="CC-BY-4.0"), folder, tmp_path / "b", Engine())
    assert summary["licences"] == {"CC-BY-4.0": 1, "CC0-1.0": 2}


def test_nothing_kept_is_an_error(tmp_path: Path) -> None:
    folder = questions(tmp_path, [blank_question(n, "How many? [silent]") for n in range(2)])
    with pytest.raises(
        DataError, match=r"all 2 inputs were rejected \(writer_no_object 2\), e.g. 'q000': writer_no_object: "
    ):
        run(config(), folder, tmp_path / "out", Engine())
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL after two of five parts: the second run gives what an unbroken one gives, and asks about no finished part again."""
    rows = [blank_question(n, "How many?" + " [silent]" * (n % 5 == 4)) for n in range(15)]
    folder, out = questions(tmp_path, rows), tmp_path / "killed"
    unbroken = run(config(), folder, tmp_path / "unbroken", Engine())
    finished, calls = edit_with_a_kill(config(), folder, out)
    assert calls == 15 - 3 * finished
    assert read_manifest(out).content_hash == unbroken["content_hash"]
    assert rejects(out) == rejects(tmp_path / "unbroken")
    assert len(rejects(out)) == 3
    assert [pair.provenance for pair in read_pairs(out)] == [
        p.provenance for p in read_pairs(tmp_path / "unbroken")
    ]


@pytest.mark.slow
def test_a_local_model_as_writer(tmp_path: Path, tiny_model_folder: Path) -> None:
    """It has random weights, so its proposals are no objects; they are read all the same."""
    folder = questions(tmp_path, [blank_question(n) for n in range(2)])
    writer = {"model": {"path": str(tiny_model_folder)}, "max_new_tokens": 4}
    with pytest.raises(
        DataError, match=r"all 2 inputs were rejected \(writer_no_object 2\), e.g. 'q000': writer_no_object: "
    ):
        run(config(writer=writer), folder, tmp_path / "out", Engine())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its own settings
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_several_workers_give_the_same_dataset(tmp_path: Path, engine: Literal["local", "ray"]) -> None:
    folder = questions(tmp_path, [blank_question(n) for n in range(10)])
    one = run(config(), folder, tmp_path / "one", Engine())
    two = run(config(), folder, tmp_path / "two", Engine(engine, 2))
    assert one["content_hash"] == two["content_hash"]


def test_the_shipped_settings_are_settings() -> None:
    shipped = load_config(EditConfig, ROOT / "configs" / "recipes" / "edit.yaml")
    assert shipped.editor.path == "Qwen/Qwen-Image-Edit-2509"
    assert shipped.verifier
