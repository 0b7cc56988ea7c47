"""Long texts, for text models, through lm-eval 0.4.13.

    niah          needles in a haystack as RULER makes them (arXiv 2404.06654), by lm-eval's generator, prompt and metric (the needle
                  occurs in the answer): the three tasks that need no essays from the hub, lengths by choice, seeded per task and length
    longbench_v2  multiple choice over real documents (arXiv 2412.15204) from a data root, with training's prompt and extractor

Nothing is truncated: prompts that leave no room for an answer, and those that hold control tokens, are rejected and counted.

Left out: essays as haystack, LongBench v2 by log-likelihood, LiveCodeBench and SWE-Bench (their own runners).
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import ConfigError, DataError, MissingExtraError, first_line
from vlm_contextrl.eval.data_roots import fingerprint, load_part
from vlm_contextrl.eval.questions import Question
from vlm_contextrl.eval.registry import Part
from vlm_contextrl.eval.settings import digest
from vlm_contextrl.eval.text_answers import (
    HOW_TO_INSTALL,
    LongContextSettings,
    Prompt,
    chat,
    evaluate,
    load_model,
)
from vlm_contextrl.prompts import vqa_messages

NIAH_TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3")
NEEDLE_TOKENS = 128  # what RULER leaves for the answer
LONGBENCH = Part("longbench_v2", "", "THUDM/LongBench-v2", None, "train", 503)


@dataclass(frozen=True)
class LongText:
    """A benchmark of text models. part: its published rows; None: they are generated."""

    title: str
    licence: str
    part: Part | None


LONG_TEXTS = {
    "niah": LongText("Needle in a haystack (RULER)", "Apache-2.0", None),
    "longbench_v2": LongText("LongBench v2", "Apache-2.0", LONGBENCH),
}
_LEAD_TOKENS = 64  # what may stand around a generated text: the beginning of the answer
# RULER's needles and haystacks of these tasks.
_NIAH = {
    "niah_single_1": {"type_haystack": "repeat", "type_needle_k": "words", "type_needle_v": "numbers"},
    "niah_multikey_2": {"type_haystack": "needle", "type_needle_k": "words", "type_needle_v": "numbers"},
    "niah_multikey_3": {"type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
}


def evaluate_niah(settings: LongContextSettings, folder: Path, *, model: Any = None) -> dict[str, Any]:
    """Find needles at every length; writes samples.jsonl and result.json to `folder` (RUN/niah), returns the latter.

    model: an lm-eval model already loaded. Raises ConfigError for lengths that the model does not take.
    """
    model = model or load_model(settings)
    if max(settings.lengths) > model.max_length:
        raise ConfigError(
            f"niah: length {max(settings.lengths)}, expected at most the {model.max_length} tokens that {settings.model} takes"
        )
    prompts = [prompt for name in NIAH_TASKS for prompt in _niah_prompts(name, settings, model)]
    content = digest({**settings.what_shapes_answers(), "benchmark": "niah"})
    about = {
        "benchmark": LONG_TEXTS["niah"].title,
        "split": "generated",
        "style": "plain",
        "max_new_tokens": NEEDLE_TOKENS,
    }
    return evaluate(prompts, [], settings, model, folder, about, content)


def evaluate_longbench(
    settings: LongContextSettings, data_root: Path | None, folder: Path, *, model: Any = None
) -> dict[str, Any]:
    """Answer LongBench v2; as `evaluate_niah`. Raises DataError when the rows are not to be had or not in the published schema."""
    rows, data = load_part(LONGBENCH, data_root), fingerprint(LONGBENCH, data_root)
    model = model or load_model(settings)
    prompts, rejected = [], []
    for number in range(min(len(rows), settings.limit or len(rows))):
        question, groups, context = read_row(rows[number], number)
        try:
            (message,) = vqa_messages(
                question.text, 0, question.options, context_text=context, style=settings.style
            )
        except DataError as error:
            rejected.append((question.id, groups[0], first_line(error)))
            continue
        text = chat(model, message["content"][0]["text"])
        tokens, room = len(model.tok_encode(text)), model.max_length - settings.max_new_tokens
        if tokens > room:
            rejected.append((question.id, groups[0], f"{tokens} tokens, expected at most {room}"))
            continue
        prompts.append(Prompt(LONGBENCH.name, number, text, settings.max_new_tokens, question, groups))
    content = digest({**settings.what_shapes_answers(), "benchmark": "longbench_v2", "data": data})
    about = {
        "benchmark": LONG_TEXTS["longbench_v2"].title,
        "split": LONGBENCH.split,
        "style": settings.style,
        "max_new_tokens": settings.max_new_tokens,
    }
    return evaluate(prompts, rejected, settings, model, folder, about, content)


def read_row(row: Mapping[str, Any], number: int) -> tuple[Question, tuple[str, ...], str]:
    """Question, (length, difficulty) and document of a row of LongBench v2. Raises DataError for another schema."""
    names = (
        "question",
        "choice_A",
        "choice_B",
        "choice_C",
        "choice_D",
        "answer",
        "context",
        "difficulty",
        "length",
    )
    for name in names:
        if not isinstance(row.get(name), str):
            raise DataError(f"longbench_v2, row {number}: {name} is {row.get(name)!r:.60}, expected a text")
    options, answer = tuple(row[name] for name in names[1:5]), row["answer"].strip()
    if answer not in ("A", "B", "C", "D"):
        raise DataError(f"longbench_v2, row {number}: answer is {answer!r:.60}, expected A, B, C or D")
    groups = (row["length"], row["difficulty"])
    sample = str(row.get("_id") or number)
    return (
        Question(sample, row["question"].strip(), (), answer, "choice", options, category=groups[0]),
        groups,
        row["context"],
    )


def _niah_prompts(name: str, settings: LongContextSettings, model: Any) -> Iterator[Prompt]:
    """A task's prompts, those of each length drawn from a seed of their own."""
    with _nothing_fetched():
        try:
            from lm_eval.tasks.ruler.niah_utils import TEMPLATE
            from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack
        except ImportError as error:
            raise MissingExtraError(
                f"niah needs wonderwords and nltk ({first_line(error)}): {HOW_TO_INSTALL}"
            ) from error
    around = len(model.tok_encode(chat(model, ""))) + _LEAD_TOKENS
    for length in settings.lengths:
        kinds = _NIAH[name]
        with _seeded(f"{name}:{length}"):
            try:
                made = generate_samples(
                    get_haystack(type_haystack=kinds["type_haystack"]),
                    max_seq_length=length - around,
                    template=TEMPLATE,
                    num_samples=settings.samples,
                    tokens_to_generate=NEEDLE_TOKENS,
                    TOKENIZER=model.tokenizer,
                    **kinds,
                )
            except ValueError as error:
                raise ConfigError(
                    f"niah: length {length} is too short for {name} ({first_line(error)})"
                ) from error
        if len(made) < settings.samples:
            raise ConfigError(
                f"niah: length {length} is too short for {name}: {len(made)} of {settings.samples} prompts fit"
            )
        for number, doc in enumerate(made):
            text = f"{chat(model, doc['input'])} {doc['gen_prefix']}".lstrip()
            assert len(model.tok_encode(text)) + NEEDLE_TOKENS <= length, (
                f"{name}: a prompt longer than {length} tokens"
            )
            question = Question(
                f"{length}-{number}",
                doc["gen_prefix"],
                (),
                ", ".join(doc["outputs"]),
                "exact",
                category=f"{length} tokens",
            )
            groups = (f"{length} tokens", f"{name}, {length} tokens")
            yield Prompt(
                f"{name}_{length}", number, text, NEEDLE_TOKENS, question, groups, tuple(doc["outputs"])
            )


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """lm-eval's generator draws from the module `random`."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _nothing_fetched() -> Iterator[None]:
    """lm-eval fetches a sentence splitter for essays when its needle module is imported; these tasks have no essays."""
    try:
        import nltk
    except ImportError:
        yield
        return
    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        with redirect_stdout(io.StringIO()):  # it says that it has fetched
            yield
    finally:
        nltk.download = download
