"""Exact nearest neighbours among unit vectors, in bounded memory.

Cosines are made tile by tile (`chunk` queries times 8 * `chunk` vectors of the base) and only the k best of each query are kept: memory
grows with N * k, never with N * M. On a GPU when there is one. `index="faiss"` asks faiss instead (faiss_search.py), approximately for a
large base.

Shapes: N queries, M vectors of the base, D values of a vector, K neighbours; q and m: those of one tile.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.data_recipes.features.settings import chosen_device

ROUNDING = 1e-6  # of a cosine in float32; bounds are that much wider
Labels = NDArray[np.int64]


def neighbours(
    queries_ND: NDArray[np.float32],
    base_MD: NDArray[np.float32],
    k: int,
    low: float = -1.0,
    high: float = 1.0,
    *,
    chunk: int = 2048,
    device: str = "auto",
    exclude: tuple[Labels, Labels] | None = None,
    index: Literal["exact", "faiss"] = "exact",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(indices [N, K] into the base, cosines [N, K]): the k nearest with a cosine in [low, high], best first; -1 and -inf where there
    are fewer.

    Vectors must be unit vectors. exclude: labels of the queries [N] and of the base [M]; equal labels are no neighbours (row numbers
    keep a vector from being its own). Raises MissingExtraError when faiss is asked for and not installed.
    """
    k = min(k, len(base_MD))
    if not k or not len(queries_ND):
        return np.full((len(queries_ND), k), -1), np.full((len(queries_ND), k), -np.inf, np.float32)
    if index == "faiss":
        from vlm_contextrl.data_recipes.features.faiss_search import faiss_neighbours

        return faiss_neighbours(queries_ND, base_MD, k, low - ROUNDING, high + ROUNDING, exclude, chunk)
    import torch

    with torch.inference_mode():
        target = torch.device(chosen_device(device))
        found = [
            _best(queries_ND, base_MD, start, k, (low, high), chunk, target, exclude)
            for start in range(0, len(queries_ND), chunk)
        ]
    return best_first(np.concatenate([i for i, _ in found]), np.concatenate([c for _, c in found]))


def _best(
    queries_ND: Any,
    base_MD: Any,
    start: int,
    k: int,
    window: tuple[float, float],
    chunk: int,
    device: Any,
    exclude: Any,
) -> tuple[Any, Any]:
    """The k best of one chunk of queries, in no promised order among equals."""
    import torch

    def on_device(values: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    low, high = window
    queries_qD = on_device(queries_ND[start : start + chunk])
    labels_q1 = on_device(exclude[0][start : start + chunk])[:, None] if exclude else None
    cosines_qk = torch.full((len(queries_qD), k), -torch.inf, device=device)
    indices_qk = torch.full((len(queries_qD), k), -1, device=device)
    for first in range(0, len(base_MD), 8 * chunk):
        cosines_qm = queries_qD @ on_device(base_MD[first : first + 8 * chunk]).T
        if low > -1:
            cosines_qm.masked_fill_(cosines_qm < low - ROUNDING, -torch.inf)
        if high < 1:
            cosines_qm.masked_fill_(cosines_qm > high + ROUNDING, -torch.inf)
        if labels_q1 is not None:
            labels_1m = on_device(exclude[1][first : first + 8 * chunk])[None]
            cosines_qm.masked_fill_(labels_q1 == labels_1m, -torch.inf)
        best, at = cosines_qm.topk(min(k, cosines_qm.shape[1]))
        cosines_qk, kept = torch.cat([cosines_qk, best], 1).topk(k)
        indices_qk = torch.cat([indices_qk, at + first], 1).gather(1, kept)
    indices_qk[cosines_qk == -torch.inf] = -1
    return indices_qk.cpu().numpy(), cosines_qk.cpu().numpy()


def best_first(
    indices_NK: NDArray[np.int64], cosines_NK: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sorted by falling cosine, then by index; cosines of float32 clipped to at most 1."""
    order = np.lexsort((indices_NK, -cosines_NK), axis=1)
    cosines_NK = np.take_along_axis(cosines_NK, order, 1)
    return np.take_along_axis(indices_NK, order, 1), np.minimum(cosines_NK, np.float32(1))
