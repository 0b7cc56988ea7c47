"""Inputs that a recipe could mistake: benchmarks in other shapes, changed files behind a killed run, scenes of joined rows, odd names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.test_assistants import script
from tests.test_splits import pair
from tests.test_trajectories import logs
from vlm_contextrl.config import validate
from vlm_contextrl.data_recipes.assistants import AssistantSettings
from vlm_contextrl.data_recipes.compose.labels import alike
from vlm_contextrl.data_recipes.curate.benchmarks import BenchmarkImages, find_benchmarks
from vlm_contextrl.data_recipes.curate.verify import VerifyConfig
from vlm_contextrl.data_recipes.curate.verify import run as verify
from vlm_contextrl.data_recipes.inputs import provenance, question_input
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.retrieve import RetrieveConfig
from vlm_contextrl.data_recipes.retrieve import run as retrieve
from vlm_contextrl.data_recipes.trajectories.sources import scan
from vlm_contextrl.dataset_report.contact_sheet import contact_sheet
from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.exports import FORMATS, export_rows
from vlm_contextrl.foreign.imports import import_rows
from vlm_contextrl.pairs import EncodedImage, QuestionRow
from vlm_contextrl.result_files import write_json
from vlm_contextrl.splits import split_rows
from vlm_contextrl.storage import content_hash, read_questions, write_rows

__all__ = ["logs", "script"]  # fixtures of other files
QUESTION = "How many of the wooden boats on the lake carry a lantern at their bow?"


def png(colour: int, size: tuple[int, int] = (8, 8)) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", size, (colour, colour, colour)))


def row(number: int, colour: int, **changes: Any) -> QuestionRow:
    told: dict[str, Any] = {
        "id": f"q{number}",
        "query": "Which?",
        "answer": str(number),
        "images": (png(colour),),
    }
    return QuestionRow(**told | {"provenance": {"licence": "CC0-1.0"}} | changes)


# ---------------------------------------------------------------- benchmarks


@pytest.mark.parametrize(
    "value",
    [
        {"info": {"year": 2026}, "questions": [{"question": QUESTION}]},
        {"question": QUESTION, "answer": "2"},
        {"1": {"question": QUESTION}},
        {"data": {"val": [{"id": 1, "query": QUESTION}]}},
        [{"problem": QUESTION}],
    ],
)
def test_questions_are_found_however_deep(value: Any, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps(value))
    assert [text for _, text in find_benchmarks([tmp_path]).questions] == [QUESTION]


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    """A text may hold what Python takes for the end of a line."""
    lines = [
        json.dumps({"question": f"{QUESTION}{odd}"}, ensure_ascii=False) for odd in ("", "\u2028x", "\x85y")
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = find_benchmarks([tmp_path])
    assert len(found.questions) == 3
    assert not found.unread


def test_columns_of_other_types(tmp_path: Path) -> None:
    """Words of a dictionary, and plain bytes in a column that is named for images; another column of bytes is none."""
    table = pa.table({
        "question": pa.array([QUESTION]).dictionary_encode(),
        "image": pa.array([png(9).data]),
        "embedding": pa.array([b"1234"]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    found = find_benchmarks([tmp_path])
    assert [text for _, text in found.questions] == [QUESTION]
    assert [image.pixel_hash() for image in BenchmarkImages(found.images)] == [png(9).pixel_hash()]


def test_files_that_hold_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(1).data)
    (tmp_path / "t.tsv").write_text(f"index\tquestion\n1\t{QUESTION}\n")
    (tmp_path / "info.json").write_text('{"year": 2026}')
    pq.write_table(pa.table({"prompt_id": [1]}), tmp_path / "t.parquet")
    unread = dict(find_benchmarks([tmp_path]).unread)
    assert {name.rpartition("/")[2] for name in unread} == {"t.tsv", "info.json", "t.parquet"}


# ---------------------------------------------------------------- work that was begun with something else


def folder_of_rows(folder: Path, colours: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for number, colour in enumerate(colours):
        (folder / f"{number}.png").write_bytes(png(colour).data)
        lines.append(
            {
                "id": f"q{number}",
                "images": [f"{number}.png"],
                "question": "Which?",
                "answer": str(number),
                "licence": "MIT",
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_images_beside_the_rows_are_part_of_the_input(tmp_path: Path) -> None:
    folder = folder_of_rows(tmp_path / "in", (10, 60))
    before = content_hash(folder)
    assert content_hash(folder) == before
    (folder / "1.png").write_bytes(png(61).data)
    assert content_hash(folder) != before


def test_another_function_does_not_go_on(
    tmp_path: Path, script: Callable[[str, str], AssistantSettings]
) -> None:
    """The third pair stops the run; a function with another source is told, not passed over."""
    write_rows([pair(n, n, n + 50) for n in range(3)], tmp_path / "in", recipe="x", config={})
    script(
        "says", "def answer(text, images, seed): return 'a' if images[0].getpixel((0, 0))[0] != 2 else None"
    )
    told = {"bounds": None, "verifier": {"assistant": {"function": "says:answer"}}, "batch_rows": 1}
    config = validate(VerifyConfig, told, "config")
    with pytest.raises(InputError, match="returned None, expected a text"):
        verify(config, tmp_path / "in", tmp_path / "out", Engine())
    script("says", "def answer(text, images, seed): return 'a'")
    with pytest.raises(DataError, match="unfinished work with another asked.*remove the folder"):
        verify(config, tmp_path / "in", tmp_path / "out", Engine())


def test_files_of_a_model_are_part_of_its_content(tmp_path: Path) -> None:
    settings = AssistantSettings.model_validate({"model": {"path": str(tmp_path)}})
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = settings.content
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert settings.content != before


def test_a_window_can_be_widened(tmp_path: Path) -> None:
    """As the error advises."""
    write_rows([row(n, 120 * n, answer=str(n)) for n in range(3)], tmp_path / "in", recipe="x", config={})

    def run(low: float) -> dict[str, Any]:
        return retrieve(
            validate(RetrieveConfig, {"low": low}, "config"), tmp_path / "in", tmp_path / "out", Engine()
        )

    with pytest.raises(DataError, match="widen low and high"):
        run(0.99999999)
    assert run(-1.0)["pairs"] > 0


def test_a_worker_that_dies_is_one_line(
    tmp_path: Path, script: Callable[[str, str], AssistantSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows([pair(n, n, n + 50) for n in range(4)], tmp_path / "in", recipe="x", config={})
    script("dies", "import os\ndef answer(text, images, seed): os._exit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = {"bounds": None, "verifier": {"assistant": {"function": "dies:answer"}}, "batch_rows": 2}
    with pytest.raises(InputError, match="a worker process ended without a word"):
        verify(validate(VerifyConfig, told, "config"), tmp_path / "in", tmp_path / "out", Engine(workers=2))


# ---------------------------------------------------------------- provenance


def test_scenes_of_joined_rows_are_a_list_that_a_split_holds_together() -> None:
    """s1 with s2, and s1 with s3: one group, though no image is shared; both with the question of s3."""
    scenes = [row(n, n, provenance={"licence": "MIT", "scene": f"s{n}"}) for n in (1, 2, 3)]
    first, second = provenance(scenes[0], scenes[1]), provenance(scenes[0], scenes[2])
    assert first["scene"] == ["s1", "s2"]
    assert provenance(scenes[0], scenes[0])["scene"] == "s1"
    rows = {
        "pairs": [
            pair(1, 10, 11, **first),
            pair(2, 12, 13, **second),
            *(pair(n, n, n + 500) for n in range(50, 90)),
        ],
        "questions": [scenes[2], *(row(n, n) for n in range(150, 190))],
    }
    for seed in range(8):
        found = split_rows(rows, {"train": 0.5, "test": 0.5}, seed)
        sides = {next(s for s, numbers in found[name].items() if at in numbers) for name, at in
                 (("pairs", 0), ("pairs", 1), ("questions", 0))}  # fmt: skip
        assert len(sides) == 1


def test_rows_that_name_no_source_have_that_of_their_folder(tmp_path: Path) -> None:
    folder = folder_of_rows(tmp_path / "boats", (10, 60))
    assert [each.provenance["source"] for each in question_input(folder).rows] == ["boats", "boats"]


def test_a_password_never_comes_into_a_row() -> None:
    with pytest.raises(ValueError, match="would stand in every row; give a key by api_key_variable"):
        AssistantSettings(endpoint="http://user:secret@host/v1", endpoint_model="m")
    assert AssistantSettings(endpoint="http://host/v1/a@b", endpoint_model="m").endpoint


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("to", FORMATS)
def test_what_looks_like_a_pair_comes_back_as_the_question_that_it_is(to: Any, tmp_path: Path) -> None:
    """Two pictures and the answer A; lettered lines at the end of a query that has no options."""
    rows = [
        row(1, 10, query="Which image is brighter, A or B?", answer="A", images=(png(10), png(90))),
        row(2, 20, query="Which side?\nA. left\nB. right", answer="A"),
    ]
    write_rows(rows, tmp_path / "in", recipe="x", config={})
    export_rows(tmp_path / "in", tmp_path / "out", to)
    import_rows(tmp_path / "out", tmp_path / "back")
    back = list(read_questions(tmp_path / "back"))
    assert [(r.query, r.answer, r.options, len(r.images)) for r in back] == [
        (r.query, r.answer, r.options, len(r.images)) for r in rows
    ]


@pytest.mark.parametrize("answer", [1, "purple"])
def test_an_answer_that_is_no_option_is_refused(answer: Any, tmp_path: Path) -> None:
    """An index, as some sets give it, would be read as a number."""
    line = {
        "question": "Which?",
        "options": ["red", "blue", None],
        "answer": answer,
        "licence": "MIT",
        "images": ["0.png"],
    }
    good = {**line, "answer": "blue"}
    (tmp_path / "0.png").write_bytes(png(1).data)
    (tmp_path / "rows.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(good))
    summary = import_rows(tmp_path, tmp_path / "out")
    assert (summary["kept"], summary["rejected"]) == (1, {"unreadable": 1})
    (kept,) = read_questions(tmp_path / "out")
    assert (kept.options, kept.answer) == (("red", "blue"), "B")
    assert "none of the 2 options" in (tmp_path / "out/rejects.jsonl").read_text()


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_licence_is_none(empty: Any, tmp_path: Path) -> None:
    line = {"question": "Which?", "answer": "x", "provenance": {"licence": empty}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line))
    import_rows(tmp_path, tmp_path / "out", licence="MIT")
    assert read_questions(tmp_path / "out")[0].provenance["licence"] == "MIT"


@pytest.mark.parametrize(
    ("one", "many"),
    [("cherry", "cherries"), ("box", "boxes"), ("child", "children"), ("mouse", "mice"), ("knife", "knives")],
)
def test_one_and_many_are_alike(one: str, many: str) -> None:
    assert alike(one, many)
    assert alike(many, one)
    assert not alike(one, "tree")


def test_work_and_results_below_the_logs_are_no_logs(logs: Path) -> None:
    before = scan(logs, None)
    (logs / ".out.parts/facts").mkdir(parents=True)
    (logs / ".out.parts/facts/facts.jsonl").write_text("{}\n")
    write_rows([row(1, 1)], logs / "out", recipe="x", config={})
    after = scan(logs, None)
    assert (after.places, after.refused, after.content_hash) == (
        before.places,
        before.refused,
        before.content_hash,
    )


# ---------------------------------------------------------------- results


def test_half_a_surrogate_is_written_as_an_escape(tmp_path: Path) -> None:
    """A file name that is no UTF-8 reaches a summary so."""
    write_json(tmp_path / "s.json", {"id": "caf\udce9"})
    assert json.loads((tmp_path / "s.json").read_text()) == {"id": "caf\udce9"}


def test_a_strip_of_one_pixel_has_a_sheet(tmp_path: Path) -> None:
    write_rows([row(1, 1, images=(png(1, (1, 1000)),))], tmp_path / "in", recipe="x", config={})
    assert contact_sheet(tmp_path / "in").width > 100


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset; expected manifest.json"):
        question_input(tmp_path)


def test_a_result_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    write_rows([pair(1, 1, 2)], tmp_path / "in", recipe="x", config={})
    (tmp_path / "file").touch()
    with pytest.raises((DataError, InputError), match="file"):
        verify(VerifyConfig(), tmp_path / "in", tmp_path / "file/out", Engine())
