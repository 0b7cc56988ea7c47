"""Small local data roots in the published schema of the selection sets, made by code: for tests and for a first try without a download.

Two pictures of a pair differ in the colour or the number of some circles. Columns are those that readers use; the files lie as
`fixtures.py` lays those of the benchmarks. Some rows of HallusionBench make no pair, as in the real set: edits that leave an answer as it
was, and a row that needs no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlm_contextrl.eval.fixture_scenes import COLOURS
from vlm_contextrl.eval.fixtures import fixture_file
from vlm_contextrl.eval.selection_sets import SELECTION_SETS, SelectionSet

Values = dict[str, Any]


@dataclass(frozen=True)
class Circles:
    """Some circles of one colour."""

    colour: str
    count: int
    size_px: int

    def picture(self) -> Image.Image:
        image = Image.new("RGB", (self.size_px, self.size_px), "white")
        cell_px = self.size_px // 3
        for i in range(self.count):
            left, top = 3 + cell_px * (i % 3), 3 + cell_px * (i // 3)
            box = (left, top, left + cell_px - 6, top + cell_px - 6)
            ImageDraw.Draw(image).ellipse(box, fill=self.colour, outline="black")
        return image


def write_selection_fixtures(out: Path, rows: int = 4) -> dict[str, int]:
    """Write every selection set with `rows` drawn scenes below `out`; gives, for each set, how many pairs it holds."""
    makers: dict[str, Callable[[int], list[Values]]] = {
        "naturalbench": _naturalbench, "vismin": _vismin, "hallusionbench": _hallusionbench, "mmvp": _mmvp,
    }  # fmt: skip
    for name, make in makers.items():
        values = [row for index in range(rows) for row in make(index)]
        _write(out, SELECTION_SETS[name], values)
    return {"naturalbench": 2 * rows, "vismin": rows, "hallusionbench": 2 * rows, "mmvp": rows}


def _scene(index: int) -> tuple[Circles, str]:
    """A scene and another colour."""
    scene = Circles(COLOURS[index % len(COLOURS)], 2 + index % 5, 84 + 28 * (index % 3))
    return scene, COLOURS[(index + 1) % len(COLOURS)]


def _naturalbench(index: int) -> list[Values]:
    scene, colour = _scene(index)
    other = replace(scene, colour=colour, count=scene.count + 1)
    if index % 2:
        questions = (
            f"Which colour do the circles have? Option: A: {scene.colour}; B: {other.colour};",
            f"How many circles are there? Option: A: {other.count}; B: {scene.count};",
        )
        first, second = "A", "B"
    else:
        questions = (f"Are the circles {scene.colour}?", f"Is the number of circles {other.count}?")
        first, second = "Yes", "No"
    return [{
        "Index": index, "Image_0": scene.picture(), "Image_1": other.picture(), "Question_0": questions[0], "Question_1": questions[1],
        "Image_0_Question_0": first, "Image_1_Question_0": second, "Image_0_Question_1": second, "Image_1_Question_1": first,
        "Question_Type": "multiple_choice" if index % 2 else "yes_no", "Source": "drawn",
    }]  # fmt: skip


def _vismin(index: int) -> list[Values]:
    scene, colour = _scene(index)
    other = replace(scene, count=scene.count + 1) if index % 2 else replace(scene, colour=colour)
    values: Values = {"id": f"drawn_{index}", "category": "counting" if index % 2 else "attribute"}
    for i, shown in enumerate((scene, other)):
        values |= {
            f"image_{i}": shown.picture(),
            f"text_{i}": f"There are {shown.count} {shown.colour} circles.",
        }
    return [values]


def _hallusionbench(index: int) -> list[Values]:
    scene, colour = _scene(index)
    figures = (scene, replace(scene, count=scene.count + 1), replace(scene, colour=colour))
    found: list[Values] = []
    for f, shown in enumerate(figures):
        truths = (
            (f"Is the number of circles {scene.count}?", shown.count == scene.count),
            (f"Are all circles {scene.colour}?", shown.colour == scene.colour),
        )
        for q, (question, truth) in enumerate(truths):
            found.append({
                "category": "VD", "subcategory": "figure", "visual_input": "1" if f == 0 else "2", "set_id": f"{index}",
                "figure_id": f"{f}", "sample_note": "circles", "question_id": f"{q}", "question": question,
                "gt_answer_details": f"There are {shown.count} {shown.colour} circles.", "gt_answer": f"{int(truth)}",
                "filename": f"./hallusion_bench/VD/figure/{index}_{f}.png", "image": shown.picture(),
            })  # fmt: skip
    if index == 0:
        found.append(found[0] | {"category": "VS", "question": "Do three circles and one circle make four?"})
    return found


def _mmvp(index: int) -> list[Values]:
    scene, colour = _scene(index)
    shown = (scene, replace(scene, colour=colour))
    options = f"(a) {shown[index % 2].colour} (b) {shown[1 - index % 2].colour}"
    letters = ("(a)", "(b)") if index % 2 == 0 else ("(b)", "(a)")
    return [
        {
            "Index": 2 * index + 1 + i, "Question": "Which colour do the circles have?", "Options": options,
            "Correct Answer": letter, "image": circles.picture(),
        }
        for i, (circles, letter) in enumerate(zip(shown, letters, strict=True))
    ]  # fmt: skip


def _write(out: Path, chosen: SelectionSet, rows: list[Values]) -> None:
    import pyarrow as pa
    from datasets import Features, Image, Value
    from pyarrow import parquet

    kinds = {
        name: Value("int32") if isinstance(value, int) else Value("string") for name, value in rows[0].items()
    }
    features = Features({**kinds, **dict.fromkeys(chosen.images, Image())})
    encoded = [features.encode_example(row) for row in rows]
    path = fixture_file(out, chosen.part)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(encoded, features.arrow_schema), path)
