"""Sources for `pairs compose` that are drawn here: cut-outs of plain shapes, and noisy gradients for photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_contextrl.data_recipes.compose import ComposeConfig

SHAPES = {
    "toys/ball.png": "ellipse",
    "toys/ball_2.png": "ellipse",
    "boxes/crate.png": "rectangle",
    "signs/arrow.png": "triangle",
    "tools/hammer.png": "cross",
    "sky/star_01_mirror.png": "star",
}
COLOURS = ("#ff5040", "#ffa030", "#e8c898", "#60b0ff", "#f4f4ff", "#fff050")


def draw_cutouts(folder: Path, side_px: int = 96) -> Path:
    """Six bright shapes of five labels, each label in a subfolder of its own, with a transparent margin."""
    for (name, shape), colour in zip(SHAPES.items(), COLOURS, strict=True):
        image = Image.new("RGBA", (side_px, side_px))
        pen, far = ImageDraw.Draw(image), side_px - 9
        middle = side_px // 2
        if shape == "ellipse":
            pen.ellipse((8, 8, far, far), fill=colour)
        elif shape == "rectangle":
            pen.rectangle((8, 20, far, far - 12), fill=colour)
        elif shape == "triangle":
            pen.polygon([(middle, 8), (far, far), (8, far)], fill=colour)
        elif shape == "cross":
            pen.rectangle((8, 36, far, 60), fill=colour)
            pen.rectangle((36, 8, 60, far), fill=colour)
        else:
            pen.polygon(
                [(middle, 8), (64, 56), (far, middle), (56, 64), (middle, far), (32, 56)], fill=colour
            )
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def draw_photographs(folder: Path, count: int = 3, size_px: tuple[int, int] = (192, 144)) -> Path:
    """Dark gradients with grain, as PNG; the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size_px
    for index in range(count):
        rng = np.random.default_rng(index)
        start, end = rng.uniform(10, 90, (2, 3))
        ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
        picture = start + (end - start) * ramp + rng.normal(0, 5, (height, width, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"view{index}.png")
    return folder


def config_of(folder: Path, **settings: Any) -> ComposeConfig:
    """Small pictures from `folder`/photographs and `folder`/cutouts."""
    chosen = {
        "photographs": folder / "photographs",
        "cutouts": folder / "cutouts",
        "count": 40,
        "size_px": 128,
        "photograph_licence": "CC0-1.0",
        "cutout_licence": "CC-BY-4.0",
        "control_pairs": 0,
        **settings,
    }
    return ComposeConfig.model_validate(chosen)
