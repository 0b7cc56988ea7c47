"""What a JSON value of an agent's log means: one `Trajectory`, whichever agent wrote it.

    SWE-agent       {trajectory, history, info: {submission}, replay_config}   swe-agent.com/latest/usage/trajectories; `.traj`
    mini-swe-agent  {messages, info: {submission}, trajectory_format, instance_id}  `.traj.json`
    SWE-smith       {messages (a list, or JSON in a string), instance_id, traj_id, patch, resolved, model}   rows of the data set

Messages of all three: {role, content (a text, or parts with `text`), tool_calls}. The first message of the user is the task; what the
agent did and saw follows. The issue is what stands between <pr_description> or <issue> tags, else the whole task. A patch that has no
field of its own is the last diff that a message shows. Ids of SWE-smith tell repository and commit: OWNER__NAME.COMMIT.KIND__HASH;
those of SWE-bench the repository: OWNER__NAME-NUMBER. Left out: rewards, costs, and the state of the shell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vlm_contextrl.errors import DataError

_TAGGED = re.compile(r"<(pr_description|issue|problem_statement)>\s*(.*?)\s*</\1>", re.DOTALL)
_LEAD = re.compile(r"\A(?:Consider the following PR description:|ISSUE:)\s*")
_SMITH_ID = re.compile(r"(?P<owner>[\w-]+?)__(?P<name>[\w.-]+)\.(?P<commit>[0-9a-f]{7,40})\.[\w.-]+")
_BENCH_ID = re.compile(r"(?P<owner>[\w.-]+?)__(?P<name>[\w.-]+)-\d+")
_DIFF = re.compile(r"^diff --git .*", re.MULTILINE | re.DOTALL)


class Message(NamedTuple):
    """agent: written by it; else what it was shown. edit: the agent made its change here (known once the patch is looked for)."""

    agent: bool
    text: str
    edit: bool = False


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """id: of the run; instance: of the task. Texts are empty, and resolved is None, where the log does not tell."""

    id: str
    where: str
    instance: str
    repository: str = ""
    commit: str = ""
    issue: str = ""
    messages: tuple[Message, ...] = ()
    patch: str = ""
    resolved: bool | None = None
    licence: str = ""
    model: str = ""
    format: str = ""


def read_trajectory(value: object, name: str, where: str) -> Trajectory:
    """The trajectory in a JSON value; name: its id when the value has none. DataError for other JSON."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: is a JSON {type(value).__name__}, expected an object")
    if isinstance(value.get("trajectory"), list):
        found = _swe_agent(value, name, where)
    elif "messages" in value and (isinstance(value.get("info"), dict) or "trajectory_format" in value):
        found = _mini(value, name, where)
    elif "messages" in value:
        found = _swe_smith(value, name, where)
    else:
        keys = ", ".join(map(str, list(value)[:8])) or "none"
        raise DataError(f"{where}: keys {keys}; expected messages, or trajectory and info")
    for text in (found.id, found.issue, found.patch, *(message.text for message in found.messages)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: holds half a character (a lone surrogate), expected Unicode text"
            ) from error
    patch = found.patch if found.patch.strip() else _last_diff(found.messages)
    known = _SMITH_ID.fullmatch(found.instance) or _BENCH_ID.fullmatch(found.instance)
    parts: dict[str, str] = known.groupdict() if known else {}
    return replace(
        found,
        patch=_newlines(patch),
        repository=found.repository or (f"{parts['owner']}/{parts['name']}" if parts else ""),
        commit=found.commit or parts.get("commit", ""),
        licence=found.licence or _text(value, "licence", "license"),
    )


def with_instance(trajectory: Trajectory, told: Mapping[str, Any]) -> Trajectory:
    """The trajectory with what a task description tells; the description wins, for it is the task's own."""
    resolved = told.get("resolved")
    return replace(
        trajectory,
        repository=_text(told, "repo") or trajectory.repository,
        commit=_text(told, "base_commit") or trajectory.commit,
        issue=_newlines(_text(told, "problem_statement")) or trajectory.issue,
        resolved=resolved
        if isinstance(resolved, bool) and trajectory.resolved is None
        else trajectory.resolved,
        licence=trajectory.licence or _text(told, "licence", "license"),
    )


