"""A trajectory as a text of at most so many tokens: whole messages, from both ends towards the middle; what is left out is said.

A message that does not fit is left out whole, never cut. Those in which the agent made its edits come first, for they
are what the answer rests on; messages over a quarter of the budget (listings of files) come last, so that one of them does not take the
place of everything that the agent thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from vlm_contextrl.data_recipes.trajectories.formats import Message
from vlm_contextrl.errors import CheckpointError, first_line

_MARK_TOKENS = 24  # room for a line that says what is left out


class Rendered(NamedTuple):
    """tokens: of the text. left_out: messages that did not fit."""

    text: str
    tokens: int
    left_out: int


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens by a folder's tokenizer.json, which is read when it is first asked for, in the worker; torch is not needed."""

    tokenizer: str

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    @cached_property
    def _loaded(self) -> Any:
        from tokenizers import Tokenizer

        folder = (
            Path(str(files("vlm_contextrl") / "tinyvl"))
            if self.tokenizer == "tinyvl"
            else Path(self.tokenizer)
        )
        file = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise CheckpointError(
                f"tokenizer {self.tokenizer}: {file} cannot be read ({first_line(error)}); expected a model folder"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [
            len(encoding.ids) for encoding in self._loaded.encode_batch(list(texts), add_special_tokens=False)
        ]


def render(messages: Sequence[Message], budget_tokens: int, count: TokenCounter) -> Rendered:
    """The messages as one text; empty when not one fits."""
    texts = [f"{'Agent' if message.agent else 'Output'}:\n{message.text}\n\n" for message in messages]
    lengths = count(texts)
    edits = {at for at, message in enumerate(messages) if message.edit}
    room = budget_tokens
    while True:
        kept = _kept(lengths, edits, room)
        text = _joined(texts, kept).rstrip("\n")
        tokens = count([text])[0] if kept else 0
        if tokens <= budget_tokens:
            return Rendered(text if kept else "", tokens, len(texts) - len(kept))
        room -= max(tokens - budget_tokens, 1)  # where two messages meet, tokens may differ


def _joined(texts: Sequence[str], kept: set[int]) -> str:
    shown, gap = [], 0
    for position, text in enumerate(texts):
        if position not in kept:
            gap += 1
            continue
        shown += [_mark(gap), text] if gap else [text]
        gap = 0
    return "".join([*shown, _mark(gap)] if gap else shown)


def _kept(lengths: Sequence[int], edits: set[int], room: int) -> set[int]:
    """Positions of the messages that are shown."""
    if sum(lengths) <= room:
        return set(range(len(lengths)))

    def order(at: int) -> tuple[bool, bool, int]:
        return lengths[at] > room // 4, at not in edits, min(at, len(lengths) - 1 - at)

    kept: set[int] = set()
    left = room - _MARK_TOKENS
    for at in sorted(range(len(lengths)), key=order):
        if lengths[at] <= left:
            kept.add(at)
            left -= lengths[at]
        else:
            left -= _MARK_TOKENS  # what is left out may need a mark of its own
    return kept


def _mark(gap: int) -> str:
    return f"[{gap} {'message' if gap == 1 else 'messages'} left out]\n\n"
