"""Duplicates: planted ones are found with the rows that they repeat, and nothing else goes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.curate.dedupe import DedupeConfig, run
from vlm_contextrl.data_recipes.curate.near import (
    Adjacency,
    Measures,
    NearSettings,
    Picture,
    candidates,
    compare,
)
from vlm_contextrl.data_recipes.curate.near_text import alike, jaccard, shingles, sketch, words
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.data_recipes.render import RenderConfig, render_pairs
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.storage import read_pairs, read_questions, write_rows

KINDS = ("rescaled", "jpeg60", "brighter", "cropped")


def near_copy(image: EncodedImage, kind: str, seed: int = 0) -> EncodedImage:
    """The same picture: at 3/4 of its size, as JPEG of quality 60, two grey levels brighter, or without 2% of each side."""
    picture = image.decode()
    if kind == "jpeg60":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=60)
        return EncodedImage(buffer.getvalue())
    if kind == "rescaled":
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.BICUBIC)
    elif kind == "brighter":
        picture = picture.point(lambda level: min(255, level + 2))
    else:
        rng = Random(seed)
        cut_x, cut_y = picture.width * 0.02, picture.height * 0.02
        left, top = rng.uniform(0, cut_x), rng.uniform(0, cut_y)
        right, bottom = picture.width - cut_x + left, picture.height - cut_y + top
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
    return EncodedImage.from_image(picture)


def rendered(count: int = 30, seed: int = 0, size_px: int = 112) -> list[ContrastivePair]:
    return list(render_pairs(RenderConfig(count=count, seed=seed, size_px=size_px)))


def question(
    row_id: str,
    *images: EncodedImage,
    query: str = "How many?",
    answer: str = "3",
    text: str = "",
    **fields: Any,
) -> QuestionRow:
    licence = {"licence": "CC0-1.0"}
    return QuestionRow(
        id=row_id, query=query, answer=answer, images=images, context_text=text, provenance=licence, **fields
    )


def flat(red: int) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", (32, 32), (red, 0, 0)))


def dedupe(
    rows: list[Any], folder: Path, workers: int = 1, **settings: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary, and the reason of every reject."""
    write_rows(rows, folder / "in", recipe="test", config={})
    summary = run(DedupeConfig(**settings), folder / "in", folder / "out", Engine("local", workers))
    json.dumps(summary)
    assert summary["kept"] + summary["rejects"] == summary["inputs"] == len(rows)
    found = {entry["id"]: entry["reason"] for entry in summary["found"]}
    lines = (folder / "out" / "rejects.jsonl").read_text().splitlines() if found else []
    assert [json.loads(line) for line in lines] == summary["found"]
    assert sum(summary["rejected"].values()) == len(found)
    return summary, found


def code(reason: str) -> str:
    return reason.partition(":")[0]


def test_planted_duplicates_are_found_and_no_good_row_goes(tmp_path: Path) -> None:
    """60 good questions: both sides of 30 rendered pairs, look-alikes that ask the same and answer differently. Of 20 of them a copy with
    the same pixels in another file, of the other 20 contexts and confounders a near copy, five of each kind."""
    good = [row for pair in rendered() for row in pair.questions()]
    planted: dict[str, tuple[str, str]] = {}
    rows: list[Row] = list(good)
    for number, source in enumerate(good[:40]):
        kind = "exact" if number < 20 else KINDS[number % 4]
        other = source.images[0]
        other = EncodedImage(other.data + b"\0") if kind == "exact" else near_copy(other, kind, number)
        copy = replace(source, id=f"{kind}-{number}", images=(other,))
        rows.append(copy)
        planted[copy.id] = ("duplicate_image" if kind == "exact" else "near_duplicate", source.id)
    Random(0).shuffle(rows)
    rows.sort(key=lambda row: row.id in planted)  # the good ones first
    summary, found = dedupe(rows, tmp_path)
    assert set(found) == set(planted)
    for row_id, reason in found.items():
        assert (code(reason), repr(planted[row_id][1]) in reason) == (planted[row_id][0], True), reason
    assert summary["rejected"] == {"duplicate_image": 20, "near_duplicate": 20}
    assert [row.id for row in read_questions(tmp_path / "out")] == [row.id for row in rows[:60]]
    assert not list(tmp_path.glob(".out*")), "unfinished work stays"


