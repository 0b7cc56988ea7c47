"""Exports: what the files say, and that they are read back as equal rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.exports import export_rows
from vlm_contextrl.foreign.imports import import_rows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import read_manifest, read_pairs, read_rows, write_rows

FORMATS = ("imagefolder", "official", "trl", "parquet")


def picture(*rgb: int, form: str = "PNG") -> EncodedImage:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), rgb).save(buffer, form)
    return EncodedImage(buffer.getvalue())


def pair(number: int, **changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": f"pair/{number} ☂",
        "query": 'Which?\nLook: "twice", größer',
        "answer": "B",
        "confounder_answer": "A",
        "options": ("a cat", "a dog"),
        "answer_type": "choice",
        "context": picture(number, 0, 0),
        "confounder": picture(number, 255, 0, form="BMP"),
        "domain": "animals",
        "recipe": "edit",
        "provenance": {
            "licence": "CC0-1.0",
            "source": "me",
            "scene": [number, {"x": 1.5}],
            "similarity": 0.5,
        },
        "verdicts": {"human": {"keep": True}},
    }
    return ContrastivePair(**{**fields, **changes})


def question(number: int, n_images: int, **changes: Any) -> QuestionRow:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "query": "How many?",
        "answer": str(number),
        "answer_type": "numeric",
        "images": tuple(picture(number, i, 0, form="JPEG") for i in range(n_images)),
        "provenance": {"licence": "MIT", "seed": number},
    }
    return QuestionRow(**{**fields, **changes})


@pytest.fixture
def pairs_of_both_kinds_of_answers(tmp_path: Path) -> Path:
    rows = [
        pair(0),
        pair(1, confounder_answer=None, domain="", recipe="", verdicts={}),
        pair(2, options=(), answer="two", confounder_answer="three", answer_type="exact"),
        pair(3, options=(), answer="A", confounder_answer="B", answer_type="exact"),
        pair(4, options=(), answer="yes", confounder_answer="no", answer_type="boolean"),
    ]
    write_rows(rows, tmp_path / "pairs", recipe="made", config={"seed": 1})
    return tmp_path / "pairs"


def round_trip(folder: Path, tmp_path: Path, to: Any, kind: Any) -> dict[str, Any]:
    exported = export_rows(folder, tmp_path / to, to)
    imported = import_rows(tmp_path / to, tmp_path / "back", kind=kind)
    assert imported["rejected"] == {}
    assert imported["content_hash"] == exported["content_hash"] == read_manifest(folder).content_hash
    for row, back in zip(read_rows(folder)[1], read_rows(tmp_path / "back")[1], strict=True):
        assert (back.domain, back.recipe, back.verdicts) == (row.domain, row.recipe, row.verdicts)
        assert back.provenance == {"source": to, **row.provenance}
    return exported


@pytest.mark.parametrize("to", FORMATS)
def test_pairs_come_back(pairs_of_both_kinds_of_answers: Path, tmp_path: Path, to: str) -> None:
    """The same content hash: ids, texts, answers, options and pixels; and provenance and verdicts."""
    exported = round_trip(pairs_of_both_kinds_of_answers, tmp_path, to, "pairs")
    assert (exported["rows"], exported["format"], exported["licences"]) == (5, to, {"CC0-1.0": 5})
    assert "CC0-1.0 (5)" in (tmp_path / to / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("to", FORMATS)
def test_rendered_rows_come_back(pairs_folder: Path, questions_folder: Path, tmp_path: Path, to: str) -> None:
    round_trip(pairs_folder, tmp_path / "p", to, "pairs")
    round_trip(questions_folder, tmp_path / "q", to, "questions")


@pytest.mark.parametrize("to", FORMATS)
def test_questions_come_back(tmp_path: Path, to: str) -> None:
    """With 0, 1, 2 and 3 images, with options, with a text context."""
    rows = [question(n, n % 4) for n in range(5)]
    rows += [
        question(5, 2, options=("x", "y"), answer="A", answer_type="choice"),
        question(6, 1, context_text="Read: this.\n"),
    ]
    write_rows(rows, tmp_path / "questions", recipe="made", config={})
    round_trip(tmp_path / "questions", tmp_path, to, "questions")


@pytest.mark.parametrize("to", ["imagefolder", "trl", "parquet"])
def test_pairs_of_texts_come_back(tmp_path: Path, to: str) -> None:
    rows = [pair(n, context=f"log {n}\nok", confounder=f"log {n}\nfail") for n in range(3)]
    write_rows(rows, tmp_path / "texts", recipe="made", config={})
    round_trip(tmp_path / "texts", tmp_path, to, "pairs")


def test_texts_have_no_official_form(tmp_path: Path) -> None:
    """Nothing is left behind."""
    write_rows([pair(0), pair(1, context="a", confounder="b")], tmp_path / "texts", recipe="made", config={})
    with pytest.raises(
        DataError,
        match=r"pair 'pair/1 ☂': its contexts are texts, expected images; the formats imagefolder, trl",
    ):
        export_rows(tmp_path / "texts", tmp_path / "out", "official")
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_what_cannot_be_exported(tmp_path: Path, pairs_folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"--to: found 'coco', expected one of imagefolder, official, trl, parquet"
    ):
        export_rows(pairs_folder, tmp_path / "out", "coco")  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match=r"full: already exists"):
        export_rows(pairs_folder, tmp_path / "full", "trl")
    with pytest.raises(DataError, match=r"full: holds no dataset; expected manifest.json"):
        export_rows(tmp_path / "full", tmp_path / "out", "trl")


def test_image_folder(pairs_of_both_kinds_of_answers: Path, tmp_path: Path) -> None:
    """Files keep their bytes and their format; a name is by number, whatever the id says."""
    export_rows(pairs_of_both_kinds_of_answers, tmp_path / "out", "imagefolder")
    line = json.loads((tmp_path / "out" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["context_file_name"] == "images/000/000000-context.png"
    assert line["confounder_file_name"] == "images/000/000000-confounder.bmp"
    first = read_pairs(pairs_of_both_kinds_of_answers)[0].context
    assert isinstance(first, EncodedImage)
    assert (tmp_path / "out" / line["context_file_name"]).read_bytes() == first.data


def test_datasets_reads_the_image_folder(pairs_of_both_kinds_of_answers: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    export_rows(pairs_of_both_kinds_of_answers, tmp_path / "out", "imagefolder")
    loaded = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0]["context"].getpixel((0, 0)) == (0, 0, 0)
    assert loaded[0]["confounder"].getpixel((0, 0)) == (0, 255, 0)
    assert (loaded[0]["answer"], loaded[0]["licence"]) == ("B", "CC0-1.0")


def test_official_order_is_random_and_seeded(tmp_path: Path) -> None:
    """Of 200 pairs about half have the supporting image first: within 4 standard deviations (7.1 each) of 100."""
    write_rows([pair(n % 256, id=str(n)) for n in range(200)], tmp_path / "pairs", recipe="made", config={})
    letters = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        export_rows(tmp_path / "pairs", tmp_path / name, "official", seed=seed)
        lines = (tmp_path / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
        letters[name] = [json.loads(line)["answer"] for line in lines]
    assert letters["a"] == letters["b"] != letters["c"]
    assert abs(Counter(letters["a"])["A"] - 100) < 29
    line = json.loads((tmp_path / "a" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["problem"] == (
        'Image A:<image>\nImage B:<image>\nQuestion: Which?\nLook: "twice", größer\nA. a cat\nB. a dog\nAnswer: B. a dog\n'
        "Which image supports the answer? Output A or B directly."
    )
    assert line["candidate_answer"] == "B"


def test_a_prompt_alone_is_enough(pairs_of_both_kinds_of_answers: Path, tmp_path: Path) -> None:
    """Without the keys query, options and candidate_answer the pairs come from the prompt's text; only the types are guessed."""
    export_rows(pairs_of_both_kinds_of_answers, tmp_path / "out", "official")
    file = tmp_path / "out" / "train.jsonl"
    kept = ("id", "problem", "images", "answer", "licence")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps({key: line[key] for key in kept}) + "\n" for line in lines))
    for row, back in zip(
        read_pairs(pairs_of_both_kinds_of_answers), read_pairs(tmp_path / "out"), strict=True
    ):
        assert (back.query, back.options, back.answer) == (row.query, row.options, row.answer)
        assert back.context == row.context


