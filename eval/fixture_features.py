"""The columns of the twelve benchmarks as their datasets declare them, as far as readers and the harness's scorers use them."""

from __future__ import annotations

from typing import Any

from vlm_contextrl.eval.registry import Part

Columns = dict[str, Any]

_TEXTS = {
    "mathvista": "pid question image unit answer question_type answer_type query",
    "mathverse": "sample_index problem_index problem_version question answer question_type query_wo query_cot question_for_eval",
    "mathvision": "id question image answer solution subject",
    "mmmu_pro": "id options answer subject",
    "mmmu": "id question options explanation img_type answer topic_difficulty question_type subfield",
    "vstar": "text category label question_id",
    "mmstar": "question answer category l2_category",
    "blink": "idx sub_task question answer prompt explanation",
    "scienceqa": "question hint task grade subject topic category skill lecture solution",
    "phyx": "question answer image category subfield reasoning_type",
    "olympiadbench": "question context modality difficulty unit answer_type error question_type subfield subject language",
    "mme_realworld_lite": "index question answer category l2-category bytes",
}


def features(benchmark: str, part: Part) -> Any:
    """`datasets.Features` of one part."""
    from datasets import Features, Image, List, Value

    text, image, texts = Value("string"), Image(), List(Value("string"))
    numbered = {f"image_{i}": image for i in range(1, 8)}
    others: dict[str, Columns] = {
        "mathvista": {
            "decoded_image": image, "choices": texts, "precision": Value("float64"),
            "metadata": {
                **dict.fromkeys(("category", "context", "grade", "language", "source", "split", "task"), text),
                "img_height": Value("int64"), "img_width": Value("int64"), "skills": texts,
            },
        },
        "mathverse": {"image": image, "metadata": dict.fromkeys(("split", "source", "subject", "subfield"), text)},
        "mathvision": {"decoded_image": image, "options": texts, "level": Value("int64")},
        "mmmu_pro": {"image": image} if part.config == "vision" else {
            **numbered, **dict.fromkeys(("question", "explanation", "img_type", "topic_difficulty"), text),
        },
        "mmmu": numbered,
        "vstar": {"image": image},
        "mmstar": {
            "index": Value("int64"), "image": image,
            "meta_info": dict.fromkeys(("source", "split", "image_path"), text),
        },
        "blink": {**{f"image_{i}": image for i in range(1, 5)}, "choices": texts},
        "scienceqa": {"image": image, "choices": texts, "answer": Value("int8")},
        "phyx": {"index": Value("int64")},
        "olympiadbench": {
            "id": Value("int64"), "solution": texts, "final_answer": texts, "is_multiple_answer": Value("bool"),
            **{f"image_{i}": image for i in range(1, 10)},
        },
        "mme_realworld_lite": {"multi-choice options": texts},
    }  # fmt: skip
    return Features({**dict.fromkeys(_TEXTS[benchmark].split(), text), **others[benchmark]})
