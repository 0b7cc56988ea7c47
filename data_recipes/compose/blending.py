"""Pixels of a scene: each cut-out scaled, coloured, fitted to the light around it and laid over the photograph with a soft edge.

    out = a' c' + (1 - a') background,    a' = G * a,    c' = (G * (a c)) / (G * a) where a < 1, else c

in 8-bit R'G'B' as stored; G a Gaussian of `feather_px`. Blurring a c and a together (premultiplied) keeps the colour that hides under
transparent pixels out of the edge. The light: the mean and the spread of the luminance (BT.601) and the mean tint move a part of
the way to those of the photograph around the object, within bounds, so that an object fits in and keeps its looks.

Both pictures of a pair are drawn by this one function. Left out: shadows, perspective, the photograph's grain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vlm_contextrl.data_recipes.compose.scenes import COLOURS, Scene, Thing

Array = np.ndarray[Any, Any]  # float32

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MAX_SHIFT = 45.0  # of luminance and colour differences, in 8-bit steps
SPREAD = (0.75, 1.25)  # bounds of the factor on the luminance's spread
CONTRAST = 28  # in 8-bit steps
PAD_PX = 4  # the soft edge reaches a little beyond the box


@dataclass(frozen=True)
class Blending:
    """feather_px: width of the soft edge (standard deviation); light: 0 leaves objects as they are, 1 moves them all the way (bounded)."""

    feather_px: float
    light: float


def draw(
    scene: Scene, photograph: Image.Image, cutouts: Mapping[int, Image.Image], blending: Blending
) -> Image.Image:
    """The RGB picture. photograph: at the scene's size; cutouts: RGBA by position in the catalogue."""
    canvas = np.asarray(photograph, dtype=np.float32).copy()
    background = canvas.copy()
    for thing in scene.things:
        _lay(canvas, background, thing, cutouts[thing.cutout], blending)
    return Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))


def visible(scene: Scene, picture: Image.Image, photograph: Image.Image) -> bool:
    """Whether half of each object differs from the photograph by `CONTRAST` plus half of the photograph's spread there."""
    drawn, plain = np.asarray(picture, dtype=np.float32), np.asarray(photograph, dtype=np.float32)
    for thing in scene.things:
        place = slice(thing.top, thing.bottom), slice(thing.left, thing.right)
        steps = np.abs(drawn[place] - plain[place]).max(axis=-1)
        needed = CONTRAST + 0.5 * float((plain[place] @ LUMINANCE).std())
        if (steps >= needed).sum() < 0.5 * thing.area:
            return False
    return True


def _lay(canvas: Array, background: Array, thing: Thing, cutout: Image.Image, blending: Blending) -> None:
    # Pillow resizes RGBA in premultiplied form.
    scaled = cutout.resize((thing.width, thing.height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    padded = Image.new("RGBA", (thing.width + 2 * PAD_PX, thing.height + 2 * PAD_PX))
    padded.paste(scaled, (PAD_PX, PAD_PX))
    colour, alpha = _feathered(padded, blending.feather_px)
    around = _around(background, thing)
    if thing.colour:
        colour = painted(colour, alpha, COLOURS[thing.colour])
    colour = lit(
        colour, alpha, around, blending.light * (0.5 if thing.colour else 1), keep_hue=bool(thing.colour)
    )
    top, left = thing.top - PAD_PX, thing.left - PAD_PX
    bottom, right = top + padded.height, left + padded.width
    inside = (
        slice(max(0, -top), padded.height - max(0, bottom - len(canvas))),
        slice(max(0, -left), padded.width - max(0, right - canvas.shape[1])),
    )
    place = canvas[max(0, top) : bottom, max(0, left) : right]
    place += alpha[inside] * (colour[inside] - place)


def _feathered(rgba: Image.Image, feather_px: float) -> tuple[Array, Array]:
    """Colour [h, w, 3] in 0..255 and alpha [h, w, 1] in 0..1."""
    sharp = np.asarray(rgba, dtype=np.float32)
    soft = np.asarray(rgba.convert("RGBa").filter(ImageFilter.GaussianBlur(feather_px)), dtype=np.float32)
    alpha = soft[..., 3:]
    colour = np.where(sharp[..., 3:] == 255, sharp[..., :3], soft[..., :3] * 255 / np.maximum(alpha, 1))
    return colour.clip(0, 255), alpha / 255


def _around(background: Array, thing: Thing) -> Array:
    """The photograph under the object and half its size around it, as a list of pixels [n, 3]."""
    reach_x, reach_y = thing.width // 2, thing.height // 2
    rows = slice(max(0, thing.top - reach_y), thing.bottom + reach_y)
    columns = slice(max(0, thing.left - reach_x), thing.right + reach_x)
    return background[rows, columns].reshape(-1, 3)


def painted(colour: Array, alpha: Array, paint: tuple[int, int, int]) -> Array:
    """The object in shades of one colour: of its luminance, the 70th percentile becomes the paint, what is darker a shade, what is lighter
    a tint of it."""
    luminance = colour @ LUMINANCE / 255
    anchor = float(np.quantile(luminance[alpha[..., 0] > 0.5], 0.7)) if (alpha > 0.5).any() else 0.5
    anchor = float(np.clip(anchor, 0.02, 0.98))
    shade = (luminance / anchor).clip(0.35, 1)[..., None]
    tint = 0.4 * ((luminance - anchor) / (1 - anchor)).clip(0, 1)[..., None]
    coloured: Array = np.array(paint, dtype=np.float32) * shade * (1 - tint) + 255 * tint
    return coloured


def lit(colour: Array, alpha: Array, around: Array, strength: float, *, keep_hue: bool) -> Array:
    """The object in the light of the pixels `around`; keep_hue: luminance only."""
    weights = alpha[..., 0]
    luminance = colour @ LUMINANCE
    mean = float(np.average(luminance, weights=weights))
    spread = float(np.sqrt(np.average((luminance - mean) ** 2, weights=weights)))
    there = around @ LUMINANCE
    there_mean, there_spread = float(there.mean()), float(there.std())
    factor = float(np.clip(((there_spread + 1) / (spread + 1)) ** strength, *SPREAD))
    target = mean + _bounded(strength * (there_mean - mean)) + factor * (luminance - mean)
    chroma = colour - luminance[..., None]
    if not keep_hue:
        there_chroma = around.mean(axis=0) - there_mean
        own_chroma = np.average(chroma.reshape(-1, 3), axis=0, weights=weights.reshape(-1))
        shift = (0.5 * strength * (there_chroma - own_chroma)).clip(-MAX_SHIFT / 2, MAX_SHIFT / 2)
        chroma = chroma + shift.astype(np.float32)
    return (target[..., None] + chroma).clip(0, 255).astype(np.float32)


def _bounded(shift: float) -> float:
    return float(np.clip(shift, -MAX_SHIFT, MAX_SHIFT))
