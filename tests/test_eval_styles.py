"""The fixtures of all twelve benchmarks, answered by models that know, in every style that models are seen to answer in.

Who is right when, by hand for four rows of each part: the letters of a part's choices follow A, B, C, D around, starting one letter later
in each next part of a benchmark; so a part of four choices among four has "A" once, and a subtask of BLINK with two options twice.
MathVista's choices are A and "No" (B), MathVerse's A and C, MathVision's A and C, MMMU's A and B; OlympiadBench has none.
"""

from __future__ import annotations

import importlib
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.eval.fixtures import fixture_file, write_fixtures
from vlm_contextrl.eval.questions import Question, judge_by_rules
from vlm_contextrl.eval.readers import read_question
from vlm_contextrl.eval.registry import BENCHMARKS, Part
from vlm_contextrl.eval.stand_ins import BEHAVIOURS, STYLES, reply

datasets = pytest.importorskip("datasets")

N_ROWS = 4
TWO_OPTIONS = ("blink_jigsaw", "blink_relative_depth", "blink_spatial_relation")
N_FIRST = {
    part.name: 2 if part.name in TWO_OPTIONS else 0 if benchmark.name == "olympiadbench" else 1
    for benchmark in BENCHMARKS.values()
    for part in benchmark.parts
}
PARTS = [(benchmark.name, part) for benchmark in BENCHMARKS.values() for part in benchmark.parts]


@pytest.fixture(scope="session")
def fixture_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    root = tmp_path_factory.mktemp("benchmarks")
    return root, write_fixtures(root, N_ROWS)


def load(root: Path, part: Part) -> Any:
    data = datasets.Dataset.from_parquet(str(fixture_file(root, part)), cache_dir=str(root / "cache"))
    assert len(data) == N_ROWS
    return data


@pytest.fixture(scope="session")
def questions(fixture_root: tuple[Path, dict[str, int]]) -> dict[str, list[Question]]:
    root, _ = fixture_root
    return {part.name: [read_question(name, part, row) for row in load(root, part)] for name, part in PARTS}


def share_right(asked: list[Question], behaviour: str, style: str) -> float:
    verdicts = [judge_by_rules(question, reply(question, behaviour, style)).correct for question in asked]
    return sum(verdicts) / len(verdicts)


# ---- the table: styles x benchmarks x behaviours


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_styles(benchmark: str, style: str, questions: dict[str, list[Question]]) -> None:
    for part in BENCHMARKS[benchmark].parts:
        asked = questions[part.name]
        found = [share_right(asked, behaviour, style) for behaviour in BEHAVIOURS]
        assert found == [1.0, 0.0, N_FIRST[part.name] / N_ROWS], part.name


def test_styles_are_the_ones_that_models_use() -> None:
    """The last line of each, for B among red, green."""
    question = Question("1", "Which?", (), "B", "choice", ("red", "green"))
    last_lines = {style: reply(question, "oracle", style).splitlines()[-1] for style in STYLES}
    assert last_lines == {
        "letter": "B",
        "bracketed": "(B)",
        "option": "B. green",
        "sentence": "The answer is B.",
        "label": "Answer: B",
        "boxed": r"\boxed{B}",
        "thought_boxed": r"So the final answer is \boxed{B}.",
        "answer_tag": "Option A looks close at first, yet B is closer; I check A.</think><answer>B</answer>",
        "thought_sentence": "Therefore, the correct option is B.",
    }
    open_question = Question("1", "How many?", (), "5", "numeric")
    assert {reply(open_question, "oracle", style) for style in ("letter", "bracketed", "option")} == {"5"}
    with pytest.raises(KeyError):
        reply(question, "oracle", "sung")
    with pytest.raises(KeyError):
        reply(question, "sleepy", "letter")


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        (Question("1", "", (), "C", "choice", ("9", "12", "18", "18"), alternatives=("D",)), "A"),
        (Question("1", "", (), "J", "choice", tuple("0123456789")), "A"),
        (Question("1", "", (), "D", "choice"), "A"),
        (Question("1", "", (), "-1", "numeric"), "1"),
        (Question("1", "", (), "0", "numeric"), "1"),
        (Question("1", "", (), "5 m/s", "numeric"), "11"),
        (Question("1", "", (), "3, 4", "numeric", several=("3", "4")), "0.123456789"),
        (Question("1", "", (), r"\sqrt{2}", "math"), "0.123456789"),
        (Question("1", "", (), "yes", "boolean"), "no"),
        (Question("1", "", (), "a cat", "exact"), "none of these"),
    ],
)
def test_wrong_is_wrong(question: Question, wrong: str) -> None:
    """-1 becomes -1 + 1 + 1 = 1; 5 becomes 5 + 5 + 1 = 11."""
    assert reply(question, "wrong", "letter") == wrong
    for style in STYLES:
        assert not judge_by_rules(question, reply(question, "wrong", style)).correct
        assert judge_by_rules(question, reply(question, "oracle", style)).correct


