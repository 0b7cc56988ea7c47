"""Dataset folders: rows come back equal, nothing is dropped silently, nothing is written half."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl import shards
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.storage import (
    Manifest,
    read_manifest,
    read_pairs,
    read_questions,
    write_rows,
)


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


def texts_of_rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(value["id"], value["reason"]) for value in map(json.loads, lines)]


def assert_nothing_left(tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir()] == []


def test_pairs_come_back_equal(tmp_path: Path) -> None:
    rows = [
        pair(1),
        pair(2, confounder_answer=None, provenance={"licence": "CC BY 4.0"}, verdicts={}),
        pair(3, context="def f(): return 1", confounder="def f(): return 2", domain="trajectories"),
        pair(4, answer="A", confounder_answer="B", options=("cat", "dog"), answer_type="choice"),
    ]
    manifest = write(rows, tmp_path / "out")
    read = read_pairs(tmp_path / "out")
    assert list(read) == rows
    assert len(read) == manifest.rows == 4
    assert (read[-1], read[1:3]) == (rows[3], rows[1:3])
    with pytest.raises(IndexError, match="row 4 of 4"):
        read[4]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["README.md", "data-00000-of-00001.parquet", "manifest.json"]


def test_questions_come_back_equal(tmp_path: Path) -> None:
    rows = [question(i) for i in range(4)] + [question(9, images=(), context_text="The log.\nLine 2")]
    write(iter(rows), tmp_path / "out")
    assert list(read_questions(tmp_path / "out")) == rows


def test_manifest_says_what_the_folder_holds(tmp_path: Path) -> None:
    manifest = write([pair(1), pair(2), pair(3)], tmp_path / "out", rejects=[("p9", "edit failed")])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == {
        "kind": "pairs",
        "rows": 3,
        "rejects": 1,
        "content_hash": manifest.content_hash,
        "recipe": "render",
        "config": {"size_px": 4},
        "shards": ["data-00000-of-00001.parquet"],
        "domains": {"dials": 1, "objects": 2},
        "licences": {"CC0-1.0": 3},
        "format_version": 1,
    }
    assert read_manifest(tmp_path / "out") == manifest


def test_content_hash_by_hand(tmp_path: Path) -> None:
    """sha256 over the rows' digests; a digest is sha256 over a JSON list of what the row says."""
    row = pair(1, context="one", confounder="two")
    said = ["p1", "How many?", "1", "2", "numeric", [], ["one", "two"], []]
    digest = hashlib.sha256(json.dumps(said).encode()).digest()
    assert write([row], tmp_path / "out").content_hash == hashlib.sha256(digest).hexdigest()


def test_content_hash_depends_on_pixels_and_order_not_on_files_or_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(1), pair(2)]
    first = write(rows, tmp_path / "a").content_hash
    assert write(rows[::-1], tmp_path / "b").content_hash != first
    assert write([pair(1, confounder=picture(9, 9, 9)), pair(2)], tmp_path / "c").content_hash != first
    monkeypatch.setattr(shards, "GROUP_ROWS", 1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    assert write(rows, tmp_path / "d").content_hash == first


def test_many_shards_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows per group and one group per shard: 7 rows are 4 shards. The cache holds one group."""
    monkeypatch.setattr(shards, "GROUP_ROWS", 2)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "CACHE_BYTES", 1)
    rows = [pair(number) for number in range(7)]
    manifest = write(rows, tmp_path / "out")
    assert manifest.shards == [f"data-{index:05d}-of-00004.parquet" for index in range(4)]
    read = read_pairs(tmp_path / "out")
    assert [read[index] for index in (6, 0, 3, 3, 5)] == [rows[index] for index in (6, 0, 3, 3, 5)]
    assert isinstance(read, shards.ShardRows)
    assert len(read._cache) == 1
    assert list(pickle.loads(pickle.dumps(read))) == rows


def test_rows_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the fifth row is asked for, the first two groups of two are already in a file."""
    monkeypatch.setattr(shards, "GROUP_ROWS", 2)
    written: list[int] = []
    flush = shards.ShardWriter._flush

    def count_and_flush(writer: shards.ShardWriter) -> None:
        written.append(1)
        flush(writer)

    monkeypatch.setattr(shards.ShardWriter, "_flush", count_and_flush)

    def rows() -> Iterator[Row]:
        for number in range(5):
            assert len(written) == number // 2
            yield pair(number)

    assert write(rows(), tmp_path / "out").rows == 5


def test_unusable_rows_become_rejects(tmp_path: Path) -> None:
    corrupt = EncodedImage(b"no picture")
    truncated = EncodedImage(picture(1, 2, 3).data[:48])
    dropped: list[tuple[str, str]] = []

    def rows() -> Iterator[ContrastivePair]:
        yield pair(1)
        yield pair(2, confounder=picture(2, 0, 0))
        yield pair(3, provenance={"seed": 3})
        dropped.append(("candidate 4", "the edit changed nothing"))  # a recipe's own list, still growing
        yield pair(5, context=corrupt)
        yield pair(6, confounder=truncated)
        yield pair(1, query="Another query?")

    manifest = write(rows(), tmp_path / "out", rejects=dropped)
    assert (manifest.rows, manifest.rejects) == (1, 6)
    rejects = texts_of_rejects(tmp_path / "out")
    assert rejects[:2] == [
        ("p2", "context and confounder have the same pixels, expected two different images"),
        ("p3", "provenance['licence'] is None, expected the source's licence as a text"),
    ]
    assert rejects[2][0] == "p5"
    assert rejects[2][1].startswith("context: 10 bytes starting with b'no pictu' are no image, expected")
    assert rejects[3][0] == "p6"
    assert rejects[3][1].startswith("confounder: damaged or truncated (")
    assert rejects[4:] == [
        ("p1", "duplicate id, an earlier row has it"),
        ("candidate 4", "the edit changed nothing"),
    ]
    assert [row.id for row in read_pairs(tmp_path / "out")] == ["p1"]


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"out: nothing to write, there were no rows$"):
        write([], tmp_path / "out")
    with pytest.raises(
        DataError, match=r"out: nothing to write, all 2 rows were rejected, the first was 'p1': p"
    ):
        write([pair(1, provenance={}), pair(2, query="")], tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_an_error_while_rows_are_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_ROWS", 1)

    def rows() -> Iterator[ContrastivePair]:
        yield pair(1)
        raise RuntimeError("the editing model crashed")

    with pytest.raises(RuntimeError, match="the editing model crashed"):
        write(rows(), tmp_path / "out")
    with pytest.raises(DataError, match="row 'q1' is of kind questions, expected pairs like the rows before"):
        write([pair(1), question(1)], tmp_path / "out")
    with pytest.raises(
        DataError, match="found a dict among the rows, expected ContrastivePair or QuestionRow"
    ):
        write([pair(1), {"id": "p2"}], tmp_path / "out")
    with pytest.raises(DataError, match="out: config cannot be written as JSON"):
        write_rows([pair(1)], tmp_path / "out", recipe="render", config={"share": float("inf")})
    assert_nothing_left(tmp_path)


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write([pair(1)], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"out: already exists, expected a new or empty folder; remove it or"):
        write([pair(2)], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file: already exists"):
        write([pair(2)], tmp_path / "file")
    with pytest.raises(DataError, match=r"out2: cannot be created .*; choose another place"):
        write([pair(2)], tmp_path / "file" / "out2")


def test_an_empty_folder_and_new_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write([pair(1)], tmp_path / "empty").rows == 1
    assert write([pair(1)], tmp_path / "new" / "deep").rows == 1
