"""The two controls of composed pairs: each finds what is planted and nothing else; and a trial on real material."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.compose_pictures import config_of, draw_cutouts, draw_photographs
from vlm_contextrl.data_recipes.compose import run
from vlm_contextrl.data_recipes.compose.controls import (
    blind_answers,
    cross_validated,
    trace_control,
    trace_features,
)
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[ContrastivePair]:
    """120 pairs of 128 px."""
    folder = tmp_path_factory.mktemp("composed")
    draw_cutouts(folder / "cutouts")
    draw_photographs(folder / "photographs", count=6)
    run(config_of(folder, count=120), folder / "out", Engine())
    return list(read_pairs(folder / "out"))


def picture(side: Any) -> Image.Image:
    assert isinstance(side, EncodedImage)
    return side.decode()


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return Image.open(buffer).convert("RGB")


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value + 4))


def grain(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(image.width).normal(0, 2, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def test_pairs_as_they_are_show_no_trace(pairs: list[ContrastivePair]) -> None:
    found = trace_control(pairs, 400)
    assert found["n"] == len(pairs) == 120
    assert found["low"] <= 0.5 <= found["high"]
    assert found["found_trace"] is False


@pytest.mark.parametrize(
    "plant",
    [lambda image: image.filter(ImageFilter.GaussianBlur(0.6)), jpeg, brighter, grain],
    ids=["blur", "jpeg", "tone", "grain"],
)
def test_a_planted_trace_is_found(pairs: list[ContrastivePair], plant: Any) -> None:
    """Only confounders are treated; 0.9 of 120 is 14 standard deviations above a coin."""
    planted = [
        replace(pair, confounder=EncodedImage.from_image(plant(picture(pair.confounder)))) for pair in pairs
    ]
    found = trace_control(planted, 400)
    assert found["value"] >= 0.9
    assert found["found_trace"] is True


def test_the_same_treatment_of_both_sides_is_no_trace(pairs: list[ContrastivePair]) -> None:
    blurred = [
        replace(
            pair,
            context=EncodedImage.from_image(jpeg(picture(pair.context))),
            confounder=EncodedImage.from_image(jpeg(picture(pair.confounder))),
        )
        for pair in pairs
    ]
    assert trace_control(blurred, 400)["found_trace"] is False


def test_the_coin_hides_what_an_edit_leaves(tmp_path: Path) -> None:
    """A picture with an object less has fewer edges. Were it always the confounder, the control would find it; the coin hides it."""
    draw_cutouts(tmp_path / "cutouts")
    draw_photographs(tmp_path / "photographs")
    run(config_of(tmp_path, edits=["removed"], count=80), tmp_path / "out", Engine())
    tossed = list(read_pairs(tmp_path / "out"))
    sides = [pair if pair.provenance["edited"] == "confounder" else pair.reversed() for pair in tossed]
    assert trace_control([pair for pair in sides if pair is not None], 400)["value"] > 0.9
    assert not trace_control(tossed, 400)["found_trace"]


def test_few_pairs_measure_nothing(pairs: list[ContrastivePair]) -> None:
    assert trace_control(pairs[:20], 400) == {
        "value": None,
        "n": 0,
        "low": None,
        "high": None,
        "found_trace": False,
    }


def test_cross_validation_by_hand() -> None:
    """One feature that is always larger in the context: all right. One that is noise: a coin. One that is always equal: half a point."""
    assert cross_validated(np.ones((50, 1)) * np.linspace(1, 2, 50)[:, None]) == [1.0] * 50
    noise = np.random.default_rng(0).normal(size=(1000, 5))
    assert np.mean(cross_validated(noise)) == pytest.approx(0.5, abs=0.06)
    assert cross_validated(np.zeros((50, 2))) == [0.5] * 50


def test_jpeg_grid_statistic_knows_the_grid() -> None:
    """Steps of 8 px blocks of constant tone lie on the borders only: the log ratio is far above 0; shifted by 3 px it is below."""
    tones = np.random.default_rng(0).integers(0, 255, (16, 16))
    blocks = np.kron(tones, np.ones((8, 8))).astype(np.uint8)
    on, off = (trace_features(Image.fromarray(b).convert("RGB"))[-5] for b in (blocks, np.roll(blocks, 3, 1)))
    assert on > 2
    assert off < 0


# ------------------------------------------------------------ blind answers


def row(
    query: str, answer: str, other: str, answer_type: str = "exact", options: tuple[str, ...] = ()
) -> dict[str, Any]:
    names = ("query", "answer", "confounder_answer", "answer_type", "options", "question_type")
    return dict(zip(names, (query, answer, other, answer_type, options, "kind"), strict=True))


def test_blind_answers_find_a_favoured_answer() -> None:
    """90 of 100 answers are yes: guessing yes is right 9 times of 10, a coin 1 of 2."""
    favoured = [
        row(f"Is it {i}?", *(("no", "yes") if i % 10 == 3 else ("yes", "no")), "boolean") for i in range(100)
    ]
    found = blind_answers(favoured)
    assert found["value"] == pytest.approx(0.9)
    assert found["low"] > found["chance"] == 0.5


def test_blind_answers_find_that_the_first_name_is_favoured() -> None:
    """Names never repeat, but the answer is always the one that is named first."""
    named = [row(f"Which is bigger, the a{i} or the b{i}?", f"a{i}", f"b{i}") for i in range(60)]
    assert blind_answers(named)["value"] == 1.0


def test_blind_answers_of_a_fair_set_are_chance() -> None:
    rng = Random(0)
    fair = [row("Left or right?", *rng.sample(("left", "right"), 2)) for _ in range(400)]
    found = blind_answers(fair)
    assert found["chance"] == 0.5
    assert found["low"] <= 0.5


def test_blind_answers_of_composed_pairs(pairs: list[ContrastivePair]) -> None:
    rows = [
        row(p.query, p.answer, p.confounder_answer or "", p.answer_type, p.options)
        | {"question_type": p.provenance["question_type"]}
        for p in pairs
    ]
    found = blind_answers(rows)
    assert found["low"] <= found["chance"] + 0.05


# ------------------------------------------------------------ real material


@pytest.mark.realdata
@pytest.mark.slow
def test_real_cutouts_over_real_photographs(realdata: Path, tmp_path: Path) -> None:
    """Cut-outs of the folder that VLM_CONTEXTRL_STAMPS names (Debian's tuxpaint-stamps-default, unpacked) over photographs of a benchmark,
    which are here to be looked at and are never trained on."""
    named = os.environ.get("VLM_CONTEXTRL_STAMPS", "")
    if not named:
        pytest.skip("VLM_CONTEXTRL_STAMPS names no folder of cut-outs")
    config = config_of(
        tmp_path,
        photographs=realdata / "bench_blink",
        cutouts=Path(named),
        count=200,
        size_px=336,
        cutout_licence="GPL-2.0",
        control_pairs=200,
    )
    summary = run(config, tmp_path / "out", Engine())
    print(summary)
    assert summary["inputs"] == summary["kept"] + summary["rejects"]
    assert summary["sources"]["cutouts"] > 500
    assert summary["kept"] >= 195
    assert summary["trace_control"]["low"] <= 0.5
