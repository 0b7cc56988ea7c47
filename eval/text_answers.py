"""A text model of lm-eval 0.4.13 (adapter by its `peft=`) answers prompts: resumable, nothing truncated.

Answers are appended to `RUN/NAME/answers.0.jsonl` batch by batch, each with a hash of all that shapes it; what is there is not asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.errors import ConfigError, MissingExtraError, first_line
from vlm_contextrl.eval.journal import Journal, expect, read_journal
from vlm_contextrl.eval.questions import Question, Verdict, judge_by_rules
from vlm_contextrl.eval.scoring import question_record
from vlm_contextrl.eval.settings import digest
from vlm_contextrl.eval.weights import weights_hash
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.prompts import Style
from vlm_contextrl.result_files import write_json, write_jsonl

HOW_TO_INSTALL = "pip install 'vlm-contextrl[longtext]'"


class LongContextSettings(Record):
    """A text model and how long its texts are."""

    model: str = Field(description="folder or hub id of a causal language model")
    adapter: str | None = Field(None, description="adapter folder")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the weights")
    device: str = Field("cpu", description="where the model runs")
    batch_size: int = Field(1, ge=1, description="prompts answered together")
    lengths: tuple[int, ...] = Field(
        (4096, 8192, 16384, 32768), min_length=1, description="niah: tokens per prompt, answer included"
    )
    samples: int = Field(50, ge=1, description="niah: prompts per task and length")
    style: Style = Field("reasoning", description="longbench_v2: how a question asks for its answer")
    max_new_tokens: int = Field(2048, ge=1, description="longbench_v2: longest answer")
    limit: int | None = Field(None, ge=1, description="longbench_v2: the first N rows")

    def what_shapes_answers(self) -> dict[str, Any]:
        """All but batch size, device and limit, with the weights by content."""
        weights = {
            "model": weights_hash(self.model),
            "adapter": weights_hash(self.adapter) if self.adapter else None,
        }
        return (
            self.model_dump(mode="json", exclude={"model", "adapter", "batch_size", "device", "limit"})
            | weights
        )


@dataclass(frozen=True)
class Prompt:
    """One sample: what the model reads, and what its answer is scored by (`outputs`: all must occur; else the question's rules).

    groups: what results are broken down by.
    """

    part: str
    number: int
    text: str
    max_new_tokens: int
    question: Question
    groups: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    def judge(self, completion: str) -> Verdict:
        if not self.outputs:
            return judge_by_rules(self.question, completion)
        from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

        score = string_match_all(postprocess_pred([completion]), [list(self.outputs)])
        return Verdict(completion.strip() or None, score == 1.0)


def load_model(settings: LongContextSettings) -> Any:
    """lm-eval's model. Raises MissingExtraError without lm-eval, ConfigError when it does not take the model."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError(f"long texts need lm-eval ({first_line(error)}): {HOW_TO_INSTALL}") from error
    try:
        return HFLM(
            pretrained=settings.model,
            peft=settings.adapter,
            dtype=settings.dtype,
            device=settings.device,
            batch_size=settings.batch_size,
            backend="causal",
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{settings.model}: not a text model that lm-eval takes ({first_line(error)})"
        ) from error


def evaluate(
    prompts: Sequence[Prompt],
    rejected: Sequence[tuple[str, str, str]],
    settings: LongContextSettings,
    model: Any,
    folder: Path,
    about: dict[str, Any],
    content: str,
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    expect(folder, len(prompts))
    journal = Journal(folder, 0)
    # A hash of everything that shapes an answer: answers of another model in the same folder are not found.
    hashes = {(p.part, p.number): digest([content, p.text]) for p in prompts}
    missing = [p for p in prompts if journal.find((p.part, p.number), hashes[p.part, p.number]) is None]
    missing.sort(
        key=lambda prompt: len(prompt.text), reverse=True
    )  # what does not fit into memory shows at once
    for start in range(0, len(missing), settings.batch_size):
        batch = missing[start : start + settings.batch_size]
        journal.append(
            [
                _line(prompt, hashes[prompt.part, prompt.number], text, model)
                for prompt, text in zip(batch, _answers(model, batch), strict=True)
            ]
        )
    answered = {(line["part"], line["doc_id"]): line for line in read_journal(folder)}
    samples, by_group = [], dict[str, list[float]]()
    for prompt in prompts:
        line = answered[prompt.part, prompt.number]
        verdict = prompt.judge(line["completion"])
        samples.append({**line, "extracted": verdict.extracted, "correct": verdict.correct})
        for group in prompt.groups:
            by_group.setdefault(group, []).append(float(verdict.correct))
    write_jsonl(folder / "samples.jsonl", samples)
    result = {
        **about,
        "accuracy": bootstrap([float(sample["correct"]) for sample in samples]),
        "by_category": {group: bootstrap(values) for group, values in by_group.items()},
        "truncated": sum(sample["truncated"] for sample in samples) / len(samples) if samples else None,
        "rejects": len(rejected),
        "rejects_by_category": dict(Counter(group for _, group, _ in rejected)),
        "stock": None,
        "stock_metric": None,
        "content_hash": content,
    }
    write_jsonl(
        folder / "rejects.jsonl",
        ({"id": sample, "category": group, "reason": why} for sample, group, why in rejected),
    )
    write_json(folder / "result.json", result)
    return result


def _answers(model: Any, batch: Sequence[Prompt]) -> list[str]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(
            "generate_until",
            {},
            (p.text, {"until": [], "max_gen_toks": p.max_new_tokens, "do_sample": False}),
            0,
        )
        for p in batch
    ]
    return [str(text) for text in model.generate_until(requests, disable_tqdm=True)]


def _line(prompt: Prompt, prompt_hash: str, text: str, model: Any) -> dict[str, Any]:
    n_tokens = len(model.tok_encode(text))
    return {
        "part": prompt.part, "doc_id": prompt.number, "prompt_hash": prompt_hash, "completion": text, "n_tokens": n_tokens,
        "truncated": n_tokens >= prompt.max_new_tokens, **question_record(prompt.question), "picture": None,
    }  # fmt: skip


def chat(model: Any, text: str) -> str:
    """As the model's chat template has it; the bare text for a base model."""
    if getattr(model.tokenizer, "chat_template", None) is None:
        return text
    return str(model.apply_chat_template([{"role": "user", "content": text}]))
