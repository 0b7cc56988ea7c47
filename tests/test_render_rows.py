"""Rendered rows: reproducible, valid, and no cue but the picture tells context from confounder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vlm_contextrl.data_recipes.render import (
    DOMAINS,
    RenderConfig,
    make_pair,
    make_question,
    render_pairs,
    render_questions,
    run,
    scene_hash,
)
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, check_pair, check_question
from vlm_contextrl.storage import read_pairs, read_questions


@pytest.fixture(scope="module")
def pairs() -> list[ContrastivePair]:
    return list(render_pairs(RenderConfig(count=1600, seed=5, size_px=56)))


def test_a_row_depends_on_seed_and_index_only() -> None:
    config = RenderConfig(count=6, seed=3)
    rows = list(render_pairs(config))
    assert [make_pair(config, index) for index in reversed(range(6))] == rows[::-1]
    assert rows[2] == make_pair(RenderConfig(count=100, seed=3), 2)
    assert rows[2] != make_pair(RenderConfig(count=6, seed=4), 2)
    assert list(render_questions(config)) == [make_question(config, index) for index in range(6)]


def test_pairs_hold_every_invariant(pairs: list[ContrastivePair]) -> None:
    assert len({pair.id for pair in pairs}) == len(pairs)
    for index, pair in enumerate(pairs):
        assert check_pair(pair) is None
        assert pair.id == f"{pair.domain}-{pair.provenance['question_type']}-{index:06d}"
        assert pair.recipe == "render"
        assert {
            "source",
            "licence",
            "seed",
            "scene",
            "edit",
            "edited",
            "changed_fraction",
        } < pair.provenance.keys()
        assert pair.provenance["licence"] == "CC0-1.0"
        assert pair.confounder_answer is not None
    share = {name: sum(pair.domain == name for pair in pairs) / len(pairs) for name in DOMAINS}
    assert all(abs(value - 0.2) < 0.04 for value in share.values()), share
    assert all(check_question(row) is None for row in render_questions(RenderConfig(count=40)))


def test_the_coin_is_fair_and_independent_of_the_answer(pairs: list[ContrastivePair]) -> None:
    """1600 tosses: heads within 4 standard deviations (0.05) of half; chi-square as under permutation."""
    edited = np.array([pair.provenance["edited"] == "context" for pair in pairs])
    assert abs(edited.mean() - 0.5) < 0.05
    labels = [(pair.provenance["question_type"], pair.answer, bool(pair.options)) for pair in pairs]
    cells = np.unique(labels, axis=0, return_inverse=True)[1].ravel()

    def dependence(tosses: np.ndarray[Any, Any]) -> float:
        """Chi-square of toss against (type, answer)."""
        totals = np.bincount(cells)
        heads = np.bincount(cells, weights=tosses)
        return float((((heads - totals * tosses.mean()) ** 2) / totals).sum())

    generator = np.random.default_rng(0)
    shuffled = [dependence(generator.permutation(edited)) for _ in range(300)]
    assert np.mean([value >= dependence(edited) for value in shuffled]) > 0.01


def image_statistics(image: EncodedImage) -> np.ndarray[Any, Any]:
    """Mean and deviation of each channel, ink (share of pixels unlike the corner), edges, PNG size."""
    pixels = np.asarray(image.decode(), dtype=np.float64) / 255
    ink = (np.abs(pixels - pixels[0, 0]).sum(axis=-1) > 0.1).mean()
    edges = np.abs(np.diff(pixels, axis=0)).mean(), np.abs(np.diff(pixels, axis=1)).mean()
    size = np.log(len(image.data))
    return np.array([*pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1)), ink, *edges, size])


def cross_validated_accuracy(
    features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], folds: int = 5
) -> float:
    """Logistic regression by gradient descent, standardised features, mean accuracy on the held-out folds."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    features = np.hstack([features, np.ones((len(features), 1))])
    fold = np.arange(len(features)) % folds
    right = []
    for held_out in range(folds):
        train, test = fold != held_out, fold == held_out
        weights = np.zeros(features.shape[1])
        for _ in range(400):
            guess = 1 / (1 + np.exp(-features[train] @ weights))
            weights -= 0.5 * features[train].T @ (guess - labels[train]) / train.sum()
        right.append(((features[test] @ weights > 0) == labels[test]).mean())
    return float(np.mean(right))


def test_image_statistics_do_not_tell_context_from_confounder(pairs: list[ContrastivePair]) -> None:
    """Shown both pictures in random order, a linear classifier stays within 0.04 (3 errors) of chance."""
    first = np.random.default_rng(1).random(len(pairs)) < 0.5
    rows = []
    for pair, context_first in zip(pairs, first, strict=True):
        assert isinstance(pair.context, EncodedImage)
        assert isinstance(pair.confounder, EncodedImage)
        difference = image_statistics(pair.context) - image_statistics(pair.confounder)
        rows.append(difference if context_first else -difference)
    assert abs(cross_validated_accuracy(np.array(rows), first) - 0.5) < 0.04
    leak = np.array(rows) + 0.5 * np.array(rows).std(axis=0) * (2 * first[:, None] - 1)
    assert cross_validated_accuracy(leak, first) > 0.6  # the classifier would see a leak of half a deviation


def test_scene_hash_is_stable() -> None:
    """A changed hash would let one scene fall into two splits of datasets made by two versions."""
    scene = DOMAINS["charts"].sample(Random(0))
    assert scene_hash(scene) == scene_hash(DOMAINS["charts"].sample(Random(0)))
    assert scene_hash(scene) != scene_hash(DOMAINS["charts"].sample(Random(1)))
    assert re.fullmatch("[0-9a-f]{16}", scene_hash(scene))


def test_run_writes_a_folder_and_a_summary(tmp_path: Path) -> None:
    summary = run(RenderConfig(count=12, domains=["dials", "charts"]), tmp_path / "pairs")
    assert (summary["rows"], summary["rejects"], summary["kind"]) == (12, 0, "pairs")
    assert summary["domains"].keys() == {"charts", "dials"}
    assert sum(summary["question_types"].values()) == 12
    assert 0 < summary["changed_fraction_median"] < 1
    assert json.loads(json.dumps(summary)) == summary
    written = list(read_pairs(tmp_path / "pairs"))
    assert [pair.query for pair in written] == [
        pair.query for pair in render_pairs(RenderConfig(count=12, domains=["dials", "charts"]))
    ]
    questions = run(RenderConfig(count=3, rows="questions"), tmp_path / "questions")
    assert questions["changed_fraction_mean"] is None
    assert len(read_questions(tmp_path / "questions")) == 3
    with pytest.raises(DataError, match="already exists"):
        run(RenderConfig(count=1), tmp_path / "pairs")


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 1, "sise_px": 9},
        {"count": 1, "domains": ["photos"]},
        {"count": 1, "domains": []},
    ],
)
def test_the_config_refuses_what_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RenderConfig(**wrong)
    with pytest.raises(ValidationError, match="named twice"):
        RenderConfig(count=1, domains=["objects", "objects"])


def test_share_of_multiple_choice() -> None:
    """0: none; 1: every question with three or more possible answers; the default: rows as they were before there was the setting."""
    shares = []
    for choice_share in (0.0, 0.15, 1.0):
        config = RenderConfig(count=200, rows="questions", size_px=56, choice_share=choice_share)
        shares.append(sum(bool(make_question(config, index).options) for index in range(200)) / 200)
    assert shares[0] == 0 < shares[1] < 0.2
    assert 0.3 < shares[2] < 0.7
