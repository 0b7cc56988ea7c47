"""Splits: no image, text or scene on two sides, also across folders; stable; never an empty split."""

from __future__ import annotations

import hashlib
import json
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.row_schema import images_of
from vlm_contextrl.splits import run_split, split_rows
from vlm_contextrl.storage import read_manifest, read_pairs, read_questions, verify_folder, write_rows

HALVES = {"train": 0.5, "test": 0.5}


def picture(number: int) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", (2, 2), (number % 256, number // 256, 7)))


def pair(number: int, context: int, confounder: int, **provenance: Any) -> ContrastivePair:
    return ContrastivePair(
        id=f"p{number}",
        query="Which?",
        answer="a",
        context=picture(context),
        confounder=picture(confounder),
        provenance={"licence": "CC0-1.0", **provenance},
    )


def question(
    number: int, *images: int, text: str = "", query: str = "Which?", **provenance: Any
) -> QuestionRow:
    return QuestionRow(
        id=f"q{number}",
        query=query,
        answer="a",
        images=tuple(map(picture, images)),
        context_text=text,
        provenance={"licence": "CC0-1.0", **provenance},
    )


def side(splits: dict[str, list[int]], row: int) -> str:
    return next(split for split, rows in splits.items() if row in rows)


def fillers(count: int) -> list[Row]:
    """Unrelated rows, so that no split stays empty."""
    return [question(1000 + number, 1000 + number) for number in range(count)]


def test_rows_that_share_anything_stay_together() -> None:
    """0-1 share an image as context and confounder, 1-2 a scene, 3-4 a text up to spaces, 5-6 a query alone.

    With 40 seeds, groups that were not joined would part in some of them.
    """
    rows: list[Row] = [
        pair(0, 1, 2),
        pair(1, 2, 3, scene={"n": 1, "m": [2]}),
        pair(2, 4, 5, scene={"m": [2], "n": 1}),
        question(3, text="A log  of\ntests"),
        question(4, text="A log of tests"),
        question(5, query="2 + 2?"),
        question(6, query="2 + 2?"),
    ]
    parted = set()
    for seed in range(40):
        splits = split_rows({"rows": rows + fillers(20)}, HALVES, seed)["rows"]
        places = [side(splits, row) for row in range(len(rows))]
        assert places[0] == places[1] == places[2]
        assert places[3] == places[4]
        assert places[5] == places[6]
        parted |= {
            pair_of for pair_of in combinations((0, 3, 5), 2) if places[pair_of[0]] != places[pair_of[1]]
        }
    assert parted == {(0, 3), (0, 5), (3, 5)}


def test_groups_reach_across_folders() -> None:
    """A question over the images of pair 0 and of pair 1 ties the two pairs together."""
    pairs: list[Row] = [pair(0, 1, 2), pair(1, 3, 4)]
    questions: list[Row] = [question(0, 2, 3)]
    for seed in range(20):
        splits = split_rows(
            {"pairs": pairs + fillers(20), "questions": questions + fillers(20)}, HALVES, seed
        )
        places = {side(splits["pairs"], 0), side(splits["pairs"], 1), side(splits["questions"], 0)}
        assert len(places) == 1
        assert splits["pairs"]["train"][-1:] != []
        assert [side(splits["pairs"], 2 + i) for i in range(20)] == [
            side(splits["questions"], 1 + i) for i in range(20)
        ]


def test_assignment_by_hand() -> None:
    """A row with one image and no scene: the key is "image " + its pixel hash.

    The first 13 hex digits of sha256("SEED KEY"), divided by 16^13, below 0.7 mean the first split.
    """
    rows = [question(number, number) for number in range(30)]
    expected: dict[str, list[int]] = {"train": [], "test": []}
    for index, row in enumerate(rows):
        key = f"5 image {row.images[0].pixel_hash()}"
        share = int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13
        expected["train" if share < 0.7 else "test"].append(index)
    assert split_rows({"rows": rows}, {"train": 0.7, "test": 0.3}, 5) == {"rows": expected}


