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

from vlm_contextrl.eval.answering import Answer, answerer
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.ranks import Ranks

PARAGRAPH = "\n\n"
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Answered:
    """A request of the harness with what was shown and what came back."""

    request: Instance
    messages: Messages
    prompt_hash: str
    answer: Answer


class Memory(Protocol):
    """What was answered before. A run keeps its answers on disk (harness.py)."""

    def find(self, request: Instance, prompt_hash: str) -> str | None:
        """The completion for this prompt, or None."""

    def keep(self, batch: Sequence[Answered]) -> None: ...


class Forgetful:
    """Keeps nothing: the harness's own command has a cache of its own."""

    def find(self, request: Instance, prompt_hash: str) -> str | None:
        return None

    def keep(self, batch: Sequence[Answered]) -> None:
        pass


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
        shown = [_messages(self.task_dict, request) for request in batch]
        prompts = [self.answerer.encode(messages) for messages in shown]
        hashes = [self.answerer.prompt_hash(prompt) for prompt in prompts]
        texts = [self.memory.find(request, each) for request, each in zip(batch, hashes, strict=True)]
        new = [i for i, text in enumerate(texts) if text is None]
        limit = int(batch[0].args[2].get("max_new_tokens", self.settings.max_new_tokens))
        answers = self.answerer.answer([prompts[i] for i in new], limit) if new else []
        self.memory.keep(
            [Answered(batch[i], shown[i], hashes[i], answer) for i, answer in zip(new, answers, strict=True)]
        )
        results = [GenerationResult(_cut(text or "", r)) for text, r in zip(texts, batch, strict=True)]
        for i, answer in zip(new, answers, strict=True):
            tokens = TokenCounts(output_tokens=answer.n_tokens)
            results[i] = GenerationResult(_cut(answer.text, batch[i]), tokens)
        return results

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
    messages: Messages = doc_to_messages(task_dict[task][split][doc_id])
    return messages


def _cut(text: str, request: Instance) -> str:
    until = request.args[2].get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        if stop and stop != PARAGRAPH:
            text = text.partition(stop)[0]
    return text
