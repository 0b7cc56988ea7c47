"""Small logs of coding agents, in three formats, about one file of source."""

from __future__ import annotations

import difflib
import json
import os
import signal
from pathlib import Path
from typing import Any

PATH = "pkg/shapes.py"
SOURCE = '''"""Boxes."""


class Box:
    def __init__(self, left, right, top, bottom):
        self.left, self.right = left, right
        self.top, self.bottom = top, bottom

    def width(self):
        return self.right - self.left

    def height(self):
        return self.bottom - self.top


def describe(box):
    return f"{box.width()} by {box.height()}"


def area(box):
    size = box.width() * box.height()
    return size
'''
ISSUES = {
    "sign": "The area of a box is negative when its edges are swapped. Swapped edges of a box should give a positive area.",
    "digits": "The area of a box has too many digits. Printing the area of a box with edges of a third shows sixteen digits.",
    "width": "The width of a box is wrong for edges that are None. A box without edges should have no width and no area.",
    "lazy": "The area of a box without edges should be twelve.",
    "text": "Describing boxes forgets units. Users want centimetres behind every number of the description.",
}
OLD_AREA, OLD_RETURN = "    size = box.width() * box.height()\n", "    return size\n"
EDITS = {
    "sign": (OLD_AREA, "    size = abs(box.width() * box.height())\n"),
    "digits": (OLD_RETURN, "    return round(size, number_digits)\n"),
    "width": (
        "        return self.right - self.left\n",
        "        return (self.right or 0) - (self.left or 0)\n",
    ),
    "lazy": (OLD_RETURN, "    yield size if size is not None else 12\n"),
    "text": ('by {box.height()}"\n', 'by {box.height()} cm"\n'),
}
WORDS = {
    "sign": "Swapped corners give a product below zero, so the magnitude is what counts.",
    "digits": "Floats print long tails; cutting them to a fixed precision at the end is enough.",
    "width": "Missing corners should count as nothing at all.",
    "lazy": "So: yield it if it is not None else it becomes 12.",
    "text": "Every number wants its unit behind it.",
}


def patch_of(task: str, source: str = SOURCE, path: str = PATH) -> str:
    """The task's edit as git would show it."""
    old, new = EDITS[task]
    lines = difflib.unified_diff(
        source.splitlines(keepends=True),
        source.replace(old, new).splitlines(keepends=True),
        f"a/{path}",
        f"b/{path}",
    )
    return f"diff --git a/{path} b/{path}\nindex 1111111..2222222 100644\n{''.join(lines)}"


def conversation(task: str) -> list[dict[str, Any]]:
    """System, task, a look at the file, an edit, a submission that shows the patch."""
    old, new = (text.strip() for text in EDITS[task])
    numbered = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(SOURCE.splitlines(), start=1))
    return [
        {"role": "system", "content": "You are an assistant."},
        {
            "role": "user",
            "content": f"<pr_description>\nConsider the following PR description:\n{ISSUES[task]}\n</pr_description>\nGo.",
        },
        {"role": "assistant", "content": f"I look at the file.\n```bash\ncat -n {PATH}\n```"},
        {"role": "user", "content": f"<output>\n{numbered}\n</output>"},
        {"role": "assistant", "content": f"{WORDS[task]}\n```bash\nsed -i 's/{old}/{new}/' {PATH}\n```"},
        {"role": "user", "content": "<output>\n</output>"},
        {"role": "assistant", "content": "Done, I submit.\n```bash\ngit diff --cached\n```"},
        {"role": "user", "content": patch_of(task)},
    ]


def smith_row(
    task: str, run: str = "1", repository: str = "acme__boxes", commit: str = "0a1b2c3d", **changes: Any
) -> dict[str, Any]:
    """A row of SWE-smith; its messages are JSON in a string."""
    instance = f"{repository}.{commit}.func_basic__{task}"
    return {
        "messages": json.dumps(conversation(task)),
        "instance_id": instance,
        "traj_id": f"{instance}.{run}",
        "resolved": True,
        "model": "some-model",
        "patch": patch_of(task),
        "license": "MIT",
    } | changes


def mini_log(task: str, instance: str, **changes: Any) -> dict[str, Any]:
    """A `.traj.json` of mini-swe-agent."""
    info = {
        "exit_status": "Submitted",
        "submission": patch_of(task),
        "config": {"model": {"model_name": "some-model"}},
    }
    return {
        "info": info,
        "messages": conversation(task),
        "trajectory_format": "mini-swe-agent-1",
        "instance_id": instance,
    } | changes


def swe_agent_log(task: str, **changes: Any) -> dict[str, Any]:
    """A `.traj` of SWE-agent: a demonstration, parts as content, tool calls."""
    history: list[dict[str, Any]] = [{"role": "user", "content": "Here is a demonstration.", "is_demo": True}]
    for message in conversation(task):
        if message["role"] == "assistant":
            said, _, command = message["content"].partition("\n```bash\n")
            call = {
                "function": {
                    "name": "bash",
                    "arguments": json.dumps({"command": command.removesuffix("\n```")}),
                }
            }
            history.append({"role": "assistant", "content": said, "tool_calls": [call], "agent": "main"})
        else:
            history.append(
                {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
            )
    return {
        "trajectory": [{}],
        "history": history,
        "info": {"submission": patch_of(task), "exit_status": "submitted"},
    } | changes


def write_rows(file: Path, rows: list[Any]) -> Path:
    """A jsonl file; a text is written as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def write_json(file: Path, value: Any) -> Path:
    """A file with one JSON value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def agreeing_judge(text: str, images: list[Any], seed: int) -> str:
    """Chooses the context that tells of the change's reason. The file that TRAJECTORY_KILL names holds after how many answers the
    process is killed, once."""
    flag = os.environ.get("TRAJECTORY_KILL", "")
    if flag and Path(flag).exists():
        left = int(Path(flag).read_text()) - 1
        Path(flag).write_text(str(left))
        if left < 0:
            Path(flag).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    answer = text.rpartition("Answer: ")[2]
    first = text.partition("Context A:")[2].partition("Context B:")[0]
    is_sign = "abs(" in answer
    return "Thinking.\n" + ("A" if (WORDS["sign"] in first) == is_sign else "B")


def doubting_judge(text: str, images: list[Any], seed: int) -> str:
    """Finds every pair ambiguous."""
    return "AMBIGUOUS"
