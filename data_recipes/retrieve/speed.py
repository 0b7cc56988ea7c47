"""`bench retrieve`: how fast pairs are found among synthetic vectors, in how much memory, and what 200,000 candidates would take.

Measured in processes of their own, whose peak memory is read when they are done: the recipe's search and choice of pairs with all rows in
one block (time grows with the square of the rows) and in blocks of 64 (time grows with the rows), and the colour histograms of pictures.
Side by side, on fewer rows, in turns and on one thread: the search in tiles, the whole matrix of cosines in one piece, and faiss when it
is installed. Vectors are drawn around one centre per 16 rows, answers from four.

Left out: reading and decoding (the disk's and the image format's business) and encoders with weights: add what yours takes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.data_recipes.features import neighbours

PROJECTED_ROWS = 200_000
BLOCK_ROWS = 64
K, LOW = 32, 0.5
SEARCHES = ("tiles", "one_piece", "faiss")
Vectors = NDArray[np.float32]


def run(
    rows: int, dimensions: int, side_rows: int, progress: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Measure, and say what `PROJECTED_ROWS` rows would take. side_rows: rows of the comparison, whose full matrix must fit in memory."""
    found: dict[str, Any] = {
        "rows": rows,
        "dimensions": dimensions,
        "neighbours": K,
        "cpu_count": os.cpu_count(),
    }
    for name, block in (("one_block", rows), (f"blocks_of_{BLOCK_ROWS}", BLOCK_ROWS)):
        progress(f"{rows} rows, {name}")
        found[name] = _apart(_measure_recipe, rows, dimensions, block)
    progress("histograms")
    found["histograms"] = _apart(_measure_histograms, 200)
    progress(f"side by side, {side_rows} rows")
    found["side_by_side"] = _side_by_side(min(side_rows, rows), dimensions)
    scale = PROJECTED_ROWS / rows
    found["projection"] = {
        "rows": PROJECTED_ROWS,
        "one_block_s": found["one_block"]["seconds"] * scale**2,
        f"blocks_of_{BLOCK_ROWS}_s": found[f"blocks_of_{BLOCK_ROWS}"]["seconds"] * scale,
        "histograms_s": PROJECTED_ROWS / found["histograms"]["images_per_s"],
        "peak_mib": found["one_block"]["start_mib"]
        + scale * (found["one_block"]["peak_mib"] - found["one_block"]["start_mib"]),
    }
    return found


def synthetic(rows: int, dimensions: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Unit vectors [rows, dimensions] and one of four answers per row."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((-(-rows // 16), dimensions), dtype=np.float32)
    vectors: Vectors = rng.standard_normal((rows, dimensions), dtype=np.float32)
    vectors += 2 * centres[rng.integers(len(centres), size=rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, rng.integers(4, size=rows)


def _apart(measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """In a fresh process, with its peak memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_with_memory, measure, *arguments).result()


def _with_memory(measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    import torch  # noqa: F401  (so that what it takes counts as the start)

    start = peak_mib()
    return {**measure(*arguments), "start_mib": start, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process has held. (`ru_maxrss` would be that of the parent, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def _measure_recipe(rows: int, dimensions: int, block_rows: int) -> dict[str, float]:
    """Search and choice of the recipe itself."""
    from vlm_contextrl.data_recipes.pipeline import Engine
    from vlm_contextrl.data_recipes.retrieve.candidates import find_candidates
    from vlm_contextrl.data_recipes.retrieve.facts import Facts
    from vlm_contextrl.data_recipes.retrieve.pairing import choose
    from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig

    with TemporaryDirectory() as folder:
        features = Path(folder) / "features.npy"
        vectors, labels = synthetic(rows, dimensions)
        np.save(features, vectors)
        del vectors
        facts = [
            Facts(id=str(i), answer_type="exact", answer=str(label), pixels=str(i))
            for i, label in enumerate(labels)
        ]
        blocks = [np.arange(start, min(start + block_rows, rows)) for start in range(0, rows, block_rows)]
        config = RetrieveConfig(neighbours=K, low=LOW)
        started_s = time.perf_counter()
        candidates = find_candidates(features, blocks, labels, config, Path(folder) / "search", {}, Engine())
        choice = choose(
            candidates, facts, [row // block_rows for row in range(rows)], config.max_pairs_per_image
        )
        seconds = time.perf_counter() - started_s
    return {"seconds": seconds, "rows_per_s": rows / seconds, "pairs": len(choice.matches)}


def _measure_histograms(images: int) -> dict[str, float]:
    from PIL import Image

    from vlm_contextrl.data_recipes.features.encoders import HistogramEncoder

    noise = np.random.default_rng(0).integers(256, size=(448, 448, 3), dtype=np.uint8)
    pictures = [Image.fromarray(np.roll(noise, i, axis=1)) for i in range(images)]
    encoder, started_s = HistogramEncoder(), time.perf_counter()
    encoder.encode(pictures)
    seconds = time.perf_counter() - started_s
    return {"seconds": seconds, "images_per_s": images / seconds}


def _side_by_side(rows: int, dimensions: int) -> dict[str, Any]:
    """CPU seconds of three rounds, ratios to the whole matrix in one piece (below 1 is better), share of its neighbours that are found."""
    import torch

    from vlm_contextrl.bench.machine import in_turns, one_thread

    vectors, labels = synthetic(rows, dimensions)
    calls = {
        name: partial(search, name, vectors, labels)
        for name in SEARCHES
        if name != "faiss" or find_spec("faiss")
    }
    with one_thread():
        seconds = in_turns(calls, 3, torch.device("cpu"))
    expected = calls["one_piece"]()
    return {
        "rows": rows,
        "seconds": seconds,
        "of_one_piece": {
            name: median(a / b for a, b in zip(times, seconds["one_piece"], strict=True))
            for name, times in seconds.items()
        },
        "recall": {name: _shared(call(), expected) for name, call in calls.items()},
        "peak_mib": {name: _apart(_measure_search, name, rows, dimensions)["peak_mib"] for name in calls},
    }


def search(name: str, vectors: Vectors, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours [rows, K] by one of `SEARCHES`."""
    if name == "one_piece":
        return one_piece(vectors, labels)
    index: Any = "faiss" if name == "faiss" else "exact"
    return neighbours(vectors, vectors, K, LOW, device="cpu", exclude=(labels, labels), index=index)[0]


def one_piece(vectors: Vectors, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """What one writes first: all cosines, all masks, one `topk`."""
    import torch

    values, answers = torch.from_numpy(vectors), torch.from_numpy(labels)
    cosines = values @ values.T
    cosines[(answers[:, None] == answers[None]) | (cosines < LOW)] = -torch.inf
    best, at = cosines.topk(min(K, len(values)))
    return at.masked_fill_(best == -torch.inf, -1).numpy()


def _measure_search(name: str, rows: int, dimensions: int) -> dict[str, float]:
    return {"found": float((search(name, *synthetic(rows, dimensions)) >= 0).sum())}


def _shared(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Share of the expected neighbours that were found."""
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, expected, strict=True))
    return hits / max(1, int((expected >= 0).sum()))
