"""The twelve benchmarks of the paper (arXiv 2606.17053, table 2), one entry each.

`harness` is the task file of lmms-eval 0.7.3 that a part includes, below `lmms_eval/tasks`; `dataset`, `config` and `split` are what it
loads from the hub, and the folder and names that a local data root has. `n` is the published size. `stock` is the metric that the
harness's own scorer reports and the value that means "all right"; None where that scorer asks a judge model. The questions themselves are
read in `questions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One task of the harness. Most benchmarks have one; BLINK has fourteen."""

    name: str
    harness: str
    dataset: str
    config: str | None
    split: str
    n: int


@dataclass(frozen=True)
class Stock:
    """A metric of the harness: its name, and its value when every answer is right."""

    metric: str
    full_marks: float = 1.0


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; its accuracy is the mean over parts, each part the mean over its samples."""

    name: str
    title: str
    paper_row: str
    licence: str
    parts: tuple[Part, ...]
    stock: Stock | None
    pooled: bool = True  # False: the mean of the parts' accuracies, as published

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)

    @property
    def split(self) -> str:
        return ", ".join(dict.fromkeys(part.split for part in self.parts))


def _one(harness: str, dataset: str, config: str | None, split: str, n: int) -> tuple[Part, ...]:
    return (Part(harness.partition("/")[2].removesuffix(".yaml"), harness, dataset, config, split, n),)


# Sizes of the validation splits, which sum to the published 1,901.
_BLINK = {
    "Art_Style": 117, "Counting": 120, "Forensic_Detection": 132, "Functional_Correspondence": 130, "IQ_Test": 150, "Jigsaw": 150,
    "Multi-view_Reasoning": 133, "Object_Localization": 122, "Relative_Depth": 124, "Relative_Reflectance": 134,
    "Semantic_Correspondence": 139, "Spatial_Relation": 143, "Visual_Correspondence": 172, "Visual_Similarity": 135,
}  # fmt: skip


def _blink() -> tuple[Part, ...]:
    parts = []
    for config, n in _BLINK.items():
        name = f"blink_{config.lower().replace('-', '_')}"
        parts.append(Part(name, f"blink/{name}.yaml", "BLINK-Benchmark/BLINK", config, "val", n))
    return tuple(parts)


def _mmmu_pro(kind: str, config: str) -> Part:
    return Part(f"mmmu_pro_{kind}", f"mmmu_pro/mmmu_pro_{kind}.yaml", "MMMU/MMMU_Pro", config, "test", 1730)


_TABLE = (
    Benchmark("mathvista", "MathVista", "MathVista", "CC-BY-SA-4.0", stock=None,
              parts=_one("mathvista/mathvista_testmini_cot.yaml", "AI4Math/MathVista", None, "testmini", 1000)),
    Benchmark("mathverse", "MathVerse", "MathVerse", "MIT", stock=None,
              parts=_one("mathverse/mathverse_testmini.yaml", "CaraJ/MathVerse-lmmseval", "testmini", "testmini", 3940)),
    Benchmark("mathvision", "MathVision", "MathVision", "MIT", stock=Stock("mathvision_standard_eval", 100),
              parts=_one("mathvision/mathvision_test.yaml", "MathLLMs/MathVision", None, "test", 3040)),
    Benchmark("mmmu_pro", "MMMU-Pro", "MMMU-Pro", "Apache-2.0", stock=Stock("mmmu_acc"), pooled=False,
              parts=(_mmmu_pro("standard", "standard (10 options)"), _mmmu_pro("vision", "vision"))),
    Benchmark("mmmu", "MMMU", "MMMU", "Apache-2.0", stock=Stock("mmmu_acc"),
              parts=_one("mmmu/mmmu_val.yaml", "lmms-lab-encoder/MMMU", None, "validation", 900)),
    Benchmark("vstar", "V*", "V*", "not stated (code: MIT)", stock=Stock("vstar_overall_acc", 100),
              parts=_one("vstar_bench/vstar_bench.yaml", "lmms-lab-encoder/vstar-bench", None, "test", 191)),
    Benchmark("mmstar", "MMStar", "MMStar", "not stated", stock=Stock("average"),
              parts=_one("mmstar/mmstar.yaml", "Lin-Chen/MMStar", None, "val", 1500)),
    Benchmark("blink", "BLINK", "BLINK", "Apache-2.0", stock=Stock("blink_acc"), parts=_blink()),
    Benchmark("scienceqa", "ScienceQA (images)", "ScienceQA", "CC-BY-NC-SA-4.0", stock=Stock("exact_match"),
              parts=_one("scienceqa/scienceqa_img.yaml", "lmms-lab-encoder/ScienceQA", "ScienceQA-IMG", "test", 2017)),
    Benchmark("phyx", "PhyX (mini, multiple choice)", "PhyX", "MIT", stock=None,
              parts=_one("phyx/phyx_mini_mc.yaml", "Cloudriver/PhyX", "data_for_llms_eval", "phyx_mini_mc", 1000)),
    Benchmark("olympiadbench", "OlympiadBench (physics)", "OlympiadBench phy", "Apache-2.0", stock=None,
              parts=_one("olympiadbench/olympiadbench_OE_MM_physics_en_COMP.yaml", "Hothan/OlympiadBench", "OE_MM_physics_en_COMP",
                         "train", 456)),
    Benchmark("mme_realworld_lite", "MME-RealWorld-Lite", "MME-RW-Lite", "Apache-2.0 (full set)", stock=Stock("mme_realworld_score"),
              parts=_one("mme_realworld/mme_realworld_lite.yaml", "yifanzhang114/MME-RealWorld-lite-lmms-eval", None, "train", 1919)),
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}
