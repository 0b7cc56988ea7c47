"""The exact text of every prompt, word for word. A change here changes scores: make it on purpose and say
so in the changelog."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.prompts import (
    SELECTION_PREFILL,
    option_lines,
    option_token_ids,
    selection_messages,
    shown_answer,
    vqa_messages,
)

SPACE = "\u0120"  # how byte-level tokenizers write a leading space


def byte_tokenizer(merges: list[tuple[str, str]], name: str = "bytes") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which only the given pairs are one token."""
    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|im_end|>", "<|image_pad|>"]
    )
    fast.name_or_path = name
    return fast


# ---- questions


def test_vqa_direct_snapshot() -> None:
    assert vqa_messages("What colour is the circle?") == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What colour is the circle?\nAnswer directly."},
            ],
        }
    ]


def test_vqa_plain_snapshot() -> None:
    (message,) = vqa_messages("What colour is the circle?", style="plain")
    assert message["content"][1:] == [{"type": "text", "text": "What colour is the circle?"}]


def test_vqa_reasoning_with_options_snapshot() -> None:
    assert vqa_messages(
        "Which shape is larger?", n_images=2, options=("square", "circle"), style="reasoning"
    ) == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "image"},
                {
                    "type": "text",
                    "text": "Which shape is larger?\nA. square\nB. circle\n"
                    "Think step by step, then give the final answer in \\boxed{}.",
                },
            ],
        }
    ]


def test_vqa_without_image_and_with_context_text_snapshot() -> None:
    assert vqa_messages(
        "Which file failed?", n_images=0, context_text="step 1: open a.py\nstep 2: error"
    ) == [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "step 1: open a.py\nstep 2: error\n\nWhich file failed?\nAnswer directly.",
                }
            ],
        }
    ]


# ---- selection


def test_selection_image_snapshot() -> None:
    assert selection_messages("How many circles are there?", "3") == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Image A:"},
                {"type": "image"},
                {"type": "text", "text": "\nImage B:"},
                {"type": "image"},
                {
                    "type": "text",
                    "text": "\nQuestion: How many circles are there?\nAnswer: 3\n"
                    "Which image supports the answer? Output A or B directly.",
                },
            ],
        }
    ]


def test_selection_image_with_options_and_three_contexts_snapshot() -> None:
    assert selection_messages("Which shape is red?", "B", options=("square", "circle"), n_contexts=3) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Image A:"},
                {"type": "image"},
                {"type": "text", "text": "\nImage B:"},
                {"type": "image"},
                {"type": "text", "text": "\nImage C:"},
                {"type": "image"},
                {
                    "type": "text",
                    "text": "\nQuestion: Which shape is red?\nA. square\nB. circle\nAnswer: B. circle\n"
                    "Which image supports the answer? Output A, B or C directly.",
                },
            ],
        }
    ]


def test_selection_text_snapshot() -> None:
    assert selection_messages(
        "Which patch did the agent write?", "[masked]", kind="text", contexts=("run 1", "run 2")
    ) == [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "Context A:\nrun 1\nContext B:\nrun 2\n"
                    "Question: Which patch did the agent write?\nAnswer: [masked]\n"
                    "Which context supports the answer? Output A or B directly.",
                }
            ],
        }
    ]
    assert SELECTION_PREFILL == {"image": "", "text": "The correct option is"}


def test_option_orders_differ_only_in_the_contexts() -> None:
    first, second = (
        selection_messages("Q", "yes", kind="text", contexts=order) for order in (("x", "y"), ("y", "x"))
    )
    texts = [messages[0]["content"][0]["text"] for messages in (first, second)]
    assert texts[0] == texts[1].replace("A:\ny", "A:\nx").replace("B:\nx", "B:\ny")


@pytest.mark.parametrize(
    ("answer", "options", "shown"),
    [
        ("B", ("square", "circle"), "B. circle"),
        ("b", ("square", "circle"), "B. circle"),
        ("circle", ("square", "circle"), "B. circle"),
        ("A", ("B", "A"), "A. B"),  # a letter in range is a letter, even when it is another option's text
        ("C", ("square", "circle"), "C"),  # out of range: shown as it is
        ("3", (), "3"),
        ("red", ("red", "red"), "red"),  # ambiguous: shown as it is
    ],
)
def test_shown_answer(answer: str, options: tuple[str, ...], shown: str) -> None:
    assert shown_answer(answer, options) == shown


