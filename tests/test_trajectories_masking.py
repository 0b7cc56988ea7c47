"""What a context shows: no patch, no telling names, whole messages within a budget; and what a bag of words makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.trajectory_logs import patch_of
from vlm_contextrl.data_recipes.trajectories.budget import render
from vlm_contextrl.data_recipes.trajectories.formats import Message
from vlm_contextrl.data_recipes.trajectories.issues import tfidf_similarity, words
from vlm_contextrl.data_recipes.trajectories.masking import (
    mask_lines,
    mask_names,
    masked_share,
    without_diffs,
)
from vlm_contextrl.data_recipes.trajectories.shortcuts import (
    Shown,
    identifiers_in,
    lexical_outcome,
    longer_outcome,
    masks_outcome,
    names_in,
    telling,
    too_lexical,
)

LINE = "    self.method = to_native_string(self.method.upper())"


def test_diffs_go_as_a_whole() -> None:
    text = f"before\n{patch_of('sign')}after\nmore"
    assert without_diffs(text) == "before\n[masked]\nafter\nmore"
    assert without_diffs("a\n- a list\n+ of signs\n") == "a\n- a list\n+ of signs\n"
    assert without_diffs("@@ -1,2 +1,2 @@ def f():\n-a\n+b\n c\nend") == "[masked]\nend"


@pytest.mark.parametrize(
    "shown",
    [
        "self.method = to_native_string(self.method.upper())",
        "   310\tself.method  =  to_native_string( self.method.upper() )",
        "x\\n    self.method = to_native_string(self.method.upper())\\n",
        "s/a/self\\.method = to_native_string(self\\.method\\.upper())/",
        "self.method =\\\n  to_native_string(self.method.upper())",
    ],
)
def test_lines_are_found_in_every_dress(shown: str) -> None:
    """With numbers, other blanks, escaped line ends, the shell's backslashes, broken in two."""
    assert "native" not in mask_lines(f"see {shown} there", [LINE])
    assert mask_lines(f"see {shown} there", [LINE]).count("[masked]") == 1


def test_short_lines_stay_and_neighbours_join() -> None:
    """`else:` is everywhere. Two masked lines with only a number between them are one gap; with a word between them two."""
    assert mask_lines("else:\n  pass", ["    else:"]) == "else:\n  pass"
    lines = ["first_long_line(1)", "second_long_line(2)"]
    assert mask_lines("1 first_long_line(1)\n2 second_long_line(2)\n", lines) == "1 [masked]\n"
    assert mask_lines("first_long_line(1) and second_long_line(2)", lines) == "[masked] and [masked]"


def test_names() -> None:
    """Words of prose are no names; snake, camel, numbers of three digits and paths are."""
    assert names_in("Call to_native_string of MyClass in a/b.py at 310, then round it 2 times, see x.py.") == {
        "to_native_string", "MyClass", "a/b.py", "310", "x.py",
    }  # fmt: skip
    assert mask_names("foo_bar foo_barn xfoo_bar", ["foo_bar"]) == "[masked] foo_barn xfoo_bar"
    contexts = ["shared_name only_here /testbed/a/b.py", "shared_name a/b.py other_name"]
    assert telling(names_in("in a/b.py: shared_name(only_here), nowhere_at_all"), contexts) == ["only_here"]
    assert identifiers_in("if size is None: return 12, xy") == {"size"}
    assert telling({"size"}, ["the Size of it", "its sizes"]) == ["size"]
    assert telling({"masked"}, ["a [masked] word", "none"]) == []  # masking it would never end


def test_masked_share() -> None:
    """10 characters, of which 4 became a mask: 0.4."""
    assert masked_share(["abcdefghij"], ["abc[masked]hij"]) == pytest.approx(0.4)
    assert masked_share([], []) == 0


class Characters:
    """Counts characters, so that numbers can be checked by hand."""

    def __call__(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]


def messages(*lengths: int) -> list[Message]:
    return [Message(True, "x" * length) for length in lengths]


