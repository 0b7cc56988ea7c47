"""`pairs edit` with a writer behind an endpoint: one that answers, one that is late, and ones that answer nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import ChatServer, Reply, said, serving
from tests.tiny_editors import blank_question, open_painter
from vlm_contextrl.data_recipes.edit import EditConfig, recipe, run
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import InputError
from vlm_contextrl.storage import write_rows

PROPOSAL = '{"instruction": "paint a square", "answer": "8"}'


@pytest.fixture
def endpoint() -> Iterator[ChatServer]:
    with serving(lambda request, number: (200, said(PROPOSAL))) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipe, "open_editor", open_painter)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_rows([blank_question(n) for n in range(3)], tmp_path / "questions", recipe="blank", config={})
    return tmp_path


def edit(endpoint: ChatServer, folder: Path, **settings: Any) -> dict[str, Any]:
    writer = {"endpoint": endpoint.url, "endpoint_model": "vlm", "retries": 0, **settings}
    config = EditConfig.model_validate({"writer": writer, "editor": {"path": "painter"}, "batch_rows": 1})
    return run(config, folder / "questions", folder / "out", Engine())


def test_an_endpoint_that_answers(endpoint: ChatServer, folder: Path) -> None:
    """Each question is one request with the picture and the text; the writer's name is in the provenance."""
    endpoint.reply = lambda request, number: (200, said(f"Here you are: {PROPOSAL}"))
    summary = edit(endpoint, folder)
    assert (summary["kept"], summary["rejects"]) == (3, 0)
    assert len(endpoint.requests) == 3
    picture, text = endpoint.requests[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "Right answer now: 7" in text["text"]
    assert endpoint.requests[0]["model"] == "vlm"


def test_nonsense_from_the_model_is_a_reject(endpoint: ChatServer, folder: Path) -> None:
    """The second of three replies is no object."""
    endpoint.reply = lambda request, number: (200, said("As a language model" if number == 2 else PROPOSAL))
    summary = edit(endpoint, folder)
    assert (summary["kept"], summary["rejected"]) == (2, {"writer_no_object": 1})
    (line,) = (folder / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith("writer_no_object: 'As a language model', expected")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            lambda request, number: (200, "<html>Welcome</html>"),
            r"answered '<html>Welcome</html>', expected choices\[0\]",
        ),
        (
            lambda request, number: (200, '{"choices": []}'),
            r"expected choices\[0\].message.content; is it OpenAI-compatible\?",
        ),
        (lambda request, number: (200, said(["8"])), r"expected choices\[0\].message.content"),
        (None, r"no answer within 2 s \(prompt edit:q001\)"),
    ],
)
def test_an_endpoint_that_fails_stops_the_run_and_loses_nothing(
    endpoint: ChatServer, folder: Path, reply: Reply | None, message: str
) -> None:
    """The first question works, the second fails in one line (None: is late); when the endpoint is mended, the run goes on with the
    second."""
    second = reply or endpoint.late
    endpoint.reply = lambda request, number: (200, said(PROPOSAL)) if number == 1 else second(request, number)
    with pytest.raises(InputError, match=message) as stopped:
        edit(endpoint, folder, timeout_s=30 if reply else 2)
    assert "\n" not in str(stopped.value)
    assert not (folder / "out").exists()
    endpoint.reply = lambda request, number: (200, said(PROPOSAL))
    summary = edit(endpoint, folder, timeout_s=30)
    assert (summary["inputs"], summary["kept"], summary["rejects"]) == (3, 3, 0)
    assert len(endpoint.requests) == 1 + 1 + 2
