"""Image features: drawn ones by hand, the cache by content, and exact search."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_contextrl.config import validate
from vlm_contextrl.data_recipes.features import (
    EncoderSettings,
    ImagesOf,
    cache,
    image_features,
    neighbours,
    row_images,
)
from vlm_contextrl.data_recipes.features.encoders import HistogramEncoder, colour_shares
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import ConfigError, DataError, MissingExtraError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_pairs, read_questions

HISTOGRAM = EncoderSettings()


def halves(left: str, right: str, size_px: int = 64) -> Image.Image:
    picture = Image.new("RGB", (size_px, size_px), left)
    ImageDraw.Draw(picture).rectangle((size_px // 2, 0, size_px, size_px), fill=right)
    return picture


def shades(count: int) -> list[EncodedImage]:
    """Pictures of which no two are alike."""
    return [EncodedImage.from_image(halves(f"rgb({i * 5}, 0, 0)", "blue")) for i in range(count)]


def cosine(a: Image.Image, b: Image.Image, encoder: str, folder: Path) -> float:
    images = [EncodedImage.from_image(picture) for picture in (a, b)]
    x, y = image_features(images, EncoderSettings(encoder=encoder), folder, Engine(), "test")
    return float(x @ y)


@pytest.mark.parametrize("size_px", [64, 600])
def test_histogram_by_hand(size_px: int, tmp_path: Path) -> None:
    """Half red, half blue against its mirror image: the colours agree (1), no cell does (0): (1 + 0) / 2. Against all red: the colours give
    sqrt(1 * 0.5) = 0.7071, 8 of 16 cells agree: (0.7071 + 0.5) / 2 = 0.6036."""
    one, mirrored = halves("red", "blue", size_px), halves("blue", "red", size_px)
    assert cosine(one, mirrored, "histogram", tmp_path) == pytest.approx(0.5, abs=1e-6)
    assert cosine(one, halves("red", "red", size_px), "histogram", tmp_path) == pytest.approx(
        0.60355, abs=1e-5
    )
    assert cosine(one, one, "histogram", tmp_path) == pytest.approx(1)


def test_pixels_by_hand(tmp_path: Path) -> None:
    """Black is -1 and white 1 everywhere: opposite. Half of the pixels swapped: half agree, half are opposite, 0."""
    assert cosine(halves("black", "black"), halves("white", "white"), "pixels", tmp_path) == pytest.approx(-1)
    assert cosine(halves("black", "white"), halves("white", "white"), "pixels", tmp_path) == pytest.approx(
        0, abs=1e-6
    )


def test_colour_shares_count_every_pixel_once() -> None:
    """Levels 0, 127 and 128, 255 of two per channel: (0,0,0) is colour 0, (128, 0, 255) is 1 * 4 + 0 * 2 + 1 = 5."""
    shares = colour_shares(np.array([[[0, 127, 0], [128, 0, 255]]], np.uint8), 2)
    assert shares[[0, 5]].tolist() == [0.5, 0.5]
    assert shares.sum() == 1
    assert not colour_shares(np.empty((0, 4, 3), np.uint8), 2).any()  # a picture of 2 px has empty cells


def test_tiny_pictures_have_unit_features(tmp_path: Path) -> None:
    images = [EncodedImage.from_image(Image.new("RGB", size, "red")) for size in ((1, 1), (3, 1), (2, 5))]
    for encoder in ("histogram", "pixels"):
        vectors = image_features(images, EncoderSettings(encoder=encoder), tmp_path, Engine(), "test")
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


class Counting(HistogramEncoder):
    """Counts what it encodes."""

    def __init__(self) -> None:
        self.count = 0

    def encode(self, pictures: Any) -> Any:
        self.count += len(pictures)
        return super().encode(pictures)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    encoder = Counting()
    monkeypatch.setattr(cache, "load_encoder", lambda settings: encoder)
    return encoder


def test_more_images_cost_only_the_new_ones(tmp_path: Path, counting: Counting) -> None:
    """20, then 30 of which 20 are known, then the same 30: 20, 10 and 0 are encoded."""
    images, counts = shades(30), []
    for wanted in (images[:20], images, images):
        before = counting.count
        found = image_features(wanted, HISTOGRAM, tmp_path, Engine(), "test")
        counts.append(counting.count - before)
    assert counts == [20, 10, 0]
    np.testing.assert_array_equal(
        found, image_features(images, HISTOGRAM, tmp_path / "new", Engine(), "test")
    )
    assert not list(tmp_path.glob("*/.*"))  # nothing is left of the runs


def test_equal_pictures_are_encoded_once_and_keep_their_places(tmp_path: Path, counting: Counting) -> None:
    """The second file of a picture is a WEBP: other bytes, same pixels."""
    first, other = shades(30)[0], shades(30)[-1]
    webp = tmp_path / "same.webp"
    first.decode().save(webp, lossless=True)
    images = [first, other, EncodedImage(webp.read_bytes()), first]
    found = image_features(images, HISTOGRAM, tmp_path / "cache", Engine(), "test")
    assert counting.count == 2
    np.testing.assert_array_equal(found[[0, 0]], found[[2, 3]])
    assert not np.array_equal(found[0], found[1])


def test_encoders_do_not_share_vectors(tmp_path: Path) -> None:
    images = shades(3)
    for encoder in ("histogram", "pixels"):
        image_features(images, EncoderSettings(encoder=encoder), tmp_path, Engine(), "test")
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_give_what_one_gives(
    questions_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PART_IMAGES", 5)
    images = row_images(read_questions(questions_folder))
    found = [image_features(images, HISTOGRAM, tmp_path / str(n), Engine(workers=n), "test") for n in (1, 2)]
    np.testing.assert_array_equal(*found)


def test_nothing_to_encode(tmp_path: Path) -> None:
    assert image_features([], HISTOGRAM, tmp_path, Engine(), "test").shape == (0, 0)


def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path) -> None:
    image_features(shades(2), HISTOGRAM, tmp_path, Engine(), "test")
    (file,) = tmp_path.glob("*/vectors-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"vectors-\w+\.npz: damaged .* remove it, and its images are encoded again"
    ):
        image_features(shades(2), HISTOGRAM, tmp_path, Engine(), "test")


def test_features_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode(self, pictures: Any) -> Any:
            return np.full((len(pictures), 4), np.nan, np.float32)

    monkeypatch.setattr(cache, "load_encoder", lambda settings: Broken())
    with pytest.raises(DataError, match="a.png: histogram gives features that are no finite numbers"):
        image_features([EncodedImage(shades(1)[0].data, "a.png")], HISTOGRAM, tmp_path, Engine(), "test")
    assert not list(tmp_path.glob("*/vectors-*"))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="b.png: .* are no image"):
        image_features([EncodedImage(b"no image", "b.png")], HISTOGRAM, tmp_path, Engine(), "test")


def test_row_images_know_row_and_side(pairs_folder: Path, questions_folder: Path) -> None:
    pairs, questions = read_pairs(pairs_folder), read_questions(questions_folder)
    images = row_images(pairs)
    assert images.places == [(row, side) for row in range(24) for side in (0, 1)]
    assert images[5] == pairs[2].confounder
    assert images[2:6] == [pairs[1].context, pairs[1].confounder, pairs[2].context, pairs[2].confounder]
    assert pickle.loads(pickle.dumps(images))[5] == images[5]
    assert (
        row_images(questions).places == row_images(list(questions)).places == [(row, 0) for row in range(24)]
    )


def test_pairs_of_texts_have_no_images() -> None:
    pair = ContrastivePair(
        id="t", query="?", answer="a", context="one", confounder="two", provenance={"licence": "CC0-1.0"}
    )
    assert len(row_images([pair])) == 0
    assert len(ImagesOf([pair], [])) == 0


# ---- search


def angles(*degrees: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_neighbours_by_hand() -> None:
    """0, 30, 60 and 90 degrees: cosines with the first are 1, 0.866, 0.5 and 0. In [0.4, 0.9] are the second and the third."""
    base = angles(0, 30, 60, 90)
    indices, cosines = neighbours(base[:1], base, 3, 0.4, 0.9)
    assert indices.tolist() == [[1, 2, -1]]
    np.testing.assert_allclose(cosines[0], [0.8660254, 0.5, -np.inf], atol=1e-6)


def test_equal_labels_are_no_neighbours() -> None:
    base, labels = angles(0, 10, 20), np.array([7, 7, 8])
    assert neighbours(base, base, 1, exclude=(labels, labels))[0].tolist() == [[2], [2], [1]]
    alone = np.zeros(3, int)
    assert neighbours(base, base, 2, exclude=(alone, alone))[0].tolist() == [[-1, -1]] * 3


def test_bounds_are_inclusive_in_float32() -> None:
    """Equal vectors have cosine 1 up to rounding, and the window [1, 1] holds them."""
    vectors = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    indices, cosines = neighbours(vectors, vectors, 1, 1.0, 1.0)
    assert indices[:, 0].tolist() == list(range(50))
    assert cosines.max() <= 1


@pytest.mark.parametrize("chunk", [3, 7, 1000])
def test_search_agrees_with_sorting_everything(chunk: int) -> None:
    rng = np.random.default_rng(1)
    queries, base = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in rng.standard_normal((2, 60, 8)).astype(np.float32)
    )
    labels = rng.integers(5, size=(2, 60))
    indices, cosines = neighbours(queries, base, 6, -0.2, 0.6, chunk=chunk, exclude=(labels[0], labels[1]))
    every = queries @ base.T
    for row in range(60):
        allowed = [m for m in range(60) if -0.2 <= every[row, m] <= 0.6 and labels[0, row] != labels[1, m]]
        expected = sorted(allowed, key=lambda m: -every[row, m])[:6]
        assert [m for m in indices[row] if m >= 0] == expected
        np.testing.assert_allclose(cosines[row, : len(expected)], every[row, expected], atol=1e-6)


def test_faiss_agrees_with_the_exact_search() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(2)
    base = rng.standard_normal((300, 16)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    labels = rng.integers(2, size=300)  # half of the nearest are refused, so faiss is asked again
    for low, high in ((-1.0, 1.0), (0.2, 0.5)):
        exact, fast = (
            neighbours(base, base, 40, low, high, exclude=(labels, labels), index=index)
            for index in ("exact", "faiss")
        )
        np.testing.assert_array_equal(exact[0] >= 0, fast[0] >= 0)
        np.testing.assert_allclose(exact[1], fast[1], atol=1e-5)
    assert (neighbours(base, base, 300, exclude=(labels, labels), index="faiss")[0] >= 0).sum() == 2 * (
        labels == 0
    ).sum() * labels.sum()


def test_faiss_looks_at_the_nearest_cells_of_a_large_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors around 60 centres: nearly all neighbours are in the cells that are looked at, and none is wrong."""
    pytest.importorskip("faiss")
    from vlm_contextrl.data_recipes.features import faiss_search

    monkeypatch.setattr(faiss_search, "EXACT_UP_TO", 1000)
    rng = np.random.default_rng(3)
    base = rng.standard_normal((60, 16)).astype(np.float32)[rng.integers(60, size=3000)]
    base += rng.standard_normal((3000, 16)).astype(np.float32) / 4
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    own = np.arange(3000)
    exact, fast = (
        neighbours(base[:200], base, 8, 0.5, exclude=(own[:200], own), index=index)
        for index in ("exact", "faiss")
    )
    shared = [len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(exact[0], fast[0], strict=True)]
    assert sum(shared) > 0.8 * (exact[0] >= 0).sum()
    query, column = np.nonzero(fast[0] >= 0)
    np.testing.assert_allclose(
        (base[query] * base[fast[0][query, column]]).sum(1), fast[1][query, column], atol=1e-5
    )


def test_faiss_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[search\]"):
        neighbours(angles(0), angles(0, 1), 1, index="faiss")


def test_no_queries_and_no_base() -> None:
    assert neighbours(angles(), angles(0), 3)[0].shape == (0, 1)
    assert neighbours(angles(0), angles(), 3)[0].shape == (1, 0)


# ---- settings


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"encoder": "transformers"}, "needs a path: a model folder or a hub id"),
        ({"encoder": "pixels", "path": "x"}, "path has no effect on the encoder pixels"),
        ({"encoder": "dino"}, "encoder: .*'dino'"),
    ],
)
def test_bad_settings_are_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        validate(EncoderSettings, values, "encoder")
    assert "\n" not in str(caught.value)
