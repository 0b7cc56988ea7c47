"""The exact text shown to the model, as chat messages in Qwen's format. The only place that words a prompt.

A message is ``{"role": "user", "content": [part, ...]}`` with parts ``{"type": "image"}`` and
``{"type": "text", "text": ...}``. Image parts carry no pixels: the caller passes the images separately, in
the order in which the parts appear.

Source of the selection prompt: arXiv 2606.17053 (question, candidate answer, both contexts, "Output A or B
directly."). Deviations: the wording around that last sentence is ours; the contexts come first, as the
images do in an ordinary question, so that the tokens of question and answer can look at both (text first
would let both option orders of a pair share a prefix of a few tokens); K contexts are allowed, where the
paper has two.

Left out: the chat template itself (it belongs to the tokenizer) and any system message.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Literal, Protocol

from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.pairs import CONTROL_TOKEN

Message = dict[str, Any]
Style = Literal["direct", "reasoning", "plain"]
ContextKind = Literal["image", "text"]

INSTRUCTIONS: dict[Style, str] = {
    "direct": "\nAnswer directly.",
    "reasoning": "\nThink step by step, then give the final answer in \\boxed{}.",
    "plain": "",  # whether to think first is left to the model
}

# Text contexts (agent trajectories) are long, so the assistant turn is opened for the model; images are
# asked for a bare letter.
SELECTION_PREFILL: dict[ContextKind, str] = {"image": "", "text": "The correct option is"}


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


def option_lines(options: Sequence[str]) -> str:
    """``"\\nA. x\\nB. y"``, empty without options. DataError for more than 26 of them."""
    if len(options) > len(ascii_uppercase):
        raise DataError(
            f"options: found {len(options)}, expected at most {len(ascii_uppercase)}; split the question"
        )
    return "".join(f"\n{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def vqa_messages(
    query: str,
    n_images: int = 1,
    options: Sequence[str] = (),
    context_text: str = "",
    style: Style = "direct",
) -> list[Message]:
    """One user turn: the images, then the context text (if any, closed by a blank line), the query, its
    options, the instruction.

    Raises DataError when a text holds one of the model's control tokens.
    """
    context = f"{context_text}\n\n" if context_text else ""
    text = _checked(f"{context}{query}{option_lines(options)}") + INSTRUCTIONS[style]
    return [
        {
            "role": "user",
            "content": [*({"type": "image"} for _ in range(n_images)), {"type": "text", "text": text}],
        }
    ]


def selection_messages(
    query: str,
    answer: str,
    options: Sequence[str] = (),
    kind: ContextKind = "image",
    contexts: Sequence[str] = (),
    n_contexts: int = 2,
) -> list[Message]:
    """One user turn that asks which of K contexts supports `answer`.

    For ``kind="image"`` K is `n_contexts` and there are K image parts; for ``kind="text"`` K is
    ``len(contexts)``, `contexts` being the texts in the order shown. A multiple-choice answer is shown as
    letter and option text. Raises DataError for a control token in a text, ValueError when K is not 2 to
    26.
    """
    count = len(contexts) if kind == "text" else n_contexts
    if not 2 <= count <= len(ascii_uppercase):
        raise ValueError(f"selection prompt over {count} contexts; expected 2 to {len(ascii_uppercase)}")
    letters = ascii_uppercase[:count]
    names = f"{', '.join(letters[:-1])} or {letters[-1]}"
    tail = f"{_which_supports(query, answer, options, kind)} Output {names} directly."
    content: list[dict[str, str]] = []
    if kind == "text":
        body = "".join(
            f"Context {letter}:\n{_checked(text)}\n" for letter, text in zip(letters, contexts, strict=True)
        )
        content.append({"type": "text", "text": body + tail})
    else:
        for position, letter in enumerate(letters):
            content.append({"type": "text", "text": f"{'' if position == 0 else chr(10)}Image {letter}:"})
            content.append({"type": "image"})
        content.append({"type": "text", "text": f"\n{tail}"})
    return [{"role": "user", "content": content}]


def selection_query(
    query: str, answer: str, options: Sequence[str] = (), kind: ContextKind = "image"
) -> tuple[str, tuple[str, str]]:
    """(query, options) that ask the same of two contexts as an ordinary multiple-choice question, for `vqa_messages`."""
    noun = _noun(kind)
    return _which_supports(query, answer, options, kind), (f"the first {noun}", f"the second {noun}")


def _which_supports(query: str, answer: str, options: Sequence[str], kind: ContextKind) -> str:
    asked = f"Question: {query}{option_lines(options)}\nAnswer: {shown_answer(answer, options)}\n"
    return _checked(f"{asked}Which {_noun(kind)} supports the answer?")


def _noun(kind: ContextKind) -> str:
    return "image" if kind == "image" else "context"


def shown_answer(answer: str, options: Sequence[str]) -> str:
    """``"B. circle"`` for the answer "B" (or "circle") of a multiple-choice question, else the answer itself.

    A single letter in range is read as a letter even if it is also the text of another option.
    """
    stripped = answer.strip()
    if len(stripped) == 1 and stripped.upper() in ascii_uppercase[: len(options)]:
        letter = stripped.upper()
        return f"{letter}. {options[ascii_uppercase.index(letter)]}"
    if list(options).count(stripped) == 1:
        return f"{ascii_uppercase[list(options).index(stripped)]}. {stripped}"
    return answer


def option_token_ids(tokenizer: Tokenizer, prefill: str, letters: Sequence[str] = ("A", "B")) -> list[int]:
    """Token id of each option letter at the position after `prefill`, in the order of `letters`.

    Candidates are the space-prefixed and the bare letter (only the bare one after an empty prefill). A form
    is used when every letter adds exactly one token to the encoded prefill and the K ids differ; the
    space-prefixed form is tried first, since it is what the model writes after a word. Raises ConfigError,
    naming tokenizer and letter, when neither form works.
    """
    prefix_ids = tokenizer.encode(prefill, add_special_tokens=False) if prefill else []
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    failed = ""
    for space in (" ", "") if prefill else ("",):
        ids: list[int] = []
        for letter in letters:
            encoded = list(tokenizer.encode(f"{prefill}{space}{letter}", add_special_tokens=False))
            if len(encoded) != len(prefix_ids) + 1 or encoded[:-1] != list(prefix_ids):
                failed = failed or letter
                break
            ids.append(encoded[-1])
        else:
            if len(set(ids)) == len(ids):
                return ids
            failed = failed or next(
                letter for letter, found in zip(letters, ids, strict=True) if ids.count(found) > 1
            )
    raise ConfigError(
        f"tokenizer {name!r}: option letter {failed!r} is not one distinct token after the prefill "
        f"{prefill!r}, with or without a space before it; change the prefill or use another tokenizer"
    )


def _checked(text: str) -> str:
    found = CONTROL_TOKEN.search(text)
    if found:
        raise DataError(
            f"the text of a prompt holds the control token {found.group()!r}; remove or rewrite it in the row"
        )
    return text
