"""Small datasets of pairs for the tests of the app."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import write_rows

COLOURS = ("red", "green", "blue", "black")
SIZE_PX = 20


def square(colour: str, size_px: int = SIZE_PX) -> Image.Image:
    """A white picture whose left upper quarter has a colour."""
    image = Image.new("RGB", (size_px, size_px), "white")
    image.paste(colour, (0, 0, size_px // 2, size_px // 2))
    return image


def colour_pair(number: int, **changes: Any) -> ContrastivePair:
    """Pair `n0`, `n1`, ...: the colour of a square. Domains alternate; similarity is number / 10; a quarter of the pixels differs."""
    first, second = COLOURS[number % 4], COLOURS[(number + 1) % 4]
    fields: dict[str, Any] = {
        "id": f"n{number}",
        "query": "Which colour has the square?",
        "answer": first,
        "confounder_answer": second,
        "context": EncodedImage.from_image(square(first)),
        "confounder": EncodedImage.from_image(square(second)),
        "domain": ("shapes", "charts")[number % 2],
        "recipe": "drawn",
        "provenance": {"licence": "CC0-1.0", "similarity": number / 10},
    }
    return ContrastivePair(**(fields | changes))


def write_pairs(folder: Path, pairs: Iterable[ContrastivePair]) -> Path:
    """A dataset folder of these pairs."""
    write_rows(pairs, folder, recipe="drawn", config={})
    return folder


def break_picture(folder: Path, pair_id: str) -> None:
    """Rewrite a dataset folder so that the context of one pair is no picture any more; its manifest still holds the old hash."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (file,) = folder.glob("data-*.parquet")
    table = pq.read_table(file)
    records = table.to_pylist()
    for record in records:
        if record["id"] == pair_id:
            record["context"] = {"bytes": b"no picture", "path": None}
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), file)