def test_the_order_of_rows_does_not_matter() -> None:
    """Chains of three images each: a group's key is its smallest one, whichever row comes first."""
    rows = [pair(number, number + number // 2, number + number // 2 + 1) for number in range(40)]
    forward = split_rows({"rows": rows}, HALVES)["rows"]
    backward = split_rows({"rows": rows[::-1]}, HALVES)["rows"]
    assert {split: sorted(39 - row for row in backward[split]) for split in backward} == forward


def test_more_rows_move_no_other_group() -> None:
    rows = [question(number, number) for number in range(50)]
    first = split_rows({"rows": rows[:30]}, HALVES)["rows"]
    later = split_rows({"rows": rows}, HALVES)["rows"]
    assert {split: [row for row in later[split] if row < 30] for split in later} == first


def test_every_row_once_and_sizes_follow_the_fractions() -> None:
    """1000 groups at 0.8/0.1/0.1: three standard deviations are 3 sqrt(1000 * .8 * .2) = 38 and 28 rows."""
    rows = [question(number, number) for number in range(1000)]
    splits = split_rows({"rows": rows}, {"train": 0.8, "dev": 0.1, "test": 0.1})["rows"]
    assert sorted(chain.from_iterable(splits.values())) == list(range(1000))
    assert abs(len(splits["train"]) - 800) < 38
    assert abs(len(splits["dev"]) - 100) < 29
    assert abs(len(splits["test"]) - 100) < 29


def test_an_empty_split_says_what_to_do() -> None:
    rows = [pair(0, 1, 2), pair(1, 2, 3)]
    message = (
        r"^pairs: split '(train|test)' \(fraction 0.5\) is empty, 2 rows form 1 groups that share images, "
        r"texts or scenes; give more rows, a larger fraction or another seed than 0$"
    )
    with pytest.raises(DataError, match=message):
        split_rows({"pairs": rows}, HALVES)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "test": 0.1}, r"^fractions \{'train': 0.8, 'test': 0.1\} sum to 0.9, expected 1$"),
        ({}, r"^fractions \{\} sum to 0, expected 1$"),
        (
            {"train": 1.0, "test": 0.0},
            r"^fraction of split 'test' is 0.0, expected more than 0 and at most 1$",
        ),
        ({"train": 1.5, "test": -0.5}, r"^fraction of split 'train' is 1.5, expected more than 0 and at"),
        ({"train": float("nan")}, r"^fraction of split 'train' is nan, expected more than 0"),
    ],
)
def test_wrong_fractions(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_rows({"rows": fillers(3)}, fractions)


def write(rows: list[Any], out: Path) -> Path:
    write_rows(rows, out, recipe="render", config={"n": len(rows)})
    return out


def test_run_split_with_two_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pairs = [pair(number, 2 * number, 2 * number + 1) for number in range(20)]
    questions = [row for p in pairs for row in p.questions()]
    inputs = {"pairs": write(pairs, tmp_path / "a"), "questions": write(questions, tmp_path / "b")}
    summary = run_split(inputs, tmp_path / "out", HALVES, seed=3)
    json.dumps(summary)
    read = {split: list(read_pairs(tmp_path / "out" / "pairs" / split)) for split in HALVES}
    asked = {split: list(read_questions(tmp_path / "out" / "questions" / split)) for split in HALVES}
    assert sorted(row.id for rows in read.values() for row in rows) == sorted(row.id for row in pairs)
    hashes: dict[str, set[str]] = {split: set() for split in HALVES}
    for split in HALVES:
        rows: list[Row] = [*read[split], *asked[split]]
        hashes[split].update(image.pixel_hash() for row in rows for image in images_of(row))
    assert not hashes["train"] & hashes["test"]
    assert {row.id.removesuffix("~context") for row in asked["test"]} == {row.id for row in read["test"]}
    manifest = verify_folder(tmp_path / "out" / "pairs" / "test")
    assert summary["inputs"]["pairs"]["test"] == {
        "rows": len(read["test"]),
        "folder": str(tmp_path / "out" / "pairs" / "test"),
        "content_hash": manifest.content_hash,
    }
    assert manifest.config == {
        "split": "test",
        "fractions": HALVES,
        "seed": 3,
        "jointly_with": ["questions"],
        "input_content_hash": read_manifest(tmp_path / "a").content_hash,
        "input_config": {"n": 20},
    }
    import datasets

    whole = datasets.load_dataset(str(tmp_path / "out" / "pairs"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(whole[split]) for split in whole} == {split: len(read[split]) for split in read}


def test_run_split_with_one_input(tmp_path: Path) -> None:
    source = write([question(number, number) for number in range(20)], tmp_path / "in")
    run_split({"questions": source}, tmp_path / "out", HALVES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "test", "train"]
    assert read_questions(tmp_path / "out" / "train")[0].id.startswith("q")


def test_a_failed_split_leaves_nothing(tmp_path: Path) -> None:
    source = write([question(0, 1), question(1, 1)], tmp_path / "in")
    with pytest.raises(DataError, match=r"^questions: split '.*' .* is empty"):
        run_split({"questions": source}, tmp_path / "out", HALVES)
    with pytest.raises(DataError, match=r"^'../up' is no name for a folder, expected one without slashes$"):
        run_split({"questions": source}, tmp_path / "out", {"../up": 1.0})
    with pytest.raises(DataError, match=r"gone: no such folder, expected a dataset"):
        run_split({"questions": tmp_path / "gone"}, tmp_path / "out", HALVES)
    with pytest.raises(DataError, match=r"in: already exists, expected a new or empty folder"):
        run_split({"questions": source}, source, {"train": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