# ---- the fixtures


def test_fixtures_tell_how_often_the_first_option_is_right(fixture_root: tuple[Path, dict[str, int]]) -> None:
    assert fixture_root[1] == N_FIRST


def test_fixtures_lie_by_hub_id_config_and_split(fixture_root: tuple[Path, dict[str, int]]) -> None:
    root, _ = fixture_root
    files = {str(file.relative_to(root)) for file in root.rglob("*.parquet") if "cache" not in file.parts}
    assert len(files) == len(PARTS) == 26
    assert {
        "MMMU/MMMU_Pro/standard (10 options)/test-00000-of-00001.parquet",
        "BLINK-Benchmark/BLINK/Multi-view_Reasoning/val-00000-of-00001.parquet",
        "Lin-Chen/MMStar/data/val-00000-of-00001.parquet",
        "Cloudriver/PhyX/data_for_llms_eval/phyx_mini_mc-00000-of-00001.parquet",
    } <= files


def test_fixtures_have_the_published_columns(fixture_root: tuple[Path, dict[str, int]]) -> None:
    root, _ = fixture_root
    columns = {part.name: load(root, part).features for _, part in PARTS}
    image, text = datasets.Image(), datasets.Value("string")
    assert columns["blink_jigsaw"]["image_4"] == image
    assert columns["mathvista_testmini_cot"]["decoded_image"] == image
    assert columns["phyx_mini_mc"]["image"] == columns["mme_realworld_lite"]["bytes"] == text
    assert columns["mmmu_val"]["options"] == text
    assert columns["scienceqa_img"]["answer"].dtype == "int8"
    assert "question" not in columns["mmmu_pro_vision"]


def test_fixtures_have_every_kind_of_question(questions: dict[str, list[Question]]) -> None:
    asked = [question for some in questions.values() for question in some]
    assert {question.answer_type for question in asked} == {"choice", "numeric", "math"}
    assert {len(question.images) for question in asked} == {1, 2, 3}
    assert len({image.size for question in asked for image in question.images}) > 5
    assert any(question.unit for question in asked)
    assert any(question.several for question in asked)
    assert any(question.alternatives for question in asked)
    for some in questions.values():
        assert len({question.id for question in some}) == N_ROWS
        assert all(question.text and question.category for question in some)


def test_more_rows_turn_the_letters_further(tmp_path: Path) -> None:
    """Eight rows of MMStar start at A twice. Row 5 of MathVista is a list."""
    assert write_fixtures(tmp_path, 8)["mmstar"] == 2
    part = BENCHMARKS["mathvista"].parts[0]
    data = datasets.Dataset.from_parquet(str(fixture_file(tmp_path, part)), cache_dir=str(tmp_path / "cache"))
    question = read_question("mathvista", part, data[4])
    assert (question.answer, question.answer_type) == ("[3, 3]", "exact")
    assert all(judge_by_rules(question, reply(question, "oracle", style)).correct for style in STYLES)


# ---- parity with the harness

MODULES = {
    **{
        name: name
        for name in (
            "mathvista",
            "mathverse",
            "mathvision",
            "mmmu_pro",
            "mmmu",
            "mmstar",
            "blink",
            "scienceqa",
            "phyx",
        )
    },
    "vstar": "vstar_bench",
    "mme_realworld_lite": "mme_realworld",
}
PREFIX = {"vstar": "vstar", "mme_realworld_lite": "mme_realworld", "scienceqa": "sqa"}