def test_pairs_repeat_in_either_direction(tmp_path: Path) -> None:
    """Context and confounder of a pair are nearly equal and never compared; a pair and its reverse are one, and a near copy of both sides
    is, but not of one side with another confounder. The reverse of a near copy repeats that copy to the pixel."""
    first, second = rendered(2, seed=5)
    sides = [
        near_copy(side, "jpeg60")
        for side in (first.context, first.confounder)
        if isinstance(side, EncodedImage)
    ]
    turned = first.reversed()
    assert turned is not None
    rows = [
        first,
        second,
        turned,
        replace(first, id="near", context=sides[0], confounder=sides[1]),
        replace(turned, id="near-turned", context=sides[1], confounder=sides[0]),
        replace(first, id="other-confounder", confounder=second.confounder),
        replace(first, id="other-query", query="What else?"),
    ]
    _, found = dedupe(rows, tmp_path)
    assert {row_id: code(reason) for row_id, reason in found.items()} == {
        turned.id: "duplicate_image",
        "near": "near_duplicate",
        "near-turned": "duplicate_image",
    }
    assert found[turned.id] == (
        f"duplicate_image: every pixel, sides swapped, as in row {first.id!r}, expected images that are not there yet"
    )
    assert f"sides swapped, as in row {'near'!r}" in found["near-turned"]
    assert repr(first.id) in found["near"]
    assert [row.id for row in read_pairs(tmp_path / "out")] == [
        first.id,
        second.id,
        "other-confounder",
        "other-query",
    ]


def test_keys_of_questions(tmp_path: Path) -> None:
    """One image, two questions: two rows by image and query, one by image. Case and punctuation of a query do not count, options in another
    order do not, other options do. A second image makes another row."""
    shown = flat(200)
    choice: dict[str, Any] = {"answer_type": "choice", "options": ("red", "blue"), "answer": "A"}
    rows = [
        question("a", shown),
        question("b", shown, query="Which colour?", answer="red"),
        question("c", shown, query="HOW many"),
        question("d", shown, flat(40)),
        question("e", shown, query="Which?", **choice),
        question("f", shown, query="Which?", answer_type="choice", options=("blue", "red"), answer="B"),
        question("g", shown, query="Which?", answer_type="choice", options=("blue", "green"), answer="B"),
    ]
    _, found = dedupe(rows, tmp_path / "both")
    assert list(found) == ["c", "f"]
    assert found["c"] == "duplicate_image: every pixel as in row 'a', expected images that are not there yet"
    _, found = dedupe(rows, tmp_path / "image", key="image")
    assert list(found) == ["b", "c", "e", "f", "g"]


def test_two_answers_to_one_question(tmp_path: Path) -> None:
    """The very same image: one of both rows is wrong. A nearly equal image: that is what a pair is made of, and both stay."""
    pair = rendered(1)[0]
    rows = pair.questions()[:1]
    rows.append(replace(rows[0], id="wrong", answer=pair.confounder_answer or ""))
    rows.append(replace(rows[1], id="near", images=(near_copy(rows[0].images[0], "jpeg60"),)))
    _, found = dedupe(rows, tmp_path)
    assert list(found) == ["wrong"]
    assert code(found["wrong"]) == "conflicting_answer"
    assert repr(rows[0].id) in found["wrong"]