def load_parquet(folder: Path, tmp_path: Path) -> Any:
    from datasets import load_dataset

    files = str(folder / "train-*.parquet")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))


def test_trl_pairs_as_trl_prepares_them(pairs_of_both_kinds_of_answers: Path, tmp_path: Path) -> None:
    """TRL counts the placeholders and puts the pictures in; the one whose letter is the solution is the context."""
    prepare = pytest.importorskip("trl.data_utils").prepare_multimodal_messages
    export_rows(pairs_of_both_kinds_of_answers, tmp_path / "out", "trl")
    rows = load_parquet(tmp_path / "out", tmp_path)
    assert {"prompt", "images", "solution", "licence", "id"} <= set(rows.column_names)
    for number, row in enumerate(rows):
        content = prepare(row["prompt"], row["images"])[0]["content"]
        pictures = [part["image"] for part in content if part["type"] == "image"]
        assert pictures["AB".index(row["solution"])].getpixel((0, 0)) == (number, 0, 0)
        assert content[0]["text"] == "Image A:"
        assert content[-1]["text"].endswith("Output A or B directly.")


def test_trl_questions_as_trl_prepares_them(tmp_path: Path) -> None:
    prepare = pytest.importorskip("trl.data_utils").prepare_multimodal_messages
    write_rows([question(n, n) for n in range(3)], tmp_path / "questions", recipe="made", config={})
    export_rows(tmp_path / "questions", tmp_path / "out", "trl", style="direct")
    for number, row in enumerate(load_parquet(tmp_path / "out", tmp_path)):
        content = prepare(row["prompt"], row["images"])[0]["content"]
        assert [part["type"] for part in content] == ["image"] * number + ["text"]
        assert (content[-1]["text"], row["solution"]) == ("How many?\nAnswer directly.", str(number))


