"""Asks models which of two contexts supports an answer, and what they answer on each: one pair at a time, one model at a time.

    margin D      logit of the context's letter minus logit of the confounder's, per option order; above zero the right one is chosen
    P(context)    sigmoid(D): the probability of the right letter among A and B
    bias          mean over both orders of P(A) - 1/2: what a preference for a letter adds, whichever picture it stands for

Arms are the plain model and what is compared with it: adapters on the same weights, or whole models. An arm has its own cache of picture
features, since an adapter may change the tower; all arms see the pictures as the first adapter was trained to. Prompts are those of the
probe and of evaluation (`prompts.py`); answers are greedy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow

if TYPE_CHECKING:
    from vlm_contextrl.policy import Policy

ORDERS = ("C+ as A, C\N{MINUS SIGN} as B", "C\N{MINUS SIGN} as A, C+ as B")
MAX_NEW_TOKENS = 48


@dataclass
class Choice:
    """What one arm said of one pair so far. answers: on context and confounder, with whether it is right (None: not known).
    logits: per order, of A and B."""

    arm: str
    answers: list[tuple[str, bool | None]] = field(default_factory=list)
    logits: list[tuple[float, float]] = field(default_factory=list)

    @property
    def margins(self) -> list[float]:
        """Per order, in logits; the context is A in the first order and B in the second."""
        return [a - b if order == 0 else b - a for order, (a, b) in enumerate(self.logits)]

    @property
    def bias(self) -> float | None:
        """In [-1/2, 1/2], positive towards A; None before both orders are known."""
        if len(self.logits) < len(ORDERS):
            return None
        return sum(sigmoid(a - b) for a, b in self.logits) / len(ORDERS) - 0.5


@dataclass(frozen=True)
class _Arm:
    name: str
    policy: Policy
    adapter: str | None  # its name in the PEFT model; None is the plain model


class Chooser:
    """The model and what is compared with it. Nothing is loaded before `load`."""

    def __init__(self, model: str, compared: Sequence[Path] = ()) -> None:
        self.model, self.compared = model, tuple(compared)
        self.names = [model, *(_short(folder) for folder in compared)]
        self._arms: list[_Arm] = []
        self._error = ""
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether asking begins at once."""
        return bool(self._arms)

    def load(self) -> None:
        """Load all arms once. Raises ContextRLError, the same one every time."""
        with self._lock:
            if self._error:
                raise ContextRLError(self._error)
            if not self._arms:
                try:
                    self._arms = _load(self.model, self.compared, self.names)
                except ContextRLError as error:
                    self._error = str(error)
                    raise

    def stages(self) -> int:
        """How often `choose` yields."""
        return len(self.names) * 2 * len(ORDERS)

    def choose(self, pair: ContrastivePair) -> Iterator[list[Choice]]:
        """What every arm says, after each answer and each order anew. Closing the iterator ends it after the stage at work."""
        self.load()
        said = [Choice(name) for name in self.names]
        for arm, choice in zip(self._arms, said, strict=True):
            for question in questions(pair):
                with self._lock, _active(arm):
                    choice.answers.append(_answer(arm.policy, question, pair))
                yield said
            for order in range(len(ORDERS)):
                with self._lock, _active(arm):
                    choice.logits.append(_option_logits(arm.policy, pair, order))
                yield said


def sigmoid(margin: float) -> float:
    """Without overflow."""
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else 1 - 1 / (1 + math.exp(margin))


def questions(pair: ContrastivePair) -> tuple[QuestionRow, QuestionRow]:
    """The query asked of the context and of the confounder; where the confounder's answer is unknown, the row holds the context's."""
    on_context = pair.questions()[0]
    other = pair.confounder
    on_confounder = replace(
        on_context,
        id=f"{pair.id}~confounder",
        answer=pair.answer if pair.confounder_answer is None else pair.confounder_answer,
        images=(other,) if isinstance(other, EncodedImage) else (),
        context_text=other if isinstance(other, str) else "",
    )
    return on_context, on_confounder


def _answer(policy: Policy, question: QuestionRow, pair: ContrastivePair) -> tuple[str, bool | None]:
    from vlm_contextrl.vqa import answer_questions

    (found,) = answer_questions(policy, [question], style="direct", max_new_tokens=MAX_NEW_TOKENS)
    if question.id.endswith("~confounder") and pair.confounder_answer is None:
        return (
            found.completion,
            False if found.correct else None,
        )  # the context's answer is wrong here; another may be right
    return found.completion, found.correct


def _option_logits(policy: Policy, pair: ContrastivePair, order: int) -> tuple[float, float]:
    import torch

    from vlm_contextrl.probe import contexts, option_ids, selection_prompt

    good, bad = contexts(policy.processor, pair)
    prompt = selection_prompt(policy.processor, pair, (good, bad) if order == 0 else (bad, good))
    with torch.no_grad():
        ((a, b),) = policy.option_logits([prompt], option_ids(policy.processor, [pair])).tolist()
    return a, b


@contextmanager
def _active(arm: _Arm) -> Iterator[None]:
    model: Any = arm.policy.model
    if not hasattr(model, "set_adapter") or not hasattr(model, "disable_adapter"):
        yield
    elif arm.adapter is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(arm.adapter)
        model.requires_grad_(False)
        yield


def _load(model: str, compared: Sequence[Path], names: Sequence[str]) -> list[_Arm]:
    import torch

    from vlm_contextrl.config import ModelSettings
    from vlm_contextrl.fused_lora import fuse_adapters
    from vlm_contextrl.models import load_policy
    from vlm_contextrl.policy import Policy

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"

    def load(path: str, adapter: Path | None = None) -> Policy:
        settings = ModelSettings(
            path=path, adapter=str(adapter) if adapter else None, dtype="bfloat16" if on_gpu else "float32"
        )
        return load_policy(settings, device, trainable=False)

    adapters = [folder for folder in compared if (folder / "adapter_config.json").is_file()]
    shared = load(model, adapters[0] if adapters else None)
    placed: dict[Path, str] = dict(zip(adapters[:1], ["default"], strict=False))
    for number, folder in enumerate(adapters[1:], start=1):
        placed[folder] = f"adapter_{number}"
        shared.model.load_adapter(str(folder), adapter_name=placed[folder])
    if placed:
        fuse_adapters(shared.model)
        shared.model.eval()
        shared.model.requires_grad_(False)

    def beside() -> Policy:
        return Policy(shared.model, shared.processor, attention_kernel=shared.attention_kernel).eval()

    arms = [_Arm(names[0], beside(), None)]
    for name, folder in zip(names[1:], compared, strict=True):
        is_adapter = folder in placed
        arms.append(_Arm(name, beside() if is_adapter else load(str(folder)), placed.get(folder)))
    return arms


def _short(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])
