"""Small local data roots in the published schema of all twelve benchmarks, made by code: for tests and for a first try without a download.

The questions are about drawn shapes; pictures have different sizes. OUT/<hub id>/<config, else "data">/<split>-00000-of-00001.parquet.
What the harness's own scorers read is there too. Left out: the size, the difficulty and every word of the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_contextrl.eval.fixture_scenes import ASKED_COLOUR, ASKED_COUNT, ASKED_UNLIKE, Scene, labelled
from vlm_contextrl.eval.registry import BENCHMARKS, Part

Values = dict[str, Any]


def write_fixtures(out: Path, rows: int = 4) -> dict[str, int]:
    """Write every part with `rows` rows below `out`; gives, for each part's name, in how many of them "A" is the right answer."""
    from vlm_contextrl.eval.fixture_features import features

    firsts = {}
    for benchmark in BENCHMARKS.values():
        for number, part in enumerate(benchmark.parts):
            # Each part starts at another letter, so that parts differ.
            made = [MAKERS[benchmark.name](part, Scene(i, number + i)) for i in range(rows)]
            firsts[part.name] = sum(first for _, first in made)
            _write(fixture_file(out, part), [values for values, _ in made], features(benchmark.name, part))
    return firsts


def fixture_file(out: Path, part: Part) -> Path:
    """Where the rows of a part are below a data root."""
    return out / part.dataset / (part.config or "data") / f"{part.split}-00000-of-00001.parquet"


def _mathvista(part: Part, scene: Scene) -> tuple[Values, bool]:
    metadata = {
        "category": "general-vqa", "context": "synthetic scene", "grade": "elementary school",
        "img_height": scene.picture().height, "img_width": scene.picture().width, "language": "english",
        "skills": ["arithmetic reasoning"], "source": "drawn", "split": part.split, "task": "figure question answering",
    }  # fmt: skip
    kinds: list[Values] = [
        {"question": ASKED_COLOUR, "choices": scene.options(), "answer": scene.colour},
        {"question": ASKED_COUNT, "answer": str(scene.count), "answer_type": "integer"},
        {"question": "Are the shapes white?", "choices": ["Yes", "No"], "answer": "No"},
        {"question": "How many shapes are there per two?", "answer": str(scene.count / 2), "answer_type": "float", "precision": 1.0},
        {"question": "How many shapes are in each row, from the top?", "answer": f"[3, {scene.count - 3}]", "answer_type": "list"},
    ]  # fmt: skip
    kind = kinds[scene.index % len(kinds)]
    choice = "choices" in kind
    values = {
        "pid": str(scene.index + 1), "image": f"images/{scene.index + 1}.jpg", "decoded_image": scene.picture(),
        "choices": None, "unit": None, "precision": None, "answer_type": "text", "metadata": metadata,
        "question_type": "multi_choice" if choice else "free_form", "query": f"Question: {kind['question']}", **kind,
    }  # fmt: skip
    return values, choice and kind["answer"] == kind["choices"][0]