def _swe_smith(value: Mapping[str, Any], name: str, where: str) -> Trajectory:
    messages = value["messages"]
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: messages is a text that is not JSON ({error})") from error
    issue, work = _conversation(messages, where)
    run = _text(value, "traj_id", "id") or name
    return Trajectory(
        id=run,
        where=where,
        instance=_text(value, "instance_id") or run,
        issue=issue,
        messages=work,
        patch=_text(value, "patch", "model_patch"),
        resolved=value["resolved"] if isinstance(value.get("resolved"), bool) else None,
        model=_text(value, "model"),
        format="SWE-smith",
    )


def _mini(value: Mapping[str, Any], name: str, where: str) -> Trajectory:
    info = _mapping(value.get("info"))
    issue, work = _conversation(value["messages"], where)
    model = _mapping(_mapping(info.get("config")).get("model"))
    instance = _text(value, "instance_id") or name
    return Trajectory(
        id=instance,
        where=where,
        instance=instance,
        issue=issue,
        messages=work,
        patch=_text(info, "submission"),
        model=_text(model, "model_name"),
        format="mini-swe-agent",
    )


def _swe_agent(value: Mapping[str, Any], name: str, where: str) -> Trajectory:
    history = value.get("history")
    if isinstance(history, list):
        shown = [entry for entry in history if not (isinstance(entry, dict) and entry.get("is_demo"))]
        issue, work = _conversation(shown, where)
    else:
        issue, work = "", _steps(value["trajectory"], where)
    config = value.get("replay_config")
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise DataError(f"{where}: replay_config is a text that is not JSON ({error})") from error
    problem = _mapping(_mapping(config).get("problem_statement"))
    repository = _mapping(_mapping(_mapping(config).get("env")).get("repo"))
    commit = _text(repository, "base_commit")
    return Trajectory(
        id=name,
        where=where,
        instance=_text(problem, "id") or name,
        commit=commit if re.fullmatch(r"[0-9a-f]{7,40}", commit) else "",
        issue=_newlines(_text(problem, "text")) or issue,
        messages=work,
        patch=_text(_mapping(value.get("info")), "submission"),
        format="SWE-agent",
    )


def _steps(steps: Sequence[Any], where: str) -> tuple[Message, ...]:
    work = []
    for position, step in enumerate(steps):
        if not isinstance(step, dict):
            raise DataError(f"{where}: trajectory[{position}] is a {type(step).__name__}, expected an object")
        said, action = _text(step, "response", "thought"), _text(step, "action")
        work.append(Message(True, said if action.strip() in said else f"{said}\n{action}"))
        work.append(Message(False, _text(step, "observation")))
    return _tidy(work)


def _conversation(messages: object, where: str) -> tuple[str, tuple[Message, ...]]:
    """The issue, and the messages after the task."""
    if not isinstance(messages, list):
        raise DataError(f"{where}: messages is a {type(messages).__name__}, expected a list")
    task: str | None = None
    work = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f"{where}: messages[{position}] has no role; expected objects with role and content"
            )
        text = _content(message, f"{where}: messages[{position}]")
        if message["role"] == "system":
            continue
        if task is None and message["role"] == "user":
            task = text
            continue
        work.append(Message(message["role"] == "assistant", text))
    return _issue_of(_newlines(task or "")), _tidy(work)


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str | None):
            raise DataError(f"{where}: content holds a {type(text).__name__}, expected a text")
        texts.append(text or "")
    for call in message.get("tool_calls") or ():
        function = _mapping(_mapping(call).get("function"))
        texts.append(f"{_text(function, 'name')} {_arguments(function.get('arguments'))}")
    return "\n".join(text for text in texts if text)


def _arguments(arguments: object) -> str:
    """Arguments of a tool call, one per line, as the tool gets them: without JSON's escapes."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return str(arguments)
    if not isinstance(arguments, dict):
        return "" if arguments is None else str(arguments)
    return "\n".join(f"{key}: {value}" for key, value in arguments.items())


def _issue_of(task: str) -> str:
    tagged = _TAGGED.search(task)
    return _LEAD.sub("", tagged[2] if tagged else task).strip()


def _last_diff(messages: Sequence[Message]) -> str:
    for message in reversed(messages):
        if not message.agent and (found := _DIFF.search(message.text)):
            return found.group()
    return ""


def _tidy(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(Message(m.agent, text) for m in messages if (text := _newlines(m.text).strip("\n")).strip())


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Mapping[str, Any], *keys: str) -> str:
    return next((value[key] for key in keys if isinstance(value.get(key), str) and value[key]), "")