@pytest.mark.parametrize("count", [0, 1, 27])
def test_selection_needs_two_to_26_contexts(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} contexts"):
        selection_messages("Q", "A", n_contexts=count)
    with pytest.raises(ValueError, match=f"{count} contexts"):
        selection_messages("Q", "A", kind="text", contexts=["t"] * count)


def test_too_many_options() -> None:
    assert option_lines(()) == ""
    with pytest.raises(DataError, match="found 27"):
        option_lines(["x"] * 27)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|endoftext|>"])
def test_control_tokens_in_user_text_are_refused(token: str) -> None:
    """A placeholder typed into a question would become a second image slot without an image."""
    with pytest.raises(DataError, match="control token"):
        vqa_messages(f"What is {token}?")
    with pytest.raises(DataError, match="control token"):
        vqa_messages("Q", options=("x", token))
    with pytest.raises(DataError, match="control token"):
        selection_messages("Q", token)
    with pytest.raises(DataError, match="control token"):
        selection_messages("Q", "A", kind="text", contexts=("fine", f"log: {token}"))


# ---- option tokens


def test_bare_letters_without_a_prefill() -> None:
    tokenizer = byte_tokenizer([(SPACE, "A"), (SPACE, "B")])
    ids = option_token_ids(tokenizer, "")
    assert tokenizer.convert_ids_to_tokens(ids) == ["A", "B"]


def test_space_prefixed_letters_after_a_prefill() -> None:
    tokenizer = byte_tokenizer([(SPACE, "A"), (SPACE, "B"), (SPACE, "C")])
    ids = option_token_ids(tokenizer, "The correct option is", ("A", "B", "C"))
    assert tokenizer.convert_ids_to_tokens(ids) == [f"{SPACE}A", f"{SPACE}B", f"{SPACE}C"]


def test_bare_letters_when_the_space_is_a_token_of_its_own() -> None:
    tokenizer = byte_tokenizer([])
    assert tokenizer.convert_ids_to_tokens(option_token_ids(tokenizer, "The correct option is")) == ["A", "B"]


def test_all_letters_come_from_the_same_form() -> None:
    """Only " A" is a token, " B" is two: the bare form is used for both, never " A" beside "B"."""
    tokenizer = byte_tokenizer([(SPACE, "A")])
    assert tokenizer.convert_ids_to_tokens(option_token_ids(tokenizer, "The correct option is")) == ["A", "B"]


def test_prefill_that_merges_with_the_letter() -> None:
    """After "is " the space and the letter melt into one token, so the letter adds none: " " + letter is
    used instead."""
    tokenizer = byte_tokenizer([(SPACE, "A"), (SPACE, "B")])
    ids = option_token_ids(tokenizer, "is ")
    assert tokenizer.convert_ids_to_tokens(ids) == [f"{SPACE}A", f"{SPACE}B"]


def test_no_single_token_names_the_tokenizer_and_the_letter() -> None:
    tokenizer = byte_tokenizer([], name="org/tiny")
    with pytest.raises(ConfigError, match=r"'org/tiny'.*'\u00c4'"):
        option_token_ids(tokenizer, "", ("A", "\u00c4"))  # two bytes, two tokens
    with pytest.raises(ConfigError, match=r"'org/tiny'.*'A'"):
        option_token_ids(tokenizer, "", ("A", "A"))


def test_tokenizer_that_changes_the_prefill_is_refused() -> None:
    """The candidate must extend the encoded prefill: "i", "s" becoming "isA" would move the position that
    is read."""
    tokenizer = byte_tokenizer([("i", "s"), ("is", "A"), ("is", "B")])
    with pytest.raises(ConfigError, match="distinct token after the prefill 'is'"):
        option_token_ids(tokenizer, "is")