def _mathverse(part: Part, scene: Scene) -> tuple[Values, bool]:
    asked = "\n".join(
        [f"As shown in the figure: {ASKED_COLOUR}", "Choices:", *labelled(scene.options(), "{}:{}")]
    )
    kinds = [
        ("Text Dominant", asked, "multi-choice", scene.letter()),
        ("Text Lite", ASKED_COUNT, "free-form", str(scene.count)),
        ("Vision Only", "", "multi-choice", scene.letter()),
        ("Vision Intensive", "Give the root of twice the number of shapes.", "free-form", rf"\sqrt{{{2 * scene.count}}}"),
        ("Vision Dominant", asked, "multi-choice", scene.letter()),
    ]  # fmt: skip
    version, question, kind, answer = kinds[scene.index % len(kinds)]
    picture = scene.picture() if question else scene.picture_of_question(asked.splitlines())
    metadata = {
        "split": part.split,
        "source": "drawn",
        "subject": "Plane Geometry",
        "subfield": "Applied Problem",
    }
    values = {
        "sample_index": str(scene.index + 1), "problem_index": str(scene.index // len(kinds) + 1), "problem_version": version,
        "question": question, "image": picture, "answer": answer, "question_type": kind, "metadata": metadata,
        "query_wo": f"Question: {question}", "query_cot": f"Question: {question}", "question_for_eval": question or asked,
    }  # fmt: skip
    return values, answer == "A"


def _mathvision(part: Part, scene: Scene) -> tuple[Values, bool]:
    kinds: list[tuple[str, list[str], str]] = [
        (ASKED_COLOUR, scene.options(5), scene.letter(5)),
        (ASKED_COUNT, [], str(scene.count)),
        ("Which of the pictures shows the shapes?", list("ABCDE"), scene.letter(5)),
        ("At which point (x,y) are x and y the number of shapes?", [], f"({scene.count},{scene.count})"),
    ]
    question, options, answer = kinds[scene.index % len(kinds)]
    values = {
        "id": str(scene.index + 1), "question": f"{question}\n<image1>", "options": options, "answer": answer,
        "image": f"images/{scene.index + 1}.jpg", "decoded_image": scene.picture(), "solution": None, "level": 1,
        "subject": "counting",
    }  # fmt: skip
    return values, answer == "A"


def _numbered(scenes: list[Scene]) -> Values:
    return {f"image_{i + 1}": scenes[i].picture() if i < len(scenes) else None for i in range(7)}


def _mmmu(part: Part, scene: Scene) -> tuple[Values, bool]:
    count = scene.count
    kinds: list[tuple[str, list[str], str, int]] = [
        (f"<image 1> {ASKED_COLOUR}", scene.options(), scene.letter(), 1),
        (ASKED_UNLIKE, scene.options(), scene.letter(), 2),
        (f"<image 1> {ASKED_COUNT}", [], str(count), 1),
        ("<image 1> Which share of the shapes is one shape?", [], str([f"1/{count}", f"{1 / count:.4f}"]), 1),
    ]  # fmt: skip
    question, options, answer, n_images = kinds[scene.index % len(kinds)]
    values = {
        "id": f"validation_Math_{scene.index + 1}", "question": question, "options": str(options), "explanation": "",
        **_numbered([scene, scene.other][:n_images]), "img_type": "['Diagrams']", "answer": answer,
        "topic_difficulty": "Easy", "question_type": "multiple-choice" if options else "open", "subfield": "Geometry",
    }  # fmt: skip
    return values, answer == "A"


def _mmmu_pro(part: Part, scene: Scene) -> tuple[Values, bool]:
    count = 10 if scene.index % 2 else 4
    shared = {
        "id": f"test_Math_{scene.index + 1}", "options": str(scene.options(count)), "answer": scene.letter(count),
        "subject": "Math",
    }  # fmt: skip
    if part.config == "vision":
        lines = [ASKED_COLOUR, *labelled(scene.options(count), "{}. {}")]
        return {**shared, "image": scene.picture_of_question(lines)}, shared["answer"] == "A"
    both = scene.index % 2 == 1
    values = {
        **shared, "question": ASKED_UNLIKE if both else f"<image 1> {ASKED_COLOUR}", "explanation": "",
        **_numbered([scene, scene.other][: 1 + both]), "img_type": "['Diagrams']", "topic_difficulty": "Easy",
    }  # fmt: skip
    return values, shared["answer"] == "A"


def _vstar(part: Part, scene: Scene) -> tuple[Values, bool]:
    lines = [
        ASKED_COLOUR, *labelled(scene.options(), "({}) {}"),
        "Answer with the option's letter from the given choices directly.",
    ]  # fmt: skip
    values = {
        "image": scene.picture(), "text": "\n".join(lines), "category": ("direct_attributes", "relative_position")[scene.index % 2],
        "label": scene.letter(), "question_id": str(scene.index),
    }  # fmt: skip
    return values, scene.letter() == "A"


def _mmstar(part: Part, scene: Scene) -> tuple[Values, bool]:
    options = ", ".join(labelled([f"The shapes are {colour}." for colour in scene.options()], "{}: {}"))
    category, detail = (("coarse perception", "image scene and topic"), ("math", "geometry"))[scene.index % 2]
    values = {
        "index": scene.index, "question": f"Which option describes the image correctly?\nOptions: {options}",
        "image": scene.picture(), "answer": scene.letter(), "category": category, "l2_category": detail,
        "meta_info": {"source": "drawn", "split": part.split, "image_path": f"images/{scene.index}.jpg"},
    }  # fmt: skip
    return values, scene.letter() == "A"


def _blink(part: Part, scene: Scene) -> tuple[Values, bool]:
    config = str(part.config)
    count = 2 if config in ("Jigsaw", "Relative_Depth", "Spatial_Relation") else 4
    several = config in (
        "Jigsaw",
        "Visual_Correspondence",
        "Semantic_Correspondence",
        "Art_Style",
        "Visual_Similarity",
    )
    scenes = [scene, scene.other, scene.other.other] if several else [scene]
    asked = "Which colour do the shapes in the first image have?" if several else ASKED_COLOUR
    options = scene.options(count)
    lines = [asked, "Select from the following choices.", *labelled(options, "({}) {}")]
    values = {
        "idx": f"val_{config}_{scene.index + 1}", "sub_task": config, "question": asked, "choices": options,
        **{f"image_{i + 1}": scenes[i].picture() if i < len(scenes) else None for i in range(4)},
        "answer": f"({scene.letter(count)})", "prompt": "\n".join(lines), "explanation": "",
    }  # fmt: skip
    return values, scene.letter(count) == "A"


def _scienceqa(part: Part, scene: Scene) -> tuple[Values, bool]:
    values = {
        "image": scene.picture(), "question": ASKED_COLOUR, "choices": scene.options(), "answer": scene.turn % 4,
        "hint": "Look at the picture." if scene.index % 2 else "", "task": "closed choice", "grade": "grade2",
        "subject": ("natural science", "social science")[scene.index % 2], "topic": "physics", "category": "Colours",
        "skill": "Name a colour", "lecture": "", "solution": "",
    }  # fmt: skip
    return values, scene.letter() == "A"


def _phyx(part: Part, scene: Scene) -> tuple[Values, bool]:
    speeds = [f"{scene.count + i - scene.turn % 4} m/s" for i in range(4)]
    values = {
        "index": scene.index, "answer": scene.letter(), "image": scene.encoded(), "category": "Mechanics",
        "question": "Shapes move as many metres per second as there are shapes. How fast is this?Please directly answer the "
        "question and provide the correct OPTION LETTER ONLY, e.g., A, B, C, D. OPTION: " + " ".join(labelled(speeds, "{}: {}")),
        "subfield": "Kinematics", "reasoning_type": "Numerical Reasoning",
    }  # fmt: skip
    return values, scene.letter() == "A"


def _olympiadbench(part: Part, scene: Scene) -> tuple[Values, bool]:
    count = scene.count
    kinds: list[Values] = [
        {"question": "Give the speed. <image_1>", "final_answer": [f"${count}.5$"], "unit": "m/s", "error": "0.1",
         "answer_type": "Numerical"},
        {"question": "Give the energy. <image_1>", "final_answer": [r"$\frac{1}{2} m v^{2}$"], "answer_type": "Expression"},
        {"question": "Give both roots. <image_1> <image_2>", "final_answer": [f"${count}$, $-{count}$"], "is_multiple_answer": True,
         "answer_type": "Numerical"},
        {"question": "Give the charge. <image_1>", "final_answer": [rf"${count} \times 10^{{5}}$"],
         "unit": r"$\mathrm{C} / \mathrm{kg}$", "error": "1e4", "answer_type": "Numerical"},
    ]  # fmt: skip
    kind = kinds[scene.index % len(kinds)]
    scenes = [scene, scene.other][: 2 if "<image_2>" in kind["question"] else 1]
    values = {
        "id": scene.index + 1, "solution": [""], "context": "As many shapes move as the picture shows.",
        **{f"image_{i + 1}": scenes[i].picture() if i < len(scenes) else None for i in range(9)},
        "modality": "Multimodal", "difficulty": "Competition", "is_multiple_answer": False, "unit": None, "error": None,
        "question_type": "Open-ended", "subfield": "Mechanics", "subject": "Physics", "language": "English", **kind,
    }  # fmt: skip
    return values, False


def _mme_realworld(part: Part, scene: Scene) -> tuple[Values, bool]:
    options = [*scene.options(), "The image does not feature the colour"]
    values = {
        "index": str(scene.index), "question": ASKED_COLOUR, "multi-choice options": labelled(options, "({}) {}"),
        "answer": scene.letter(), "category": ("Perception/Remote Sensing", "Reasoning/Monitoring")[scene.index % 2],
        "l2-category": ("color", "calculate")[scene.index % 2], "bytes": scene.encoded(),
    }  # fmt: skip
    return values, scene.letter() == "A"


MAKERS: dict[str, Callable[[Part, Scene], tuple[Values, bool]]] = {
    "mathvista": _mathvista, "mathverse": _mathverse, "mathvision": _mathvision, "mmmu_pro": _mmmu_pro, "mmmu": _mmmu,
    "vstar": _vstar, "mmstar": _mmstar, "blink": _blink, "scienceqa": _scienceqa, "phyx": _phyx,
    "olympiadbench": _olympiadbench, "mme_realworld_lite": _mme_realworld,
}  # fmt: skip
"""Benchmark -> one row and whether the first option is right."""


def _write(path: Path, rows: list[Values], features: Any) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    shows_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    if shows_bars:
        datasets.enable_progress_bars()
