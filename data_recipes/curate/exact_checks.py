"""Exact checks of edited pairs: did the edit change something, and not everything?

A pair of the recipe `edit`, `compose` or `render` is one picture and a changed copy of it. Two pictures that were found, not edited, may
differ in everything and in size, so only the least bounds hold for them (`ExactBounds.found_recipes`). Pairs of texts have no pixels.

The figures are those of `differences.py`, and each of them misses something: a share of pixels says nothing of where, a box is filled by
two stray pixels, SSIM is near 1 for the small edits that are wanted. Hence a bound for each, and a default only where it cannot harm.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from vlm_contextrl import __version__
from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.curate.differences import Difference, difference
from vlm_contextrl.pairs import ContrastivePair, EncodedImage


class ExactBounds(Record):
    """How much of the picture an edit may change. The defaults refuse only what is certainly no edit; tighten them for a recipe."""

    tolerance_levels: int = Field(
        16,
        ge=0,
        le=254,
        description="a pixel has changed when a channel differs by more than this many of 255 grey levels, there and on average over "
        "5 x 5 px; photographs saved again as JPEG of quality 75 stay under it",
    )
    changed_fraction_min: float = Field(
        0.0001,
        ge=0,
        le=1,
        description="least share of changed pixels: 10 x 10 px of a megapixel, 2 px of 112 x 112",
    )
    changed_fraction_max: float = Field(
        0.8,
        ge=0,
        le=1,
        description="largest share of changed pixels; an edit that leaves less than a fifth is another picture",
    )
    changed_box_min: float = Field(
        0.0, ge=0, le=1, description="least share of the picture that the box around the changed pixels takes"
    )
    changed_box_max: float = Field(
        1.0,
        ge=0,
        le=1,
        description="largest such share; 1 is no bound, for one stray pixel in each corner fills the box: set it for "
        "masked edits",
    )
    channel_difference_max: float = Field(
        255.0,
        ge=0,
        le=255,
        description="largest mean absolute difference of a channel in grey levels; 255 is no bound, for a large thing "
        "recoloured moves one channel by far more than noise against noise (85)",
    )
    ssim_min: float = Field(
        0.2,
        ge=-1,
        le=1,
        description="least structural similarity (differences.py); unrelated pictures are near 0",
    )
    ssim_max: float = Field(
        1.0,
        ge=-1,
        le=1,
        description="largest structural similarity; 1 is no bound, for a small edit is near it",
    )
    found_recipes: list[str] = Field(
        ["retrieve"],
        description="recipes whose pairs are two found pictures: of these bounds only the least ones hold for them",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ExactBounds:
        for name in ("changed_fraction", "changed_box", "ssim"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ValueError(f"{name}_min {low:g} is over {name}_max {high:g}")
        return self


def exact_checks(pair: ContrastivePair, bounds: ExactBounds) -> tuple[dict[str, Any], str]:
    """What was measured, for `verdicts["exact"]`, and why the pair is refused, "" when it is not. ({}, "") for texts.

    Pictures of two sizes differ in all of their pixels by definition. Raises DataError when an image cannot be decoded.
    """
    if not (isinstance(pair.context, EncodedImage) and isinstance(pair.confounder, EncodedImage)):
        return {}, ""
    context = pair.context.decode(f"{pair.id}, context")
    confounder = pair.confounder.decode(f"{pair.id}, confounder")
    judged_by = {"bounds": bounds.model_dump(exclude={"found_recipes"}), "version": __version__}
    is_found = pair.recipe in bounds.found_recipes
    if context.size != confounder.size:
        sizes = " and ".join(f"{image.width} x {image.height}" for image in (context, confounder))
        reason = f"changed_everything: {sizes} px, expected one size (or `{pair.recipe}` among found_recipes)"
        return {"same_size": False, "changed_fraction": 1.0, **judged_by}, "" if is_found else reason
    found = difference(context, confounder, bounds.tolerance_levels)
    return {"same_size": True, **found.as_json(), **judged_by}, _broken_bound(found, bounds, is_found)


def _broken_bound(found: Difference, bounds: ExactBounds, is_found: bool) -> str:
    fraction, box, similarity = found.changed_fraction, found.changed_box_share, found.ssim
    channel, levels = max(found.channel_difference), bounds.tolerance_levels
    pixels = f"{fraction:.3g} of the pixels differ by more than {levels} grey levels (the most by {found.largest_levels})"
    low, high = "expected at least", "expected at most"
    least = [
        (fraction < bounds.changed_fraction_min, f"{pixels}, {low} {bounds.changed_fraction_min:g}"),
        (
            box < bounds.changed_box_min,
            f"the box around changes is {box:.3g} of the picture, {low} {bounds.changed_box_min:g}",
        ),
        (similarity > bounds.ssim_max, f"SSIM is {similarity:.4g}, {high} {bounds.ssim_max:g}"),
    ]
    most = [
        (fraction > bounds.changed_fraction_max, f"{pixels}, {high} {bounds.changed_fraction_max:g}"),
        (
            box > bounds.changed_box_max,
            f"the box around changes is {box:.3g} of the picture, {high} {bounds.changed_box_max:g}",
        ),
        (
            channel > bounds.channel_difference_max,
            f"a channel differs by {channel:.3g} grey levels on average, {high} {bounds.channel_difference_max:g}",
        ),
        (similarity < bounds.ssim_min, f"SSIM is {similarity:.3g}, {low} {bounds.ssim_min:g}"),
    ]
    reasons = [f"unchanged: {text}" for broken, text in least if broken]
    reasons += [f"changed_everything: {text}" for broken, text in most if broken and not is_found]
    return reasons[0] if reasons else ""
