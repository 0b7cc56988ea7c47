"""Nearest neighbours by faiss (extra `search`): exact up to 20,000 vectors, above that only the cells nearest to a query are looked at
(an inverted file, IVF, about 97 % of the true neighbours).

faiss knows neither window nor labels, so it is asked for more neighbours until enough remain, or the rest lies below the window.
"""

from __future__ import annotations

from importlib import import_module
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.errors import MissingExtraError

EXACT_UP_TO = 20_000


def faiss_neighbours(
    queries_ND: NDArray[np.float32],
    base_MD: NDArray[np.float32],
    k: int,
    low: float,
    high: float,
    exclude: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    chunk: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `neighbours`."""
    index = _index(np.ascontiguousarray(base_MD))
    indices_NK = np.full((len(queries_ND), k), -1)
    cosines_NK = np.full((len(queries_ND), k), -np.inf, np.float32)
    for start in range(0, len(queries_ND), chunk):
        pending = np.arange(start, min(start + chunk, len(queries_ND)))
        ask = min(len(base_MD), 4 * k)
        while len(pending):
            cosines, found = index.search(np.ascontiguousarray(queries_ND[pending]), ask)
            valid = (found >= 0) & (cosines >= low) & (cosines <= high)
            if exclude:
                valid &= exclude[0][pending, None] != exclude[1][found]
            exhausted = (found[:, -1] < 0) | (cosines[:, -1] < low) | (ask == len(base_MD))
            done = exhausted | (valid.sum(1) >= k)
            for query, row in zip(pending[done], np.flatnonzero(done), strict=True):
                at = np.flatnonzero(valid[row])[:k]
                indices_NK[query, : len(at)], cosines_NK[query, : len(at)] = found[row, at], cosines[row, at]
            pending, ask = pending[~done], min(len(base_MD), 4 * ask)
    return indices_NK, np.minimum(cosines_NK, np.float32(1))


def load_faiss() -> Any:
    """The package; MissingExtraError when it is not installed."""
    try:
        return import_module("faiss")
    except ImportError as error:
        raise MissingExtraError(
            "index=faiss needs faiss, which is not installed: pip install 'vlm-contextrl[search]', or set index=exact"
        ) from error


def _index(base_MD: NDArray[np.float32]) -> Any:
    faiss = load_faiss()
    M, D = base_MD.shape
    index = faiss.IndexFlatIP(D)
    if M > EXACT_UP_TO:
        cells = 4 * isqrt(M)
        index = faiss.IndexIVFFlat(index, D, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, cells // 32)
        index.train(base_MD[:: max(1, M // (64 * cells))])
    index.add(base_MD)
    return index
