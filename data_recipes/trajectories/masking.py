"""Taking the patch out of a trajectory (arXiv 2606.17053 masks "the patch's content").

Both contexts of a pair lose the same three things, so that a gap says nothing about the side it is on:
  diffs    whatever a message shows as a diff;
  lines    every added or removed line of either patch, wherever it stands: in an edit command, in a listing with numbers, in a script,
           with JSON's or the shell's escapes. Blanks and backslashes are not looked at; lines of few characters stay, as they are
           everywhere in code;
  names    literal strings, see `shortcuts`.
What is taken out becomes `[masked]`; gaps with nothing but signs and numbers between them become one, so their number says little.
Left out: paraphrase. An agent that says in words what it changed is the evidence that a reader is to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MASK = "[masked]"
MIN_LINE_CHARS = 10
_DIFF_START = re.compile(r"^(?:diff --git |--- (?:[ab]/|/dev/null)|@@ -\d+(?:,\d+)? \+\d+)")
_DIFF_LINE = re.compile(
    r"(?:[ +\-\\].*|@@ .*|diff --git .*|index [0-9a-f]+\.\..*|(?:new|deleted) file mode .*|(?:old|new) mode .*"
    r"|(?:similarity|dissimilarity) index .*|(?:rename|copy) (?:from|to) .*|Binary files .*|)"
)
_NOTHING_BETWEEN = re.compile(r"[\W\d_]*")


def without_diffs(text: str) -> str:
    """The text with a mask in place of every run of lines that is a diff."""
    kept: list[str] = []
    inside = False
    for line in text.split("\n"):
        inside = bool(_DIFF_START.match(line)) or (inside and bool(_DIFF_LINE.fullmatch(line)))
        if not inside:
            kept.append(line)
        elif not kept or kept[-1] != MASK:
            kept.append(MASK)
    return "\n".join(kept)


def mask_lines(text: str, lines: Iterable[str]) -> str:
    """The text with a mask in place of every occurrence of a line."""
    compact, positions = _compact(text)
    spans: list[tuple[int, int]] = []
    for line in lines:
        wanted = "".join(line.replace("\\", "").split())
        start = compact.find(wanted) if len(wanted) >= MIN_LINE_CHARS else -1
        while start >= 0:
            end = start + len(wanted)
            spans.append((positions[start], positions[end - 1] + 1))
            start = compact.find(wanted, end)
    return _replaced(text, spans)


def mask_names(text: str, names: Sequence[str]) -> str:
    """The text with a mask in place of every name, not inside a longer word."""
    return _replaced(text, [found.span() for found in name_pattern(names).finditer(text)]) if names else text


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the names, in any case, not inside a longer word."""
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{any_name})(?![A-Za-z0-9_])", re.IGNORECASE)


def masked_share(before: Sequence[str], after: Sequence[str]) -> float:
    """Share of the characters that were taken out."""
    total = sum(map(len, before))
    left = sum(len(text) - len(MASK) * text.count(MASK) for text in after)
    return 1 - left / total if total else 0.0


def _compact(text: str) -> tuple[str, list[int]]:
    """The text without blanks and backslashes, and where each character was."""
    positions = [at for at, character in enumerate(text) if character != "\\" and not character.isspace()]
    return "".join([text[at] for at in positions]), positions


def _replaced(text: str, spans: list[tuple[int, int]]) -> str:
    """Spans replaced by masks; masks with no letter between them are one."""
    if not spans:
        return text
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if merged and (start <= merged[-1][1] or _NOTHING_BETWEEN.fullmatch(text, merged[-1][1], start)):
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    pieces, last = [], 0
    for start, end in merged:
        pieces += [text[last:start], MASK]
        last = end
    return "".join([*pieces, text[last:]])
