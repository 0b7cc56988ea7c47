"""Benchmark data in training rows: planted images and questions are found with the files that they are in, and nothing else goes."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.test_dedupe import KINDS, code, flat, near_copy, question, rendered
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes.curate.benchmarks import BenchmarkImages, find_benchmarks
from vlm_contextrl.data_recipes.curate.decontaminate import DecontaminateConfig, Questions, run
from vlm_contextrl.data_recipes.curate.near import NearSettings, Picture, compare
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import EncodedImage
from vlm_contextrl.row_schema import images_of
from vlm_contextrl.storage import read_pairs, write_rows

LONG = "In the figure, the radius of circle O is 12 cm. What is the length of chord AB?"


def decontaminate(
    rows: list[Any], folder: Path, against: list[Path], workers: int = 1, **settings: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary, and the reason of every reject."""
    write_rows(rows, folder / "in", recipe="test", config={})
    config = DecontaminateConfig(against=against, **settings)
    summary = run(config, folder / "in", folder / "out", Engine("local", workers))
    json.dumps(summary)
    assert summary["kept"] + summary["rejects"] == summary["inputs"] == len(rows)
    found = {entry["id"]: entry["reason"] for entry in summary["found"]}
    assert sum(summary["rejected"].values()) == len(found)
    return summary, found


def write_images(images: dict[str, EncodedImage], folder: Path) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image.data)
    return folder


def test_planted_benchmark_images_are_found_and_no_good_row_goes(tmp_path: Path) -> None:
    """Benchmark: the contexts of 60 rendered pairs. Training, 60 good pairs: other renderings, and in 20 of them a benchmark's look-alike,
    its confounder, with the answer that differs. 20 near copies, five of each kind, and 4 equal ones, as one side of a pair."""
    benchmark = rendered(60, seed=1)
    images = {f"deep/{pair.id}.png": images_of(pair)[0] for pair in benchmark}
    against = write_images(images, tmp_path / "benchmark")
    good = rendered(60, seed=2)
    for number in range(20):
        good[number] = replace(good[number], id=f"look-alike-{number}", context=benchmark[number].confounder)
    planted: dict[str, tuple[str, str]] = {}
    rows = list(good)
    for number in range(24):
        kind = KINDS[number % 4] if number < 20 else "exact"
        shown = images_of(benchmark[number])[0]
        shown = EncodedImage(shown.data + b"\0") if kind == "exact" else near_copy(shown, kind, number)
        side = "context" if number % 2 else "confounder"
        rows.append(replace(good[number], id=f"{kind}-{number}", **{side: shown}))
        planted[rows[-1].id] = (
            "benchmark_image" if kind == "exact" else "near_benchmark_image",
            f"benchmark/deep/{benchmark[number].id}.png",
        )
    Random(0).shuffle(rows)
    summary, found = decontaminate(rows, tmp_path, [against])
    assert set(found) == set(planted)
    for row_id, reason in found.items():
        assert (code(reason), planted[row_id][1] in reason) == (planted[row_id][0], True), reason
    assert summary["rejected"] == {"near_benchmark_image": 20, "benchmark_image": 4}
    assert (summary["benchmark_images"], summary["benchmark_unread"]) == (60, 0)
    kept = {row.id for row in read_pairs(tmp_path / "out")}
    assert kept == {row.id for row in good}


@pytest.mark.slow
def test_detection_rates(capsys: pytest.CaptureFixture[str]) -> None:
    """Per kind, 40 rendered pictures each of 112, 224 and 448 px against themselves: nothing missed but at most one crop in ten; against
    their confounders nothing found."""
    settings = NearSettings()
    hits: Counter[str] = Counter()
    false = total = 0
    for size_px in (112, 224, 448):
        for number, pair in enumerate(rendered(40, seed=3, size_px=size_px)):
            context, confounder = images_of(pair)
            shown = Picture(context.decode())
            total += 1
            false += settings.same(compare(shown, Picture(confounder.decode()), settings))
            for kind in KINDS:
                copy = Picture(near_copy(context, kind, number).decode())
                hits[kind] += settings.same(compare(copy, shown, settings))
    with capsys.disabled():
        print({kind: f"{n} of {total}" for kind, n in hits.items()}, "confounders taken for copies:", false)
    assert false == 0
    assert all(hits[kind] == total for kind in ("rescaled", "jpeg60", "brighter"))
    assert hits["cropped"] >= 0.9 * total


