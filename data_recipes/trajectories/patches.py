"""Unified diffs (git's), and which functions their changes are in.

With the source before the patch at hand the syntax tree tells: the innermost definition around a changed line, by its dotted name
(`Card._format_value`). Without it a hunk tells: git writes the last line that opens a definition after the second @@, and definitions
that begin inside the hunk follow; a name from a hunk has no class before it. Only Python is read either way.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_HUNK = re.compile(
    r"@@ -(?P<start>\d+)(?:,(?P<count>\d+))? \+\d+(?:,(?P<new_count>\d+))? @@ ?(?P<section>.*)"
)
_DEFINITION = re.compile(r"\s*(?:async\s+def|def|class)\s+(?P<name>\w+)")
MODULE = "<module>"


@dataclass(frozen=True)
class Hunk:
    """start: first old line, from 1. section: what git writes after the second @@. lines: with their signs " ", "-", "+"."""

    start: int
    section: str
    lines: tuple[str, ...]

    @property
    def before(self) -> list[str]:
        """The old lines."""
        return [line[1:] for line in self.lines if line[0] in " -"]


@dataclass
class FilePatch:
    """What a patch does to one file; is_new: the file was not there before."""

    path: str
    is_new: bool = False
    hunks: list[Hunk] = field(default_factory=list)

    def changed_lines(self) -> list[str]:
        """Contents of added and removed lines."""
        return [line[1:] for hunk in self.hunks for line in hunk.lines if line[0] in "+-"]

    def text(self) -> str:
        """Path and changed lines. No positions, hashes, sections and unchanged lines: a trajectory that shows the same place of the file
        would be recognised by them."""
        shown = [self.path]
        for hunk in self.hunks:
            for previous, line in pairwise((" ", *hunk.lines)):
                if line[0] != " ":
                    shown += ["...", line] if previous[0] == " " and len(shown) > 1 else [line]
        return "\n".join(shown)


def parse_patch(text: str) -> list[FilePatch]:
    """Files of a diff, in order; what is no diff is passed over."""
    files: list[FilePatch] = []
    lines = text.split("\n")
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if line.startswith("diff --git "):
            files.append(FilePatch(line.rpartition(" b/")[2].strip()))
        elif line.startswith("--- ") and position < len(lines) and lines[position].startswith("+++ "):
            old, new = (_path(each) for each in (line[4:], lines[position][4:]))
            if not files or files[-1].hunks:
                files.append(FilePatch(old if new == "/dev/null" else new))
            files[-1].path = old if new == "/dev/null" else new
            files[-1].is_new = old == "/dev/null"
            position += 1
        elif line.startswith("new file") and files:
            files[-1].is_new = True
        elif files and (header := _HUNK.match(line)):
            body, position = _hunk_lines(lines, position)
            files[-1].hunks.append(Hunk(int(header["start"]), header["section"].strip(), body))
    return [file for file in files if file.hunks]


def functions_in_tree(file: FilePatch, tree: ast.AST) -> list[str]:
    """Dotted names of the innermost definitions around the changes; tree: of the file before the patch."""
    definitions = sorted(_definitions(tree, ""), key=lambda d: d[1] - d[0], reverse=True)
    names = []
    for line in _changed_positions(file):
        around = [name for first, last, name in definitions if first <= line <= last]
        names.append(around[-1] if around else MODULE)
    return list(dict.fromkeys(names))


def functions_in_hunks(file: FilePatch) -> list[str]:
    """Names that the hunks tell."""
    names = []
    for hunk in file.hunks:
        section = _DEFINITION.match(hunk.section)
        current = section["name"] if section else MODULE
        for line in hunk.lines:
            opened = _DEFINITION.match(line[1:])
            if opened and line[0] != "+":
                current = opened["name"]
            if line[0] in "+-" and line[1:].strip():
                names.append(current)
    return list(dict.fromkeys(names))


def shown_source(file: FilePatch, texts: Sequence[str]) -> str | None:
    """The whole file before the patch, when one of the texts shows it (bare, or numbered from 1) and all hunks fit; None otherwise."""
    for text in texts:
        if len(text) >= sum(len(line) for hunk in file.hunks for line in hunk.before):
            for lines in (_unnumbered(text), text.split("\n")):
                if lines and _fits(file, lines) and parsed("\n".join(lines)) is not None:
                    return "\n".join(lines)
    return None


def parsed(source: str) -> ast.AST | None:
    """The syntax tree, or None for what is no Python."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old sources: invalid escapes
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _hunk_lines(lines: Sequence[str], position: int) -> tuple[tuple[str, ...], int]:
    """The lines that the header before `position` counts, and where they end."""
    header = _HUNK.match(lines[position - 1])
    assert header
    old, new = int(header["count"] or 1), int(header["new_count"] or 1)
    body = []
    while position < len(lines) and (old > 0 or new > 0):
        line = lines[position] or " "  # logs strip the blank of an empty line
        if line[0] in " +-":
            old -= line[0] != "+"
            new -= line[0] != "-"
            body.append(line)
        elif line[0] != "\\":  # "\ No newline at end of file"
            break
        position += 1
    return tuple(body), position


def _path(text: str) -> str:
    path = text.split("\t")[0].strip().strip('"')
    return path if path == "/dev/null" else re.sub(r"\A[ab]/", "", path)


def _changed_positions(file: FilePatch) -> list[int]:
    """Old line numbers of the changes; an insertion counts as the old line before it that is not blank, or as the one after it."""
    positions = []
    for hunk in file.hunks:
        line = hunk.start
        last = line  # the last old line that says something
        for text in hunk.lines:
            if text[0] == "+":
                positions.append(last)
                continue
            if text[0] == "-":
                positions.append(line)
            if text[1:].strip():
                last = line
            line += 1
    return list(dict.fromkeys(positions))


def _definitions(node: ast.AST, prefix: str) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            found.append((first, child.end_lineno or child.lineno, name))
            found += _definitions(child, f"{name}.")
        else:
            found += _definitions(child, prefix)
    return found


def _unnumbered(text: str) -> list[str] | None:
    """Lines without the numbers that `cat -n` and viewers write before them; None unless they count from 1."""
    body: list[str] = []
    for line in text.split("\n"):
        numbered = re.match(r"\s*(\d+)[\t:](.*)", line)
        if numbered and int(numbered[1]) == len(body) + 1:
            body.append(numbered[2])
        elif body:
            break
    return body or None


def _fits(file: FilePatch, lines: Sequence[str]) -> bool:
    return all(list(lines[h.start - 1 : h.start - 1 + len(h.before)]) == h.before for h in file.hunks)
