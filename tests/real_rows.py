"""Folders of third-party rows (`rows.jsonl` beside images) in the form that importing takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def licence_of(folder: Path) -> str:
    licence: str = json.loads((folder / "SOURCE.json").read_text())["licence"]
    return licence


def with_png(source: Path, folder: Path, count: int | None = None) -> Path:
    """The rows (the first `count`) of a set whose images are slices of .npy files (`FILE#INDEX`), as PNG files beside rows.jsonl."""
    arrays: dict[str, Any] = {}
    (folder / "images").mkdir(parents=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as rows:
        for line in (source / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:count]:
            row = json.loads(line)
            file, _, index = row["images"][0].partition("#")
            pixels = arrays.setdefault(file, np.load(source / file))[int(index)]
            row["images"] = [f"images/{row['id']}.png"]
            Image.fromarray(pixels).save(folder / row["images"][0])
            rows.write(json.dumps(row) + "\n")
    return folder


def first_rows(source: Path, folder: Path, count: int) -> Path:
    """The first rows of a set, beside their images."""
    folder.mkdir()
    lines = (source / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for image in {image for line in lines for image in json.loads(line)["images"]}:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / image, folder / image)
    return folder