def test_planted_questions_are_found(tmp_path: Path) -> None:
    """Word for word; with a lead-in, which leaves all w-grams of the shorter question; with another number (kept); too short (kept); and
    with the fourth last of 18 words changed: w = 5, so 4 of 14 w-grams are gone, 10/14 = 0.71."""
    folder = tmp_path / "benchmark"
    folder.mkdir()
    lines = [
        {"question": f"<image 1> {LONG}"},
        {"question": "Find x."},
        {"problem": "What  is\nthe total number of cats and dogs in it?"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "old.json").write_text(
        json.dumps({"questions": [{"question_id": 1, "question": "Is the tall man left of the red car?"}]})
    )
    queries = {
        "same": LONG.upper(),
        "led-in": f"Look at the picture carefully. {LONG}",
        "other-number": LONG.replace("12", "13"),
        "short": "Find x.",
        "changed": LONG.replace("length", "colour"),
        "cats": "what is the total number of cats and dogs in it",
        "man": "Is the tall man left of the red car?",
        "good": "Why?",
    }
    rows = [question(name, flat(10 * n), query=query) for n, (name, query) in enumerate(queries.items())]
    summary, found = decontaminate(rows, tmp_path, [folder])
    assert found == {
        "same": "benchmark_question: asks word for word as benchmark/rows.jsonl: row 1, expected a question that is in no benchmark",
        "led-in": "benchmark_question: shares 1.00 of its 5-grams with benchmark/rows.jsonl: row 1, expected less than 0.8",
        "cats": "benchmark_question: asks word for word as benchmark/rows.jsonl: row 3, expected a question that is in no benchmark",
        "man": "benchmark_question: asks word for word as benchmark/old.json: row 1, expected a question that is in no benchmark",
    }
    counts = [summary[f"benchmark_{name}"] for name in ("images", "questions", "questions_too_short")]
    assert counts == [0, 3, 1]
    _, found = decontaminate(rows, tmp_path / "loose", [folder], overlap=0.5, same_numbers=False, words_min=2)
    assert set(found) == {*queries} - {"good"}
    assert found["changed"].startswith("benchmark_question: shares 0.71 of its 5-grams")
    _, found = decontaminate(
        rows[:1], tmp_path / "off", [write_images({"a.png": flat(99)}, folder)], questions=False
    )
    assert found == {}


def test_numbers_tell_questions_of_a_template_apart() -> None:
    """20 words, one number: 5 of 16 w-grams differ, 11/16 = 0.69; with w = 1, 19 of 20 words are common, and the number decides."""
    text = "a train leaves the old station at {} and reaches the next town by the river after half an hour . when"
    config = DecontaminateConfig(against=[Path()], words=1)
    asked = Questions([("there", text.format(7))], config)
    assert asked.find(text.format(8)) == ""
    loose = Questions([("there", text.format(7))], config.model_copy(update={"same_numbers": False}))
    assert loose.find(text.format(8).replace(" .", "")).startswith("benchmark_question: shares 0.9")
    assert Questions([], config).find(text) == ""


def test_benchmarks_in_every_format(tmp_path: Path) -> None:
    """One of our datasets, a Parquet file of others with a list of images, and loose files: each image is named by its place."""
    pairs = rendered(2)
    write_rows(pairs, tmp_path / "all" / "ours", recipe="render", config={})
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = [{"bytes": flat(50).data, "path": None}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(
        pa.table({"pictures": [shown, []], "question": [LONG, None]}), tmp_path / "all" / "theirs.parquet"
    )
    write_images({"a/b.JPG": flat(80)}, tmp_path / "all")
    rows = [
        question("ours", images_of(pairs[1])[1]),
        question("theirs", flat(50)),
        question("file", flat(80)),
        question("asked", flat(200), query=LONG),
        question("good", flat(201)),
    ]
    summary, found = decontaminate(rows, tmp_path, [tmp_path / "all"], near_images=False)
    places = {
        "ours": "all/ours/data-00000-of-00001.parquet: row group 0, row 1: confounder",
        "theirs": "all/theirs.parquet: row group 0, row 0: pictures",
        "file": "all/a/b.JPG",
        "asked": "all/theirs.parquet: row group 0, row 0",
    }
    assert {row_id: place for row_id, place in places.items() if place in found[row_id]} == places
    assert "good" not in found
    assert summary["benchmark_images"] == 6
    assert summary["unread"][0]["reason"].endswith("no embedded bytes, expected those of an image")
    images = BenchmarkImages(find_benchmarks([tmp_path / "all"]).images)
    assert [image.pixel_hash() for image in images[:1]] == [flat(80).pixel_hash()]


def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut-off image, a bomb, a type that is not read, a link that leads outside, broken JSON and Parquet; the rest is compared."""
    folder = write_images(
        {"good.png": flat(10), "cut.png": EncodedImage(flat(11).data[:40])}, tmp_path / "benchmark"
    )
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    (folder / "bomb.png").write_bytes(header + b"\0" * 64)
    (folder / "scan.tiff").write_bytes(b"II*\0")
    outside = write_images({"x.png": flat(12)}, tmp_path / "elsewhere")
    os.symlink(outside / "x.png", folder / "link.png")
    (folder / "rows.jsonl").write_text('{"question": ')
    (folder / "data.parquet").write_bytes(b"PAR1")
    summary, found = decontaminate(
        [question("a", flat(10)), question("b", flat(12))], tmp_path, [folder], near_images=False
    )
    assert list(found) == ["a"]
    unread = {entry["id"]: entry["reason"] for entry in summary["unread"]}
    assert {name.removeprefix("benchmark/") for name in unread} == {
        "cut.png", "bomb.png", "scan.tiff", "link.png", "rows.jsonl", "data.parquet",
    }  # fmt: skip
    assert all("\n" not in reason for reason in unread.values())
    assert "outside the data folder" in unread["benchmark/link.png"]
    assert (summary["benchmark_images"], summary["benchmark_unread"]) == (1, 6)
    assert "6 files of benchmarks not compared, first " in capsys.readouterr().err


def test_bad_input(tmp_path: Path) -> None:
    write_rows([question("a", flat(10))], tmp_path / "in", recipe="test", config={})
    (tmp_path / "empty").mkdir()

    def fails(message: str, against: Path) -> None:
        with pytest.raises(DataError, match=message):
            run(DecontaminateConfig(against=[against]), tmp_path / "in", tmp_path / "out", Engine())

    fails(r"gone: no such folder, expected one of benchmark images", tmp_path / "gone")
    fails(r"empty: holds no image and no question", tmp_path / "empty")
    fails(
        r"nothing was kept, all 1 inputs were rejected \(benchmark_image 1\), e.g. 'a': benchmark_image",
        tmp_path / "in",
    )
    with pytest.raises(ConfigError, match=r"against is missing$"):
        load_config(DecontaminateConfig, None, [])
    with pytest.raises(ConfigError, match=r"against: List should have at least 1 item"):
        load_config(DecontaminateConfig, None, ["against=[]"])


def test_the_shipped_settings_are_the_defaults() -> None:
    file = Path(__file__).parent.parent / "configs" / "recipes" / "decontaminate.yaml"
    assert load_config(DecontaminateConfig, file, []) == DecontaminateConfig(against=[Path("benchmarks")])


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path: Path) -> None:
    benchmark = rendered(4, seed=1)
    folder = write_images(
        {f"{n}.png": images_of(pair)[0] for n, pair in enumerate(benchmark)}, tmp_path / "benchmark"
    )
    rows = [
        question(f"n{n}", near_copy(images_of(pair)[0], "cropped", n)) for n, pair in enumerate(benchmark)
    ]
    rows.append(question("good", images_of(benchmark[0])[1]))
    one, _ = decontaminate(rows, tmp_path, [folder])
    two, _ = decontaminate(rows, tmp_path / "two", [folder], workers=2)
    assert one["found"] == two["found"]
    assert one["rejected"] == {"near_benchmark_image": 4}


@pytest.mark.realdata
def test_real_benchmark_images_in_training_rows(
    realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten pictures each of two benchmarks and of NLVR, as they are and as a near copy, among rendered pairs: all of them are found by their
    files, and no rendered row."""
    folders = [realdata / name for name in ("bench_mathvista_geo", "bench_blink", "nlvr_dev")]
    rng = Random(0)
    planted: dict[str, tuple[str, str]] = {}
    rows = [row for pair in rendered(20, size_px=224) for row in pair.questions()]
    good = {row.id for row in rows}
    for folder in folders:
        named = [
            json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        names = sorted({name for row in named for name in row["images"]})
        for number, name in enumerate(rng.sample(names, 10)):
            image = EncodedImage((folder / name).read_bytes())
            image = EncodedImage.from_image(image.decode())  # as a dataset would hold it
            for kind in ("exact", KINDS[number % 4]):
                row = question(
                    f"{folder.name}-{kind}-{number}",
                    image if kind == "exact" else near_copy(image, kind, number),
                )
                rows.append(row)
                planted[row.id] = (kind, name)
    summary, found = decontaminate(rows, tmp_path, folders, workers=2)
    assert not good & set(found)
    rates: dict[str, list[bool]] = defaultdict(list)
    for row_id, (kind, _) in planted.items():
        rates[kind].append(row_id in found)
    with capsys.disabled():
        print(
            {kind: f"{sum(hits)} of {len(hits)}" for kind, hits in rates.items()},
            summary["rejected"],
            f"{summary['rows_per_s']:.1f} rows/s",
        )
    assert all(all(hits) for hits in rates.values())
    assert sum(planted[row_id][1] in reason for row_id, reason in found.items()) >= 0.9 * len(
        planted
    )  # some are in a benchmark twice
    # Who made the sets, and NLVR's own file, whose texts are under `sentence`.
    assert {Path(entry["id"]).name for entry in summary["unread"]} == {"SOURCE.json", "dev.json"}


@pytest.mark.realdata
def test_real_questions_in_training_rows(realdata: Path, tmp_path: Path) -> None:
    """Five long questions of MathVista (in Chinese) about other pictures are found; the rendered questions are not."""
    folder = realdata / "bench_mathvista_geo"
    (tmp_path / "rows.jsonl").write_text(
        (folder / "rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )
    asked = [
        json.loads(line)["question"]
        for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    long = [text for text in asked if len(text) > 40][:5]
    rows = [row for pair in rendered(20) for row in pair.questions()]
    rows += [question(f"m{n}", flat(30 * n), query=text) for n, text in enumerate(long)]
    _, found = decontaminate(rows, tmp_path, [folder], near_images=False)
    assert sorted(found) == [f"m{n}" for n in range(5)]
    assert {code(reason) for reason in found.values()} == {"benchmark_question"}