def test_small_changes_are_no_duplicates(tmp_path: Path) -> None:
    """By image alone and 96 px wide: one colour swapped, one object moved by its size, one object gone."""

    def scene(colour: str = "red", left: int = 20, extra: bool = True) -> EncodedImage:
        picture = Image.new("RGB", (96, 96), "white")
        draw = ImageDraw.Draw(picture)
        draw.rectangle((60, 60, 80, 80), fill="green")
        draw.ellipse((left, 20, left + 8, 28), fill=colour)
        if extra:
            draw.rectangle((30, 70, 35, 75), fill="black")
        return EncodedImage.from_image(picture)

    scenes = [scene(), scene("blue"), scene(left=28), scene(extra=False)]
    rows = [question(f"s{n}", image, query=f"Question {n}?") for n, image in enumerate(scenes)]
    rows.append(question("near", near_copy(scenes[0], "jpeg60"), query="Another?"))
    _, found = dedupe(rows, tmp_path, key="image")
    assert list(found) == ["near"]
    assert "row 's0'" in found["near"]


def test_texts(tmp_path: Path) -> None:
    """40 words, one of them changed: 8 of 33 8-grams differ, Jaccard 25/41 = 0.61; the last one changed: 32/34 = 0.94."""
    said = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" if n % 3 else str(n) for n in range(40)]
    middle, last = [*said[:20], "other", *said[21:]], [*said[:-1], "other"]
    texts = {"a": said, "spaced": said, "middle": middle, "last": last}
    rows = [
        question(name, text=("  " if name == "spaced" else " ").join(text).title())
        for name, text in texts.items()
    ]
    rows.append(question("other-query", query="Why?", text=" ".join(said)))
    rows.append(question("nothing"))
    rows.append(question("nothing-again"))
    _, found = dedupe(rows, tmp_path)
    assert found == {
        "spaced": "duplicate_text: every word as in row 'a', expected a text that is not there yet",
        "last": "duplicate_text: nearly as in row 'a' (Jaccard 0.94 of 8-grams), expected a text that is not there yet",
        "nothing-again": "duplicate_text: every word as in row 'nothing', expected a text that is not there yet",
    }
    grams = [shingles(words(" ".join(text)), 8) for text in (said, middle, last)]
    assert (jaccard(grams[0], grams[1]), jaccard(grams[0], grams[2])) == (25 / 41, 32 / 34)
    _, found = dedupe(rows, tmp_path / "off", jaccard=1.0)
    assert "last" not in found


def test_words_by_hand() -> None:
    assert words("Find x, (the 2nd of 1,000 or 2.5)!") == [
        "find",
        "x",
        "the",
        "2",
        "nd",
        "of",
        "1,000",
        "or",
        "2.5",
    ]
    assert words("x + 2 \u2260 x-2") == ["x", "+", "2", "\u2260", "x", "-", "2"]
    assert words("\u5982\u56fe\uff0cAB=3") == ["\u5982", "\u56fe", "ab", "=", "3"]
    assert shingles(["a"], 5) == shingles(["a"], 3)
    assert shingles([], 3) == frozenset()


def test_sketches_find_alike_texts_of_one_block() -> None:
    """Sets of hashes as the sketch wants them: 100 numbers each, 90 of them common (Jaccard 90/110 = 0.82), in 50 draws; none is missed at
    0.8, no unrelated one is named, and none of another block."""
    rng = Random(0)
    for _ in range(50):
        drawn = [rng.getrandbits(64) for _ in range(300)]
        sets = [frozenset(drawn[:100]), frozenset(drawn[10:110]), frozenset(drawn[200:])]
        sketches = [sketch(own) for own in sets]
        assert alike(sketches, ["x", "x", "x"], 0.8) == {(0, 1)}
        assert alike(sketches, ["x", "y", "x"], 0.8) == set()


def test_measures_by_hand() -> None:
    """Two flat pictures, 10 levels apart in red: mean 10/3, largest 10. A black square on white, 16 of 32 px, against white alone: 1/4 of
    the cells, up to the soft edges, differ by 255."""
    settings = NearSettings()
    red = [Picture(Image.new("RGB", (32, 32), (level, 0, 0))) for level in (100, 110)]
    assert compare(*red, settings) == Measures(pytest.approx(10 / 3), 10)
    white = Image.new("RGB", (32, 32), "white")
    square = white.copy()
    square.paste("black", (8, 8, 24, 24))
    found = compare(Picture(square), Picture(white), settings)
    assert found.largest == 255
    assert found.mean == pytest.approx(255 / 4, rel=0.1)
    assert not settings.same(found)


