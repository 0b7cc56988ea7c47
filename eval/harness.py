"""lmms-eval (0.7.3): its tasks with our prompts, one token budget and our answers on disk; its own scorer as a second column.

A task is the harness's own file with these keys replaced: where the rows come from (`data_roots.py`), what is shown (the prompt that
training shows, `vqa_messages`), how long an answer may be, and `until`, which would cut a chain of thought at a blank line. Its
`process_results` stays where it needs no judge model. Scoring that counts is ours (`runs.py`).
"""

from __future__ import annotations

import os
import random
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageFile

from vlm_contextrl.errors import DataError, MissingExtraError, first_line
from vlm_contextrl.eval.data_roots import source
from vlm_contextrl.eval.journal import Journal
from vlm_contextrl.eval.questions import Question
from vlm_contextrl.eval.readers import read_question
from vlm_contextrl.eval.registry import Benchmark, Part, Stock
from vlm_contextrl.eval.scoring import question_record
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.prompts import vqa_messages

VERSION = "0.7.3"
HOW_TO_INSTALL = f"pip install 'vlm-contextrl[eval]' && pip install --no-deps lmms-eval=={VERSION}"
PICTURE_PX = 256


class StockScorerError(Exception):
    """The harness's own scorer failed on a completion; our scores do not depend on it."""


def prepare_imports(*, offline: bool) -> None:
    """What lmms-eval needs before its first import, in a process of its own. Raises MissingExtraError without it."""
    # Some tasks build a client when they are imported; no scorer that asks one is called.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    os.environ.setdefault("Deepseek_API", "none")
    os.environ["LOGURU_LEVEL"] = os.environ.get("LOGURU_LEVEL", "WARNING")
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    accepts_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import lmms_eval.api.task  # noqa: F401
        from latex2sympy2_extended import latex2sympy
    except ImportError as error:
        raise MissingExtraError(f"eval needs lmms-eval ({first_line(error)}): {HOW_TO_INSTALL}") from error
    # Its import makes Pillow show half a picture without a word, in the whole process.
    ImageFile.LOAD_TRUNCATED_IMAGES = accepts_truncated
    # MathVision's scorer asks for the unmaintained package of that name, which pins an ANTLR that math-verify cannot use.
    alias = types.ModuleType("latex2sympy2")
    alias.latex2sympy = latex2sympy  # type: ignore[attr-defined]
    sys.modules.setdefault("latex2sympy2", alias)


def build_task(benchmark: Benchmark, part: Part, settings: EvalSettings) -> Any:
    """One part as a task of the harness, its rows loaded."""
    from lmms_eval import tasks
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(Path(tasks.__file__).parent / part.harness))
    for key in ("filter_list", "doc_to_choice", "fewshot_split", "validation_split", "dataset_name"):
        config.pop(key, None)

    def doc_to_messages(doc: Mapping[str, Any], **_: Any) -> list[dict[str, Any]]:
        return chat(read_question(benchmark.name, part, doc), settings)

    task = ConfigurableMessagesTask(
        model_name="contextrl",
        config={
            **config,
            **source(part, settings.data_root),
            "task": f"contextrl_{part.name}",
            "doc_to_messages": doc_to_messages,
            "doc_to_text": lambda doc, *_, **__: "",
            "doc_to_target": lambda doc: "",
            "process_results": lambda doc, results: {"answered": 1.0},
            "metric_list": [{"metric": "answered", "aggregation": "mean", "higher_is_better": True}],
            "generation_kwargs": {"max_new_tokens": settings.max_new_tokens, "until": [], "do_sample": False},
        },
    )
    task.stock = (config["process_results"], config["metric_list"])
    return task


def chat(question: Question, settings: EvalSettings) -> list[dict[str, Any]]:
    """The chat of the harness for a question: training's prompt with the pictures in it. It carries the question for what keeps answers."""
    (turn,) = vqa_messages(question.text, len(question.images), question.options, style=settings.style)
    pictures = iter(question.images)
    content = [
        {"type": "image", "url": next(pictures)} if part["type"] == "image" else part
        for part in turn["content"]
    ]
    return [{"role": "user", "content": content, "question": question}]


class RunMemory:
    """Keeps a benchmark's answers in its journal, each with its question and a small picture of it."""

    def __init__(self, journal: Journal, part: Part) -> None:
        self._journal, self._part = journal, part

    def find(self, request: Any, prompt_hash: str) -> str | None:
        line = self._journal.find((self._part.name, request.doc_id), prompt_hash)
        return None if line is None else str(line["completion"])

    def reject(self, request: Any, error: DataError) -> None:
        line = self._journal.find((self._part.name, request.doc_id), "")
        if line is None or line["rejected"] != str(error):
            about = {"part": self._part.name, "doc_id": request.doc_id, "prompt_hash": ""}
            self._journal.append([{**about, "rejected": str(error)}])

    def keep(self, shown: Sequence[Any], answers: Sequence[Any]) -> None:
        lines = []
        for asked, answer in zip(shown, answers, strict=True):
            question: Question = asked.messages[0]["question"]
            doc_id = asked.request.doc_id
            lines.append(
                {
                    "part": self._part.name,
                    "doc_id": doc_id,
                    "prompt_hash": asked.prompt_hash,
                    "completion": answer.text,
                    "n_tokens": answer.n_tokens,
                    "truncated": answer.truncated,
                    **question_record(question),
                    "picture": self._save_picture(question, doc_id),
                }
            )
        if lines:
            self._journal.append(lines)

    def _save_picture(self, question: Question, doc_id: int) -> str | None:
        if not question.images:
            return None
        from vlm_contextrl.eval.pictures import side_by_side

        folder = self._journal.folder / "pictures"
        folder.mkdir(exist_ok=True)
        name = f"{self._part.name}_{doc_id}.jpg"
        side_by_side(question.images, PICTURE_PX).save(folder / name, quality=80)
        return name


def run_task(model: Any, task: Any, limit: int | None) -> None:
    """Have this process's share of the rows answered; the answers are in the model's memory then.

    Without the harness's evaluator, which would decode every picture once more and needs all of them to be readable.
    """
    task.build_all_requests(limit=limit, rank=model.rank, world_size=model.world_size)
    model.task_dict[task.config.task] = task.dataset
    model.generate_until(task.instances)


def stock_score(task: Any, stock: Stock, completions: Mapping[int, str]) -> float:
    """The harness's own metric over these completions (number of the row -> text), as a share of full marks.

    Raises StockScorerError when its scorer fails on one of them.
    """
    from lmms_eval.api.registry import get_aggregation

    scorer, metrics = task.stock
    aggregate = next(metric["aggregation"] for metric in metrics if metric["metric"] == stock.metric)
    if isinstance(aggregate, str):
        aggregate = get_aggregation(aggregate)
    random.seed(0)  # some guess where they find no answer
    rows = task.test_docs_no_media()
    try:
        scored = [scorer(rows[i], [text.strip()])[stock.metric] for i, text in sorted(completions.items())]
        return float(aggregate(scored)) / stock.full_marks
    except Exception as error:  # whatever a scorer trips over
        raise StockScorerError(first_line(error)) from error
