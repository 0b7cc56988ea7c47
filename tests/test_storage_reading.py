"""Reading dataset folders that are not what they should be: one line that names file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.row_schema import arrow_schema
from vlm_contextrl.storage import Manifest, read_pairs, read_questions, verify_folder, write_rows


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


def test_reading_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: not found, expected a dataset folder, an image folder or"):
        read_pairs(tmp_path / "gone")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match=r"file.txt: is a file, expected a dataset folder or a .jsonl file"):
        read_pairs(tmp_path / "file.txt")


def test_reading_the_wrong_kind(tmp_path: Path) -> None:
    write([pair(1)], tmp_path / "pairs")
    write([question(1)], tmp_path / "questions")
    with pytest.raises(DataError, match=r"pairs: holds pairs, expected questions$"):
        read_questions(tmp_path / "pairs")
    with pytest.raises(DataError, match=r"questions: holds questions, expected pairs$"):
        read_pairs(tmp_path / "questions")


def edit_manifest(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    value.update(changes)
    (folder / "manifest.json").write_text(
        json.dumps({key: entry for key, entry in value.items() if entry is not None})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"manifest.json: format_version is 2, expected 1$"),
        ({"kind": "pictures"}, r"manifest.json: kind is 'pictures', expected 'pairs' or 'questions'$"),
        ({"rows": 5}, r"out: 2 rows, expected the 5 of manifest.json$"),
        ({"recipe": None}, r"manifest.json: no recipe; make the dataset again$"),
        ({"shards": ["../x.parquet"]}, r"shard '../x.parquet', expected the name of a file in the folder$"),
        (
            {"shards": ["gone.parquet"]},
            r"gone.parquet: missing, expected the 1 files that manifest.json lists$",
        ),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write([pair(1), pair(2)], tmp_path / "out")
    edit_manifest(tmp_path / "out", **changes)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "out")


def test_a_missing_or_broken_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write([pair(1)], out, rejects=[("x", "y")])
    (out / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: cannot be read \(.*\), expected a JSON object"):
        read_pairs(out)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"out: incomplete dataset, no manifest.json \(it is written last"):
        read_pairs(out)


def rewrite(out: Path, row: int, **values: Any) -> None:
    """Changes one row of the only shard behind the package's back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = out / "data-00000-of-00001.parquet"
    table = pq.read_table(file)
    records = table.to_pylist()
    records[row].update(values)
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), file)


def image_value(image: EncodedImage) -> dict[str, Any]:
    return {"bytes": image.data, "path": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": {"bytes": b"abc", "path": None}}, r"context: 3 bytes starting with b'abc' are no image"),
        (
            {"context": image_value(EncodedImage(picture(1, 2, 3).data[:48]))},
            r"context: damaged or truncated \(",
        ),
        (
            {"context": {"bytes": None, "path": "/etc/x.png"}},
            r"context: .*/etc/x.png.*, expected embedded image",
        ),
        (
            {"confounder": image_value(picture(1, 0, 0))},
            r"\(id 'p1'\): context and confounder have the same pix",
        ),
        ({"provenance": '{"seed": 1}'}, r"\(id 'p1'\): provenance\['licence'\] is None"),
        ({"provenance": "{"}, r"provenance is not JSON \(.*\), expected a JSON object$"),
        ({"verdicts": "[]"}, r"verdicts is '\[\]', expected a JSON object$"),
        ({"answer": None}, r"\(id 'p1'\): answer is a NoneType, expected a text$"),
        (
            {"context": None, "confounder": None},
            r"context and confounder are NoneType and NoneType, expected",
        ),
    ],
)
def test_a_broken_row_names_its_file_and_row(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    write([pair(0), pair(1), pair(2)], tmp_path / "out")
    rewrite(tmp_path / "out", 1, **values)
    rows = read_pairs(tmp_path / "out")
    assert rows[0] == pair(0)
    assert rows[2] == pair(2)
    with pytest.raises(DataError, match=r"out/data-00000-of-00001.parquet: row 1.*" + message):
        rows[1]


def test_the_row_number_counts_over_the_groups_of_a_file(tmp_path: Path) -> None:
    """Five rows in groups of two: the broken row 3 is the second row of the second group."""
    import pyarrow.parquet as pq

    write([pair(number) for number in range(5)], tmp_path / "out")
    rewrite(tmp_path / "out", 3, answer=None)
    file = tmp_path / "out" / "data-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=2)
    rows = read_pairs(tmp_path / "out")
    assert rows[4] == pair(4)
    with pytest.raises(
        DataError, match=r"data-00000-of-00001.parquet: row 3 \(id 'p3'\): answer is a NoneType"
    ):
        rows[3]


def test_duplicate_ids_on_disk(tmp_path: Path) -> None:
    write([pair(0), pair(1)], tmp_path / "out")
    rewrite(tmp_path / "out", 1, id="p0")
    with pytest.raises(DataError, match=r"out: id 'p0' occurs 2 times, expected unique ids$"):
        read_pairs(tmp_path / "out")


def test_files_that_are_no_shards_of_ours(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = tmp_path / "out"
    write([pair(1)], out)
    shard = out / "data-00000-of-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"data-00000-of-00001.parquet: not a readable Parquet file \("):
        read_pairs(out)
    pq.write_table(pa.table({"id": ["p1"]}), shard)
    with pytest.raises(
        DataError, match=r"of-00001.parquet: no column 'query', expected the columns of pairs$"
    ):
        read_pairs(out)
    table = pa.table({name: ["x"] for name in arrow_schema("pairs").names})
    pq.write_table(table, shard)
    with pytest.raises(DataError, match=r"of-00001.parquet: column 'context' is string, expected struct<"):
        read_pairs(out)


def test_verify_folder_finds_changed_content(tmp_path: Path) -> None:
    manifest = write([pair(0), pair(1)], tmp_path / "out")
    assert verify_folder(tmp_path / "out") == manifest
    rewrite(tmp_path / "out", 1, answer="77")
    with pytest.raises(
        DataError, match=r"out: content hash [0-9a-f]{64}, expected [0-9a-f]{64} as in manifest"
    ):
        verify_folder(tmp_path / "out")


def test_rows_decode_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check on first access decodes both images; later accesses and their hashes decode nothing."""
    write([pair(1)], tmp_path / "out")
    decoded: list[str] = []
    decode = EncodedImage.decode

    def count_and_decode(image: EncodedImage, where: str = "image") -> Image.Image:
        decoded.append(where)
        return decode(image, where)

    monkeypatch.setattr(EncodedImage, "decode", count_and_decode)
    rows = read_pairs(tmp_path / "out")
    assert decoded == []
    for _ in range(3):
        context = rows[0].context
        assert isinstance(context, EncodedImage)
        assert len(context.pixel_hash()) == 64
    assert decoded == ["context", "confounder"]
