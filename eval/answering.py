"""Prompts in, greedy answers out: the core's processor, policy and rollout behind one object, or a stand-in that knows the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vlm_contextrl.eval.questions import Question
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.eval.stand_ins import STYLES, reply
from vlm_contextrl.models import load_policy, merge_adapter
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.rollout import Completion, Engine, OwnEngine

PROMPT_TOKENS = 16384  # of one prefill


@dataclass(frozen=True)
class Answer:
    """One completion. truncated: it was cut at the length limit."""

    text: str
    n_tokens: int
    truncated: bool


class Answerer(Protocol):
    """What answers the harness's chats: image parts carry a picture as `url`, text parts their text."""

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """The prompt, ready to be answered."""

    def prompt_hash(self, prompt: Any) -> str:
        """sha256 of everything in a prompt that the answer depends on."""

    def answer(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Answer]:
        """Greedy completions of at most `max_new_tokens` tokens."""


def answerer(settings: EvalSettings, device: torch.device | str) -> Answerer:
    """A loaded model, or a stand-in."""
    return StandIn(settings) if settings.is_stand_in else ModelAnswerer(settings, device)


class StandIn:
    """Answers from the question that a chat carries (`question`), in all forms of answer by turns: a check of data and scorer."""

    def __init__(self, settings: EvalSettings) -> None:
        self._behaviour = settings.model

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Question:
        question: Question = messages[0]["question"]
        return question

    def prompt_hash(self, prompt: Question) -> str:
        return hashlib.sha256(
            repr((prompt.id, prompt.text, prompt.options, prompt.answer)).encode()
        ).hexdigest()

    def answer(self, prompts: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        styles = sorted(STYLES)
        texts = [
            reply(question, self._behaviour, styles[int(self.prompt_hash(question)[:8], 16) % len(styles)])
            for question in prompts
        ]
        return [Answer(text, len(text.split()), False) for text in texts]


def load_model(settings: EvalSettings, device: torch.device | str) -> Policy:
    """The model with its adapter, merged if that is asked for, as it is evaluated."""
    policy = load_policy(settings.model_settings(), device, trainable=False)
    if settings.merge:
        merge_adapter(policy, getattr(torch, settings.dtype))
    return policy


class ModelAnswerer:
    """A loaded model that answers."""

    def __init__(self, settings: EvalSettings, device: torch.device | str) -> None:
        self.policy = load_model(settings, device)
        self._settings = settings
        self._engine: Engine | None = None

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> EncodedPrompt:
        processor = self.policy.processor
        turns, images = [], []
        for message in messages:
            parts = message["content"]
            if isinstance(parts, str):
                parts = [{"type": "text", "text": parts}]
            images += [
                processor.process_image(part["url"], f"image {i}")
                for i, part in enumerate(parts)
                if part["type"] == "image"
            ]
            bare = [{"type": "image"} if part["type"] == "image" else dict(part) for part in parts]
            turns.append({"role": message["role"], "content": bare})
        return processor.encode(turns, images)

    def prompt_hash(self, prompt: EncodedPrompt) -> str:
        content = hashlib.sha256(repr(prompt.ids_T.tolist()).encode())
        for image in prompt.images:
            content.update(image.key.encode())
        return content.hexdigest()

    def answer(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[Answer]:
        groups = self._engine_for(max_new_tokens).sample(
            self.policy, prompts, 1, max_new_tokens=max_new_tokens, temperature=0, seeds=[0] * len(prompts)
        )
        return [self._answer(completion) for (completion,) in groups]

    def _answer(self, completion: Completion) -> Answer:
        text = self.policy.processor.decode(completion.ids.tolist())
        return Answer(text, len(completion.ids), completion.truncated)

    def _engine_for(self, max_new_tokens: int) -> Engine:
        if self._engine is None:
            self._engine = self._start_engine(max_new_tokens)
            self._engine.sync(self.policy)
        return self._engine

    def _start_engine(self, max_new_tokens: int) -> Engine:
        if self._settings.engine == "transformers":
            return OwnEngine(PROMPT_TOKENS, self._settings.batch_size)
        from vlm_contextrl.vllm_engine import VllmEngine

        return VllmEngine(
            self._settings.model_settings(), self.policy.processor, max_model_len=PROMPT_TOKENS + max_new_tokens,
            max_images=8, gpu_memory_share=0.5, seed=0,
        )  # fmt: skip
