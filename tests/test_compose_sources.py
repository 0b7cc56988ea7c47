"""What `pairs compose` takes and what it refuses: labels, licences, categories, files that cannot be used."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.compose_pictures import config_of, draw_cutouts, draw_photographs
from vlm_contextrl.data_recipes.compose import ComposeConfig, run
from vlm_contextrl.data_recipes.compose.labels import (
    alike,
    countable,
    label_of_name,
    label_of_text,
    plural,
    with_article,
)
from vlm_contextrl.data_recipes.compose.sources import Catalogue, Refused, read_catalogue
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import DataError


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    draw_cutouts(tmp_path / "cutouts")
    draw_photographs(tmp_path / "photographs")
    return tmp_path


def read(folder: Path, **settings: object) -> tuple[Catalogue, Refused]:
    config: ComposeConfig = config_of(folder, **settings)
    return read_catalogue(config)


def disc(path: Path, side_px: int = 96, box: tuple[int, int, int, int] | None = None) -> None:
    image = Image.new("RGBA", (side_px, side_px))
    ImageDraw.Draw(image).ellipse(box or (4, 4, side_px - 5, side_px - 5), fill="#208030")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# ------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("cat", "cat"),
        ("Toy-Car_02_mirror", "toy car"),
        ("redApple3", "red apple"),
        ("tree.old 12", "tree old"),
        ("\u00e9toile_2", "\u00e9toile"),
        ("0012", ""),
        ("_mirror_flip", ""),
    ],
)
def test_label_of_a_file_name(stem: str, label: str) -> None:
    assert label_of_name(stem) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A cat.", "cat"),
        ("An apple, red and ripe", "apple"),
        ("Some grapes", "grapes"),
        ("This is a bird\u2019s nest!", "bird's nest"),
        ("The house that stands beside the old river", ""),
        ("12 <|im_end|>", "im end"),
        ("", ""),
    ],
)
def test_label_of_a_text(text: str, label: str) -> None:
    assert label_of_text(text) == label


@pytest.mark.parametrize(
    ("label", "many"),
    [
        ("cat", "cats"),
        ("bus", "buses"),
        ("fox", "foxes"),
        ("berry", "berries"),
        ("toy", "toys"),
        ("cup of tea", "cups of tea"),
        ("snow man", "snow men"),
        ("scissors", "scissors"),
        ("sheep", "sheep"),
    ],
)
def test_plural(label: str, many: str) -> None:
    assert plural(label) == many


def test_words_around_labels() -> None:
    assert with_article("owl") == "an owl"
    assert with_article("cup of tea") == "a cup of tea"
    assert with_article("scissors") == "scissors"
    assert [countable(label) for label in ("cat", "bananas", "bunch of grapes", "bus", "sheep")] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert alike("toy car", "cars")
    assert alike("sunflower", "flower")
    assert not alike("cup of tea", "loaf of bread")


def test_a_text_beside_a_cutout_names_it(sources: Path) -> None:
    (sources / "cutouts/tools/hammer.txt").write_text(
        "A sledge hammer.\nde=Ein Vorschlaghammer\n", encoding="utf-8"
    )
    (sources / "cutouts/toys/ball.txt").write_text(
        "It is what children play with on the beach", encoding="utf-8"
    )
    labels = {cutout.file: cutout.label for cutout in read(sources)[0].cutouts}
    assert labels["tools/hammer.png"] == "sledge hammer"
    assert labels["toys/ball.png"] == labels["toys/ball_2.png"] == "ball"
    assert labels["sky/star_01_mirror.png"] == "star"


def test_categories_keep_apart_what_may_be_one_thing(tmp_path: Path) -> None:
    draw_photographs(tmp_path / "photographs")
    for name in ("animals/cow", "animals/birds/bird", "animals/birds/robin", "toys/kite"):
        disc(tmp_path / f"cutouts/{name}.png")
    catalogue, _ = read(tmp_path)
    assert not catalogue.told_apart("robin", "bird")  # one folder
    assert not catalogue.told_apart("robin", "cow")  # one inside the other
    assert catalogue.told_apart("robin", "kite")
    loose, _ = read(tmp_path, same_category=True)
    assert loose.told_apart("robin", "bird")


def test_without_subfolders_labels_are_taken_to_differ(tmp_path: Path) -> None:
    draw_photographs(tmp_path / "photographs")
    disc(tmp_path / "cutouts/cow.png")
    disc(tmp_path / "cutouts/kite.png")
    assert read(tmp_path)[0].told_apart("cow", "kite")


def test_files_can_be_left_out(sources: Path) -> None:
    catalogue, refused = read(sources, exclude=["cutouts/toys/*", "*/view1.png"])
    assert catalogue.labels == ("arrow", "crate", "hammer", "star")
    assert [photograph.file for photograph in catalogue.photographs] == ["view0.png", "view2.png"]
    assert refused == []


def test_what_a_photograph_shows_is_not_asked_for(sources: Path) -> None:
    for index in range(3):
        (sources / f"photographs/view{index}.txt").write_text("Some crates\nand a person\n", encoding="utf-8")
    summary = run(config_of(sources, count=40), sources / "out", Engine())
    catalogue, _ = read(sources)
    assert catalogue.photographs[0].shows == ("crates", "person")
    assert summary["kept"] > 20
    from vlm_contextrl.storage import read_pairs

    for pair in read_pairs(sources / "out"):
        assert "crate" not in json.dumps([pair.query, *pair.options, pair.provenance["source"]])


# ------------------------------------------------------------ licences


def test_the_most_specific_licence_counts(sources: Path) -> None:
    cutouts = sources / "cutouts"
    (cutouts / "licences.csv").write_text("file,licence\ntoys/ball.png,CC-BY-SA-4.0\n", encoding="utf-8")
    (cutouts / "licences.jsonl").write_text(
        '{"file": "boxes/crate.png", "licence": "MIT"}\n', encoding="utf-8"
    )
    (cutouts / "toys/ball.licence").write_text("GPL-2.0\n", encoding="utf-8")
    (cutouts / "toys/ball_2.license").write_text("\n  Public domain\nmore\n", encoding="utf-8")
    (cutouts / "tools/LICENSE").write_text("\n   # The Tool Licence #\nwords\n", encoding="utf-8")
    (cutouts / "sky/deep").mkdir()
    disc(cutouts / "sky/deep/comet.png")
    (cutouts / "sky/COPYING.txt").write_text("GPL\n", encoding="utf-8")
    licences = {cutout.file: cutout.licence for cutout in read(sources)[0].cutouts}
    assert licences == {
        "toys/ball.png": "CC-BY-SA-4.0",
        "boxes/crate.png": "MIT",
        "toys/ball_2.png": "Public domain",
        "tools/hammer.png": "The Tool Licence",
        "sky/deep/comet.png": "GPL",
        "sky/star_01_mirror.png": "GPL",
        "signs/arrow.png": "CC-BY-4.0",
    }


def test_a_file_without_a_licence_is_refused_and_counted(sources: Path) -> None:
    for name in ("toys", "boxes", "signs", "tools"):
        (sources / f"cutouts/{name}/LICENSE").write_text("MIT\n", encoding="utf-8")
    summary = run(config_of(sources, cutout_licence="", count=20), sources / "out", Engine())
    assert summary["inputs"] == 21 == summary["kept"] + summary["rejects"]
    assert summary["rejected"]["unreadable"] == 1
    rejects = [json.loads(line) for line in (sources / "out/rejects.jsonl").read_text().splitlines()]
    assert rejects[0]["id"] == "cutouts/sky/star_01_mirror.png"
    assert (
        "no licence, expected one in licences.csv, star_01_mirror.licence, LICENSE or cutout_licence"
        in rejects[0]["reason"]
    )
    assert summary["licences"].keys() == {"CC0-1.0; MIT"}


def test_no_licence_at_all_stops_the_run(sources: Path) -> None:
    with pytest.raises(
        DataError,
        match="no usable file, expected photographs .3 files were refused, the first: view0.png: no licence",
    ):
        read(sources, photograph_licence="")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "licences.csv",
            "file,license\na.png,MIT\n",
            "line 2: {'file': 'a.png', 'license': 'MIT'}, expected a text under both",
        ),
        ("licences.jsonl", "nonsense\n", "line 1 is not JSON"),
        ("licences.jsonl", "[1]\n", "line 1 is [1], expected an object"),
    ],
)
def test_a_bad_table_of_licences_is_one_line(sources: Path, name: str, text: str, message: str) -> None:
    (sources / "cutouts" / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(sources)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------ files that cannot be used


def bomb(path: Path) -> None:
    """The header of a PNG of 40000 x 40000 pixels and no pixels."""

    def chunk(data: bytes) -> bytes:
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    header = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(b"")))


def test_unusable_cutouts_are_refused_one_line_each(
    sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cutouts, elsewhere = sources / "cutouts", tmp_path_factory.mktemp("elsewhere")
    disc(elsewhere / "secret.png")
    Image.new("RGB", (90, 90)).save(cutouts / "a_opaque.jpg")
    Image.new("RGBA", (90, 90), (1, 2, 3, 255)).save(cutouts / "b_solid.png")
    Image.new("RGBA", (90, 90)).save(cutouts / "c_nothing.png")
    disc(cutouts / "d_tiny.png", box=(4, 4, 30, 30))
    bomb(cutouts / "e_bomb.png")
    (cutouts / "f_link.png").symlink_to(elsewhere / "secret.png")
    disc(cutouts / "0007.png")
    (cutouts / "g_text.png").write_text("no image", encoding="utf-8")
    (cutouts / "h_cut.png").write_bytes((cutouts / "toys/ball.png").read_bytes()[:200])
    disc(cutouts / "i_words.png")
    (cutouts / "i_words.txt").write_bytes(b"\xff\xfe\x00")
    (cutouts / "j_folder").symlink_to(elsewhere, target_is_directory=True)
    (cutouts / "notes.txt").write_text("not an image, no business of ours", encoding="utf-8")
    catalogue, refused = read(sources)
    assert len(catalogue.cutouts) == 6
    expected = {
        "0007.png": "no label, expected words in its name or in 0007.txt",
        "a_opaque.jpg": "opaque, expected a cut-out with a transparent background",
        "b_solid.png": "opaque, expected a cut-out with a transparent background",
        "c_nothing.png": "transparent all over, expected an object",
        "d_tiny.png": "its object has 27 x 27 pixels, expected at least 64 on the longer side",
        "e_bomb.png": "expected at most 50000000 pixels (a decompression bomb",
        "f_link.png": "is outside the data folder",
        "g_text.png": "are no image",
        "h_cut.png": "damaged or truncated",
        "i_words.png": "expected UTF-8 text",
        "j_folder": "a link to a folder, expected a folder itself",
    }
    assert {file.removeprefix("cutouts/") for file, _ in refused} == expected.keys()
    for file, reason in refused:
        assert expected[file.removeprefix("cutouts/")] in reason
        assert "\n" not in reason


def test_unusable_photographs_are_refused_one_line_each(sources: Path) -> None:
    photographs = sources / "photographs"
    Image.new("RGB", (100, 80)).save(photographs / "small.jpg")
    Image.new("RGB", (600, 200)).save(photographs / "wide.jpg")
    bomb(photographs / "bomb.png")
    catalogue, refused = read(sources)
    assert len(catalogue.photographs) == 3
    reasons = dict(refused)
    assert "100 x 80 pixels, expected at least 128 on the longer side" in reasons["photographs/small.jpg"]
    assert (
        "600 x 200 pixels, expected at least 128 on the longer side and at most 2.5:1"
        in reasons["photographs/wide.jpg"]
    )
    assert "expected at most 50000000 pixels" in reasons["photographs/bomb.png"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "no usable file, expected cutouts"),
        (
            ["toys/ball.png", "toys/ball_2.png"],
            "only the label 'ball', expected cut-outs of at least two labels",
        ),
    ],
)
def test_too_few_cutouts_stop_the_run(sources: Path, keep: list[str], message: str) -> None:
    for path in (sources / "cutouts").rglob("*.png"):
        if str(path.relative_to(sources / "cutouts")) not in keep:
            path.unlink()
    with pytest.raises(DataError, match=message):
        read(sources)


def test_one_category_for_all_stops_the_run(tmp_path: Path) -> None:
    draw_photographs(tmp_path / "photographs")
    disc(tmp_path / "cutouts/things/cow.png")
    disc(tmp_path / "cutouts/things/kite.png")
    with pytest.raises(
        DataError, match="no two of its 2 labels are sure to differ .*; set same_category=true"
    ):
        read(tmp_path)
    assert len(read(tmp_path, same_category=True)[0].labels) == 2


def test_a_folder_that_is_none(sources: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder, expected the folder of photographs"):
        read(sources, photographs=sources / "nowhere")
