"""The columns as Hugging Face `datasets` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.row_schema import arrow_schema
from vlm_contextrl.storage import Manifest, write_rows


def picture(*rgb: int) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", (4, 3), rgb))


def pair(number: int, **changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": f"p{number}",
        "query": "How many?",
        "answer": str(number),
        "context": picture(number, 0, 0),
        "confounder": picture(number, 255, 0),
        "confounder_answer": str(number + 1),
        "answer_type": "numeric",
        "domain": "objects" if number % 2 else "dials",
        "recipe": "render",
        "provenance": {"licence": "CC0-1.0", "scene": [number, {"x": 1.5}], "seed": number},
        "verdicts": {"human": {"keep": True}},
    }
    return ContrastivePair(**{**fields, **changes})


def question(number: int, **changes: Any) -> QuestionRow:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "query": "Größer als 3? ☂",
        "answer": "B",
        "options": ("yes", "no"),
        "answer_type": "choice",
        "images": tuple(picture(number, i, 0) for i in range(number % 3)),
        "provenance": {"licence": "MIT"},
    }
    return QuestionRow(**{**fields, **changes})


def write(rows: Any, out: Path, **options: Any) -> Manifest:
    return write_rows(rows, out, recipe="render", config={"size_px": 4}, **options)


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "cache"


def test_hugging_face_datasets_reads_pairs(tmp_path: Path, hugging_face: Path) -> None:
    import datasets

    out = tmp_path / "out"
    write([pair(1), pair(2, context="a text", confounder="another")], out, rejects=[("x", "y")] * 3)
    by_folder = datasets.load_dataset(str(out), cache_dir=str(hugging_face))["train"]
    by_files = datasets.load_dataset(
        "parquet", data_files=str(out / "data-*.parquet"), cache_dir=str(hugging_face)
    )
    for dataset in (by_folder, by_files["train"]):
        assert len(dataset) == 2
        assert dataset[0]["context"].convert("RGB").tobytes() == bytes([1, 0, 0] * 12)
        assert dataset[0]["confounder"].convert("RGB").tobytes() == bytes([1, 255, 0] * 12)
        assert dataset[0]["context_text"] is None
        assert (dataset[1]["context"], dataset[1]["context_text"]) == (None, "a text")
        assert json.loads(dataset[0]["provenance"])["scene"] == [1, {"x": 1.5}]


def test_hugging_face_datasets_reads_questions(tmp_path: Path, hugging_face: Path) -> None:
    import datasets

    write([question(1), question(2)], tmp_path / "out")
    dataset = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(hugging_face))["train"]
    assert [image.size for image in dataset[1]["images"]] == [(4, 3), (4, 3)]
    assert dataset[0]["options"] == ["yes", "no"]


def test_schema_is_the_one_datasets_makes() -> None:
    from datasets import Features, Image, List, Value

    for kind in ("pairs", "questions"):
        schema = arrow_schema(kind)
        features = Features.from_arrow_schema(schema)
        images = {"context": Image(), "confounder": Image(), "images": List(Image())}
        for name, feature in features.items():
            expected = images.get(name, List(Value("string")) if name == "options" else Value("string"))
            assert feature == expected
        assert features.arrow_schema.equals(schema)