def test_candidates_by_hand() -> None:
    """Unit vectors at 0, 10, 30 and 100 degrees: cosines 0.985 (0 to 10), 0.940 (10 to 30), 0.866 (0 to 30)."""
    angles = np.deg2rad([0, 10, 30, 100])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pairs, cosines = candidates(features, None, NearSettings(cosine=0.9))
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert cosines == pytest.approx(np.cos(np.deg2rad([10, 20])), abs=1e-6)
    pairs, _ = candidates(features[:1], features, NearSettings(cosine=0.8))
    assert pairs.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert len(candidates(features[3:], features[:3], NearSettings())[0]) == 0
    near = Adjacency(np.array([[0, 1], [1, 2]]))
    assert [near.get(number) for number in range(4)] == [[1], [0, 2], [1], []]
    assert Adjacency(np.zeros((0, 2), np.int64)).get(0) == []


def test_the_same_in_several_processes_and_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before pixels are compared, then given again to two processes: the rows of an unbroken run."""
    from vlm_contextrl.data_recipes.curate import dedupe as module

    good = [row for pair in rendered(6) for row in pair.questions()]
    rows = [
        *good,
        *(replace(row, id=f"near-{row.id}", images=(near_copy(row.images[0], "jpeg60"),)) for row in good),
    ]
    whole, _ = dedupe(rows, tmp_path)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "compare_all", stop)
        with pytest.raises(KeyboardInterrupt):
            run(DedupeConfig(), tmp_path / "in", tmp_path / "again", Engine())
    assert (tmp_path / ".again.parts" / "facts" / "part-000000").is_dir()
    with pytest.raises(DataError, match=r"holds unfinished work with another config"):
        run(DedupeConfig(key="image"), tmp_path / "in", tmp_path / "again", Engine())
    again = run(DedupeConfig(), tmp_path / "in", tmp_path / "again", Engine("local", 2))
    assert {**again, "out": "", "rows_per_s": 0} == {**whole, "out": "", "rows_per_s": 0}
    assert whole["rejected"] == {"near_duplicate": 12}


def test_foreign_rows_and_bad_input(tmp_path: Path) -> None:
    """An unreadable row is a reject; two kinds in one file, an existing folder and a wrong setting are one line each."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    flat(9).decode().save(folder / "a.png")
    lines = [
        {"id": name, "file_name": f"{name[0]}.png", "question": "How?", "answer": "so"}
        for name in ("a", "a2", "b")
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = run(DedupeConfig(licence="MIT"), folder, tmp_path / "out", Engine())
    assert (summary["inputs"], summary["rejected"]) == (3, {"unreadable": 1, "duplicate_image": 1})
    pair = {"context_text": "x", "confounder_text": "y", "query": "q", "answer": "a"}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, [lines[0], pair])))
    with pytest.raises(DataError, match=r"foreign: holds 1 questions and 1 pairs, expected rows of one kind"):
        run(DedupeConfig(licence="MIT"), folder, tmp_path / "new", Engine())
    with pytest.raises(DataError, match=r"out: already exists, expected a new or empty folder"):
        run(DedupeConfig(licence="MIT"), folder, tmp_path / "out", Engine())
    with pytest.raises(DataError, match=r"gone: not found"):
        run(DedupeConfig(), tmp_path / "gone", tmp_path / "new", Engine())
    with pytest.raises(ConfigError, match=r"unknown key 'near.cosin'; did you mean 'cosine'"):
        load_config(DedupeConfig, None, ["near.cosin=0.5"])


def test_the_shipped_settings_are_the_defaults() -> None:
    file = Path(__file__).parent.parent / "configs" / "recipes" / "dedupe.yaml"
    assert load_config(DedupeConfig, file, []) == DedupeConfig()
