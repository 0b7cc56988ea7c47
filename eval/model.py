"""Our models in lmms-eval: any checkpoint this package trains, with adapter or weights in 4 bits, one or many images per question.

Registered as `contextrl` (entry point `lmms_eval.models`), so it also serves the harness's own command:

    lmms-eval --model contextrl --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,adapter=runs/NAME/final --tasks mmstar

Prompts are encoded and images resized by the core's processor, as in training; generation is greedy, by the core's rollout or by vLLM.
A paragraph's end never ends an answer: the harness's default `until` would cut a chain of thought there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL.Image import DecompressionBombError

from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.eval.answering import Answer, answerer
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.ranks import Ranks

PARAGRAPH = "\n\n"
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A request of the harness and what the model is shown for it."""

    request: Instance
    messages: Messages
    prompt: Any
    prompt_hash: str


class Memory(Protocol):
    """What was answered before. A run keeps its answers on disk (harness.py)."""

    def find(self, request: Instance, prompt_hash: str) -> str | None:
        """The completion for this prompt, or None."""

    def keep(self, shown: Sequence[Shown], answers: Sequence[Answer]) -> None: ...

    def reject(self, request: Instance, error: DataError) -> None:
        """A row that cannot be asked."""


class Forgetful:
    """Keeps nothing: the harness's own command has a cache of its own. A row that cannot be asked ends it."""

    def find(self, request: Instance, prompt_hash: str) -> str | None:
        return None

    def keep(self, shown: Sequence[Shown], answers: Sequence[Answer]) -> None:
        pass

    def reject(self, request: Instance, error: DataError) -> None:
        raise error


class ContextRLModel(lmms):  # type: ignore[misc]  # lmms-eval is not annotated
    """Chat model of the harness. `pretrained` and every field of EvalSettings are model arguments."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tinyvl",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = EvalSettings.model_validate(
            {"model": pretrained, "batch_size": int(batch_size), **settings}
        )
        self.ranks = Ranks.join()
        self.answerer = answerer(self.settings, device or self.ranks.device)
        self.memory: Memory = Forgetful()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world

    @property
    def device(self) -> Any:
        return self.ranks.device

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Greedy answers, in the order of the requests."""
        results: list[GenerationResult] = []
        for batch in _batches(requests, self.settings.batch_size):
            results += self._answer(batch)
        return results

    def _answer(self, batch: Sequence[Instance]) -> list[GenerationResult]:
        results = {id(request): GenerationResult("") for request in batch}
        new: list[Shown] = []
        for request in batch:
            try:
                shown = self._show(request)
            except DataError as error:
                self.memory.reject(request, error)
                continue
            known = self.memory.find(request, shown.prompt_hash)
            if known is None:
                new.append(shown)
            else:
                results[id(request)] = GenerationResult(_cut(known, request))
        limit = int(batch[0].args[2].get("max_new_tokens", self.settings.max_new_tokens))
        answers = self.answerer.answer([shown.prompt for shown in new], limit) if new else []
        self.memory.keep(new, answers)
        for shown, answer in zip(new, answers, strict=True):
            text = _cut(answer.text, shown.request)
            results[id(shown.request)] = GenerationResult(text, TokenCounts(output_tokens=answer.n_tokens))
        return list(results.values())

    def _show(self, request: Instance) -> Shown:
        messages = _messages(self.task_dict, request)
        prompt = self.answerer.encode(messages)
        return Shown(request, messages, prompt, self.answerer.prompt_hash(prompt))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("every benchmark here asks for generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("every benchmark here asks for generate_until")


def manifest() -> Any:
    """For the harness's registry of models (entry point `lmms_eval.models`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="contextrl", chat_class_path=f"{__name__}.ContextRLModel")


def _batches(requests: Sequence[Instance], size: int) -> list[list[Instance]]:
    """At most `size` requests with the same generation settings."""
    batches: list[list[Instance]] = []
    for request in requests:
        if not batches or len(batches[-1]) == size or batches[-1][0].args[2] != request.args[2]:
            batches.append([])
        batches[-1].append(request)
    return batches


def _messages(task_dict: Any, request: Instance) -> Messages:
    _, doc_to_messages, _, doc_id, task, split = request.args
    try:
        row = task_dict[task][split][doc_id]
    except (OSError, DecompressionBombError) as error:  # of Pillow
        raise DataError(f"{task}, row {doc_id}: a picture cannot be read ({first_line(error)})") from error
    messages: Messages = doc_to_messages(row)
    return messages


def _cut(text: str, request: Instance) -> str:
    until = request.args[2].get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        if stop and stop != PARAGRAPH:
            text = text.partition(stop)[0]
    return text