def test_budget_takes_both_ends_and_says_so() -> None:
    """Each message adds `Agent:` and three line ends: 59 characters. Of 310, 24 go to the mark. From the ends inwards (0, 5, 1, 4) four fit
    into 286; the other two are one gap."""
    shown = render(messages(*[50] * 6), 310, Characters())  # type: ignore[arg-type]
    assert shown.left_out == 2
    assert [part == "[2 messages left out]" for part in shown.text.split("\n\n")] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert shown.tokens == len(shown.text) <= 310
    whole = render(messages(100, 100), 310, Characters())  # type: ignore[arg-type]
    assert (whole.left_out, whole.text.count("left out")) == (0, 0)


def test_edits_come_first_and_long_messages_last() -> None:
    """Of seven messages the one in the middle is an edit; the third is over a quarter of the budget."""
    sizes = messages(50, 50, 150, 50, 50, 50, 50)
    sizes[3] = Message(True, "y" * 50, edit=True)
    shown = render(sizes, 310, Characters())  # type: ignore[arg-type]
    assert "y" * 50 in shown.text
    assert "x" * 51 not in shown.text
    assert shown.left_out == 3


def test_a_message_over_the_budget_is_never_cut() -> None:
    shown = render(messages(50, 5000, 50), 400, Characters())  # type: ignore[arg-type]
    assert (shown.left_out, "[1 message left out]" in shown.text, "x" * 51 in shown.text) == (1, True, False)
    assert render(messages(5000), 400, Characters()) == ("", 0, 1)  # type: ignore[arg-type]


def test_lexical_outcome_by_hand() -> None:
    """Question and first answer: {q, apple, pear}; the first context holds q and apple (2/3), the second q (1/3): right, by 1/3.
    The second answer {q, plum} is in neither: a tie, q in both. Together (1 + 1/2) / 2 = 0.75."""
    pair = Shown("q", ("apple pear", "plum"), ("q apple apple", "q fig"))
    outcome, margin = lexical_outcome(pair)
    assert outcome == 0.75
    assert margin == pytest.approx(1 / 3)


def test_a_longer_context_wins_nothing() -> None:
    """The first context holds every word of both answers: right one way, wrong the other."""
    assert lexical_outcome(Shown("q", ("apple", "plum"), ("q apple plum and more", "q"))) == (0.5, 0.0)


def test_other_shortcuts_by_hand() -> None:
    long = Shown("q", ("long answer", "short"), ("[masked] [masked] text", "text"))
    assert (longer_outcome(long), masks_outcome(long)) == (1.0, 1.0)
    assert longer_outcome(Shown("q", ("long answer", "short"), ("a", "longer"))) == 0.0
    assert masks_outcome(Shown("q", ("long answer", "short"), ("a", "longer"))) == 0.5


def test_the_most_lexical_pairs_go_until_the_limit_holds() -> None:
    """Outcomes 1, 1, 1, .5, 0 have a mean of 0.7. Without the widest margin (position 2) it is 2.5 / 4 = 0.625, without the next
    (position 0) 1.5 / 3 = 0.5."""
    outcomes = [(1.0, 0.2), (1.0, 0.1), (1.0, 0.3), (0.5, 0.9), (0.0, -0.1)]
    assert too_lexical(outcomes, 0.6) == {0, 2}
    assert too_lexical(outcomes, 0.7) == set()
    assert too_lexical(outcomes, 1.0) == set()
    assert too_lexical([(1.0, 0.1), (1.0, 0.2)], 0.5) == {0, 1}
    assert too_lexical([], 0.5) == set()


def test_likeness_of_issues() -> None:
    """Of three issues the first two share `box` and `area`; a word that all have weighs little, and one with itself is 1."""
    issues = {
        "a": "the area of the box is negative",
        "b": "the area of the box is long",
        "c": "the parser of dates fails",
    }
    alike = tfidf_similarity(issues)
    assert alike("a", "b") > 0.2 > alike("a", "c")
    assert alike("a", "b") == pytest.approx(alike("b", "a"))
    assert alike("a", "a") == pytest.approx(1)
    assert words("max_length of HTTPError, x1") == ["max", "length", "http", "error"]
