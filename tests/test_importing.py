"""`pairs import`: every row becomes a row of a dataset folder or a reject with its code and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.imports import import_rows
from vlm_contextrl.storage import read_manifest, read_pairs, read_questions, verify_folder, write_rows

BASE = {"images": ["a.png"], "question": "Red?", "answer": True, "licence": "MIT"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    root.mkdir()
    Image.new("RGB", (3, 3), "red").save(root / "a.png")
    Image.new("RGB", (3, 3), "blue").save(root / "b.png")
    return root


def write_lines(folder: Path, *values: Any) -> Path:
    text = "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return folder


def rejects_of(out: Path) -> dict[str, str]:
    lines = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


def test_every_input_is_kept_or_rejected_with_a_code(folder: Path, tmp_path: Path) -> None:
    """Eleven lines: two kept, nine rejected for six reasons."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3), "green").save(secret)
    (folder / "link.png").symlink_to(secret)
    Image.new("1", (8_000, 8_000)).save(folder / "bomb.png")
    pair = {
        "images": ["a.png", "b.png"],
        "question": "Which?",
        "candidate": "red",
        "answer": "A",
        "licence": "MIT",
    }
    write_lines(
        folder,
        {**BASE, "id": "first"},
        {**BASE, "id": "second", "answer": "false", "options": ["true", "false"]},
        {**BASE, "id": "first"},
        {**BASE, "id": "no licence", "licence": None},
        {**BASE, "id": "bomb", "images": ["bomb.png"]},
        {**BASE, "id": "link", "images": ["link.png"]},
        {**BASE, "id": "outside", "images": ["../secret.png"]},
        {**BASE, "id": "no answer", "answer": None},
        {**BASE, "id": "control", "question": "<|im_end|>?"},
        {**pair, "id": "pair"},
        "{broken",
    )
    summary = import_rows(folder, tmp_path / "out")
    assert (summary["inputs"], summary["kept"], summary["rejects"], summary["rows"]) == (11, 2, 9, 2)
    assert summary["kept"] + summary["rejects"] == summary["inputs"]
    assert summary["rejected"] == {
        "image": 3, "unreadable": 2, "duplicate_id": 1, "no_licence": 1, "invalid": 1, "other_kind": 1,
    }  # fmt: skip
    found = rejects_of(tmp_path / "out")
    where = f"{folder / 'rows.jsonl'}: line "
    expected = {
        "first": f"duplicate_id: {where}3: duplicate id, an earlier row has it",
        "no licence": f"no_licence: {where}4: provenance['licence'] is None, expected the source's licence as a text; name it in the",
        "bomb": f"image: {where}5: image bomb.png: 8000 x 8000 pixels, expected at most",
        "link": f"image: {where}6: link.png is outside the data folder",
        "outside": f"image: {where}7: ../secret.png is outside the data folder",
        "no answer": f"unreadable: {where}8: no answer or solution or ground_truth",
        "control": f"invalid: {where}9: query holds the control token",
        "pair": f"other_kind: {where}10: one of the pairs, expected questions",
        "rows-11": f"unreadable: {where}11: '{{broken' is not a JSON object",
    }
    assert found.keys() == expected.keys()
    for row_id, start in expected.items():
        assert found[row_id].startswith(start), found[row_id]
        assert "\n" not in found[row_id]
    manifest = verify_folder(tmp_path / "out")
    assert (manifest.recipe, manifest.rejects, manifest.licences) == ("import", 9, {"MIT": 2})
    rows = read_questions(tmp_path / "out")
    assert [(row.answer, row.answer_type, row.provenance["source"]) for row in rows] == [
        ("true", "boolean", "mine"),
        ("B", "choice", "mine"),
    ]


def test_the_kind_can_be_chosen(folder: Path, tmp_path: Path) -> None:
    pair = {"images": ["a.png", "b.png"], "question": "Which?", "candidate": "red", "answer": "A"}
    write_lines(folder, BASE, pair)
    summary = import_rows(folder, tmp_path / "out", kind="pairs", licence="CC0-1.0")
    assert (summary["kind"], summary["kept"], summary["rejected"]) == ("pairs", 1, {"other_kind": 1})
    assert read_pairs(tmp_path / "out")[0].provenance["licence"] == "CC0-1.0"


def test_no_usable_row_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    write_lines(folder, {**BASE, "licence": None}, {**BASE, "licence": None})
    with pytest.raises(
        DataError, match=r"all 2 rows were rejected.*no_licence: .*give one for all \(--licence"
    ) as caught:
        import_rows(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    with pytest.raises(DataError, match=r"gone: not found"):
        import_rows(tmp_path / "gone", tmp_path / "out")


def test_a_dataset_folder_is_copied_and_checked(tmp_path: Path, pairs_folder: Path) -> None:
    summary = import_rows(pairs_folder, tmp_path / "out")
    assert (summary["inputs"], summary["kept"], summary["rejected"]) == (24, 24, {})
    assert summary["content_hash"] == read_manifest(pairs_folder).content_hash
    with pytest.raises(DataError, match=r"holds pairs, expected questions"):
        import_rows(pairs_folder, tmp_path / "other", kind="questions")


def test_the_same_rows_as_read_lazily(folder: Path, tmp_path: Path) -> None:
    """One pass (import) and the checked sequence of `read_questions` agree."""
    write_lines(folder, *({**BASE, "id": str(n), "question": f"Red {n}?"} for n in range(150)))
    summary = import_rows(folder, tmp_path / "out")
    again = write_rows(read_questions(folder), tmp_path / "again", recipe="x", config={})
    assert (summary["rows"], summary["content_hash"]) == (150, again.content_hash)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "licence", "kept", "rejected"),
    [
        ("nlvr_dev", "CC BY 4.0", 989, {}),
        ("dynamath_pairs", "MIT", 555, {}),
        ("puzzlevqa_dev", "MIT", 500, {}),
        ("bench_mmmu_pro", "Apache-2.0", 21, {}),
        ("geometry3k_10", "MIT", 10, {}),
    ],
)
def test_real_rows(
    realdata: Path, tmp_path: Path, name: str, licence: str, kept: int, rejected: dict[str, int]
) -> None:
    summary = import_rows(realdata / name, tmp_path / "out", licence=licence)
    assert (summary["kind"], summary["kept"], summary["rejected"]) == ("questions", kept, rejected)
    assert summary["kept"] + summary["rejects"] == summary["inputs"]
