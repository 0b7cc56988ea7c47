"""Two things that must not work on a set of pairs.

*Trace control*: can anything but the content tell context from confounder? Each picture gives statistics of its noise residual, edges, JPEG
grid and tone; a logistic regression on the difference of the two pictures' statistics says which is the context.

    p(context first) = sigmoid(w . (f(first) - f(second)) / scale),    no intercept, an L2 penalty on w, Newton's method

It sees both pictures of a pair, as a model that selects does; what the two share cancels. Accuracy on pairs that it was not fitted on
(5 folds).

*Blind answers*: can the question alone tell the answer? The most frequent answer to the same question (else to the same sort of question)
in the other half of the pairs is the guess (chance where there is none); an answer that stands in the question counts by its place there
(first, second).

Left out: learned features; a network may find what these statistics do not hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.pairs import ContrastivePair, EncodedImage

Array = np.ndarray[Any, np.dtype[np.float64]]

FOLDS = 5
MIN_PAIRS = 40  # fewer say nothing about some twenty-five features
PENALTY = 0.02
JPEG_BLOCK_PX = 8


def trace_features(image: Image.Image) -> Array:
    """Statistics [27] that pasting, filtering or compressing leaves its mark on."""
    rgb = np.asarray(image, dtype=np.float64)
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    residual = np.abs(_laplacian(luminance))
    across, down = np.abs(np.diff(luminance, axis=1)), np.abs(np.diff(luminance, axis=0))
    blocks = _block_means(residual)
    strong = np.maximum(across[:-1], down[:, :-1])
    levels = [
        residual.mean(),
        np.sqrt((residual**2).mean()),
        *np.quantile(residual, (0.25, 0.5, 0.75, 0.9, 0.99)),
        *np.quantile(blocks, (0.05, 0.25, 0.5, 0.75, 0.95)),
        np.abs(np.diff(luminance, 2, axis=1)).mean(),
        np.abs(np.diff(luminance, 2, axis=0)).mean(),
        *np.quantile(strong, (0.5, 0.9, 0.97, 0.99)),
        *(np.abs(_laplacian(rgb[..., channel] - luminance)).mean() for channel in (0, 2)),
    ]
    shares = [
        (residual < 0.5).mean(),
        (strong > 30).mean(),
        *(_grid(steps, axis) for steps, axis in ((across, 1), (down, 0))),
        luminance.mean() / 255,
        luminance.std() / 255,
        np.ptp(rgb, axis=-1).mean() / 255,
    ]
    return np.array([*np.log(np.array(levels) + 0.05), *shares])


def _laplacian(values: Array) -> Array:
    middle = values[1:-1, 1:-1]
    result: Array = 4 * middle - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return result


def _block_means(values: Array) -> Array:
    height, width = (size // JPEG_BLOCK_PX * JPEG_BLOCK_PX for size in values.shape)
    shape = (height // JPEG_BLOCK_PX, JPEG_BLOCK_PX, width // JPEG_BLOCK_PX, JPEG_BLOCK_PX)
    means: Array = values[:height, :width].reshape(shape).mean(axis=(1, 3))
    return means


def _grid(steps: Array, axis: int) -> float:
    """Log ratio of the steps over borders of 8 px blocks to the others."""
    border = np.arange(steps.shape[axis]) % JPEG_BLOCK_PX == JPEG_BLOCK_PX - 1
    over, within = (steps.compress(chosen, axis=axis).mean() for chosen in (border, ~border))
    return float(np.log((over + 0.05) / (within + 0.05)))


def trace_control(pairs: Sequence[ContrastivePair], limit: int) -> dict[str, Any]:
    """{value, n, low, high} of the accuracy on up to `limit` pairs, evenly spread; 0.5 is what must come out.

    `found_trace` is True when the interval lies above 0.5; by chance alone it did for 13 of 200 coin-tossed labellings of 1000 pairs, as
    folds share their training pairs. With fewer than `MIN_PAIRS` pairs of images nothing is measured: value None.
    """
    chosen = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round().astype(int)
    differences = []
    for index in chosen:
        pair = pairs[int(index)]
        if isinstance(pair.context, EncodedImage) and isinstance(pair.confounder, EncodedImage):
            one, other = (trace_features(side.decode()) for side in (pair.context, pair.confounder))
            differences.append(one - other)
    accuracy = bootstrap(cross_validated(np.array(differences)) if len(differences) >= MIN_PAIRS else [])
    return {**accuracy, "found_trace": accuracy["low"] is not None and accuracy["low"] > 0.5}


def cross_validated(differences: Array) -> list[float]:
    """For each pair 1 when the context was found, else 0. differences: f(context) - f(confounder) [pairs, features]."""
    folds = np.arange(len(differences)) % FOLDS
    right = np.zeros(len(differences))
    for fold in range(FOLDS):
        seen, held_out = differences[folds != fold], differences[folds == fold]
        scale = np.sqrt((seen**2).mean(axis=0)) + 1e-9
        margins = (held_out / scale) @ _fit(seen / scale)
        right[folds == fold] = np.where(margins == 0, 0.5, margins > 0)
    return [float(value) for value in right]


def _fit(differences: Array) -> Array:
    """Weights that minimise mean log(1 + exp(-w.d)) + PENALTY / 2 |w|^2."""
    n, features = differences.shape
    weights = np.zeros(features)
    for _ in range(25):
        wrong = 1 / (1 + np.exp(np.clip(differences @ weights, -30, 30)))
        gradient = PENALTY * weights - differences.T @ wrong / n
        curvature = PENALTY * np.eye(features) + (differences.T * (wrong * (1 - wrong))) @ differences / n
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights


def blind_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{value, n, low, high, chance} of guessing without the picture; chance: one over the number of answers that the kind of question has.

    rows: query, answer, confounder_answer, options, answer_type, question_type.
    """
    asked = [_asked(row) for row in rows]
    votes: dict[tuple[int, tuple[str, ...]], Counter[str]] = defaultdict(Counter)
    answers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for index, (query, kind, answer) in enumerate(asked):
        votes[index % 2, (*kind, query)][answer] += 1
        votes[index % 2, kind][answer] += 1
        answers[kind].add(answer)
    right = []
    for index, (query, kind, answer) in enumerate(asked):
        seen = votes[1 - index % 2, (*kind, query)] or votes[1 - index % 2, kind]
        guessed = max(sorted(seen), key=seen.__getitem__) == answer if seen else 1 / len(answers[kind])
        right.append(float(guessed))
    chance = [1 / len(answers[kind]) for _, kind, _ in asked]
    return {**bootstrap(right), "chance": float(np.mean(chance)) if chance else None}


def _asked(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """Query, sort of question, answer (its place in the query where both answers stand in it)."""
    query, answer, other = row["query"], row["answer"], row["confounder_answer"] or ""
    kind = (row["question_type"], row["answer_type"], str(len(row["options"] or ())))
    if row["answer_type"] in ("exact", "numeric") and other and answer in query and other in query:
        return query, (*kind, "named"), "first" if query.index(answer) < query.index(other) else "second"
    return query, kind, answer