@pytest.fixture(scope="module")
def harness() -> dict[str, Any]:
    """The task modules of lmms-eval, by benchmark."""
    pytest.importorskip("lmms_eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")
        patch.setenv("Deepseek_API", "none")
        alias = types.ModuleType("latex2sympy2")
        alias.latex2sympy = importlib.import_module("latex2sympy2_extended").latex2sympy  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "latex2sympy2", alias)
        modules = {
            name: importlib.import_module(f"lmms_eval.tasks.{module}.utils")
            for name, module in MODULES.items()
        }
        modules["olympiadbench"] = importlib.import_module("lmms_eval.tasks.olympiadbench.testmini_utils")
    return modules


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_images_are_those_of_the_harness(
    benchmark: str,
    part: Part,
    harness: dict[str, Any],
    fixture_root: tuple[Path, dict[str, int]],
    questions: dict[str, list[Question]],
) -> None:
    to_visual = getattr(harness[benchmark], f"{PREFIX.get(benchmark, benchmark)}_doc_to_visual")
    for row, question in zip(load(fixture_root[0], part), questions[part.name], strict=True):
        theirs: list[Image.Image] = to_visual(row)
        assert [image.tobytes() for image in question.images] == [image.tobytes() for image in theirs]


def stock_right(benchmark: str, module: Any, row: dict[str, Any], completion: str) -> bool:
    """What the harness's scorer of one row says, where it asks no judge."""
    random.seed(0)
    if benchmark == "mathvista":
        evaluator = module.mathvista_evaluator
        precision = None if row["precision"] is None else int(row["precision"])
        kinds = (row["question_type"], row["answer_type"], precision)
        return bool(
            evaluator.safe_equal(
                evaluator.normalize_extracted_answer(completion, row["choices"], *kinds), row["answer"]
            )
        )
    if benchmark == "phyx":
        return bool(
            module.phyx_evaluator.PhyX_process_line_MC({**row, "prediction": f"The answer is {completion}."})[
                "match"
            ]
        )
    if benchmark == "olympiadbench":  # its task asks a judge; this is the rule-based scorer beside it
        scorer = importlib.import_module("lmms_eval.tasks.olympiadbench.olympiadbench_evals")
        try:
            judge = scorer.OlympiadBenchEvaluator()
        except ImportError as error:
            pytest.skip(f"sympy reads LaTeX with another ANTLR only: {error}")
        return bool(judge.judge(completion, row["final_answer"][0], float(row["error"] or 1e-8)))
    score = getattr(module, f"{PREFIX.get(benchmark, benchmark)}_process_results")(row, [completion])
    metric = BENCHMARKS[benchmark].stock.metric  # type: ignore[union-attr]
    found = score[metric]
    if benchmark in ("mmmu", "mmmu_pro"):
        return bool(module.evaluate_mmmu([found])[1]["acc"])
    keys = {"vstar": "score", "mmstar": "score", "blink": "is_correct"}
    if benchmark in keys:
        return bool(found[keys[benchmark]])
    if benchmark == "mathvision":
        return bool(found["scores"][0])
    return found["pred_answer"] == found["answer"] if benchmark == "mme_realworld_lite" else bool(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "part"),
    [pair for pair in PARTS if pair[0] != "mathverse"],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_harness_agrees_on_bare_answers(
    benchmark: str,
    part: Part,
    harness: dict[str, Any],
    fixture_root: tuple[Path, dict[str, int]],
    questions: dict[str, list[Question]],
) -> None:
    """Every scorer without a judge, on the bare right and wrong answer. MathVerse has none. In the published MMMU, alternatives are a text
    that looks like a list, which that scorer compares as it stands and so never finds."""
    for row, question in zip(load(fixture_root[0], part), questions[part.name], strict=True):
        module = harness[benchmark]
        unreachable = benchmark == "mmmu" and bool(question.alternatives)
        assert stock_right(benchmark, module, row, reply(question, "oracle", "letter")) != unreachable
        assert not stock_right(benchmark, module, row, reply(question, "wrong", "letter"))