def test_trl_texts_are_plain(tmp_path: Path) -> None:
    """Templates of text models take texts, not parts."""
    write_rows([pair(0, context="log 1", confounder="log 2")], tmp_path / "texts", recipe="made", config={})
    export_rows(tmp_path / "texts", tmp_path / "out", "trl")
    (row,) = load_parquet(tmp_path / "out", tmp_path)
    assert "images" not in row
    (message,) = row["prompt"]
    first, second = ("log 1", "log 2") if row["solution"] == "A" else ("log 2", "log 1")
    assert message["content"].startswith(f"Context A:\n{first}\nContext B:\n{second}\nQuestion: Which?")


def test_parquet_is_split_into_files_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows are 948 bytes. Groups of 2 rows, files of 1,800 bytes: groups of 2 and 2, and of 1 in a second file."""
    import pyarrow.parquet as pq

    write_rows([pair(n) for n in range(5)], tmp_path / "pairs", recipe="made", config={})
    monkeypatch.setattr("vlm_contextrl.exports.GROUP_ROWS", 2)
    monkeypatch.setattr("vlm_contextrl.exports.SHARD_BYTES", 1800)
    export_rows(tmp_path / "pairs", tmp_path / "out", "parquet")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [file.name for file in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    groups = [
        [pq.read_metadata(file).row_group(n).num_rows for n in range(pq.read_metadata(file).num_row_groups)]
        for file in files
    ]
    assert groups == [[2, 2], [1]]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing.*` is deprecated:FutureWarning"
)  # TRL 1.16 asks by old names
@pytest.mark.parametrize("rows", ["pairs", "questions"])
def test_trl_trains_on_an_export(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path, rows: str
) -> None:
    """One step of `GRPOTrainer` as it is, on the Parquet that was written; its reward function gets the column `solution`."""
    trl = pytest.importorskip("trl")
    from tests.test_trl import model_of, processor_of

    if rows == "questions":  # every prompt of a batch needs the same columns, not the same number of pictures
        write_rows(
            [question(n, 1 + n % 2) for n in range(4)], tmp_path / "questions", recipe="made", config={}
        )
    export_rows(
        tmp_path / "questions" if rows == "questions" else noise_rows["pairs"],
        tmp_path / "out",
        "trl",
        style="direct",
    )
    dataset = load_parquet(tmp_path / "out", tmp_path)
    solutions: list[str] = []

    def reward(completions: list[Any], solution: list[str], **_: Any) -> list[float]:
        solutions.extend(solution)
        return [float(len(turns[0]["content"]) % 2) for turns in completions]

    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to=[], max_steps=1, num_generations=4, disable_tqdm=True,
        per_device_train_batch_size=8, max_completion_length=4, dataloader_pin_memory=False, save_strategy="no",
        gradient_checkpointing=False,
    )  # fmt: skip
    folder = qwen_folders["qwen2_5_vl"]
    trainer = trl.GRPOTrainer(
        model=model_of(folder),
        reward_funcs=reward,
        args=args,
        train_dataset=dataset,
        processing_class=processor_of("qwen2_5_vl", folder),
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(solutions) == 8
    assert set(solutions) <= set(dataset["solution"])
