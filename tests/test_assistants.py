"""Assistants: a local model, a function, and an endpoint against an HTTP server on this machine that keeps to a script."""

from __future__ import annotations

import base64
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_models import noise_image
from vlm_contextrl.config import load_config
from vlm_contextrl.data_recipes import assistants
from vlm_contextrl.data_recipes.assistants import (
    AssistantSettings,
    Prompt,
    Refusal,
    assistant,
    seed_of,
)
from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.pairs import EncodedImage

Reply = tuple[int, str]  # status and body


class Server:
    """An OpenAI-compatible server for one model. `replies` are given in turn, then it says what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply | None] = []  # None: no answer before the test is over
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.patience = threading.Event()
        self.trickles = False
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(request)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    reply = (
                        outer.replies.pop(0)
                        if outer.replies
                        else said(request["messages"][0]["content"][-1]["text"])
                    )
                if outer.trickles:
                    self.send_response(200)
                    self.send_header("Content-Length", "10000")
                    self.end_headers()
                    while not outer.patience.wait(0.1):
                        try:
                            self.wfile.write(b" ")
                        except OSError:  # the one who asked has gone
                            return
                if reply is None:
                    outer.patience.wait(600)
                    return
                status, body = reply
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


def said(text: str | None) -> Reply:
    return 200, json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.patience.set()
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited between tries."""
    found: list[float] = []
    monkeypatch.setattr(assistants.time, "sleep", found.append)
    return found


def ask(server: Server, prompts: Sequence[Prompt], n: int = 1, **changed: Any) -> list[list[str]]:
    settings = AssistantSettings.model_validate(
        {"endpoint": server.url, "endpoint_model": "m", "seed": 3, **changed}
    )
    return pickle.loads(pickle.dumps(assistant(settings))).ask(prompts, n)  # type: ignore[no-any-return]  # as it travels to a worker


def encoded(seed: int = 0) -> EncodedImage:
    return EncodedImage.from_image(noise_image(seed))


def test_the_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, images before the text, limits and a seed of its own for every sample; the key goes into the header."""
    monkeypatch.setenv("MY_KEY", "secret\n")
    prompt = Prompt("row 1", "Which?", (encoded(0), encoded(1)))
    settings = {"api_key_variable": "MY_KEY", "max_new_tokens": 9, "temperature": 0.5, "requests_at_once": 1}
    assert ask(server, [prompt], 2, **settings) == [["Which?", "Which?"]]
    assert server.paths == ["/v1/chat/completions"] * 2
    assert server.headers[0]["Authorization"] == "Bearer secret"
    first, second = server.requests
    assert set(first) == {"model", "messages", "max_tokens", "temperature", "seed"}
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("m", 9, 0.5)
    (message,) = first["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    for part, image in zip(message["content"], prompt.images, strict=False):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == image.data
    asked = AssistantSettings(function="a:b", seed=3)
    assert [r["seed"] for r in (first, second)] == [seed_of(asked, "row 1", i) % 2**31 for i in range(2)]
    assert first["seed"] != second["seed"]


def test_no_key_no_header(server: Server) -> None:
    ask(server, [Prompt("a", "Which?")])
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("at_once", [1, 8])
def test_answers_stand_where_their_prompts_stood(server: Server, at_once: int) -> None:
    prompts = [Prompt(f"p{i}", f"text {i}") for i in range(20)]
    assert ask(server, prompts, 2, requests_at_once=at_once) == [[f"text {i}"] * 2 for i in range(20)]
    assert ask(server, [], 2) == []


def test_tries_again(server: Server, pauses: list[float]) -> None:
    """Out of order, too many requests, then an answer, after 1 and 2 seconds."""
    server.replies = [(503, "starting"), (429, "slow down"), said("here")]
    assert ask(server, [Prompt("a", "Which?")]) == [["here"]]
    assert pauses == [1.0, 2.0]
    assert len(server.requests) == 3


def test_gives_up(server: Server, pauses: list[float]) -> None:
    """One try and two more; the message tells where, what, which prompt and what to do, in one line."""
    server.replies = [(500, "out of\nmemory")] * 3
    with pytest.raises(
        InputError, match=r"/v1/chat/completions: status 500: out of memory \(prompt a\); mend"
    ) as refused:
        ask(server, [Prompt("a", "Which?")], retries=2)
    assert "\n" not in str(refused.value)
    assert (pauses, len(server.requests)) == ([1.0, 2.0], 3)


@pytest.mark.parametrize(
    ("status", "body"), [(400, "no such parameter"), (401, "no key"), (404, '{"error": "no such model"}')]
)
def test_what_trying_again_does_not_mend(server: Server, pauses: list[float], status: int, body: str) -> None:
    """A 400 could be the prompt's fault, so another one is tried before the run stops."""
    server.replies = [(status, body)] * 2
    with pytest.raises(InputError, match=rf"status {status}: .* \(prompt a\)"):
        ask(server, [Prompt("a", "Which?")])
    assert (pauses, len(server.requests)) == ([], 2 if status == 400 else 1)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_stops_nothing(server: Server, pauses: list[float], status: int) -> None:
    """The second prompt is too long for the server, which takes the others; so is the first of the next run, with nothing answered yet."""
    refused = Refusal(f"status {status}: too long")
    server.replies = [said("yes"), (status, "too long"), said("no")]
    prompts = [Prompt("a", "Which?"), Prompt("b", "Which?"), Prompt("c", "Which?")]
    assert ask(server, prompts, requests_at_once=1) == [["yes"], refused, ["no"]]
    server.replies = [(status, "too long"), said("Yes.")]
    server.requests.clear()
    assert ask(server, prompts[:1]) == [refused]
    assert [r["messages"][0]["content"][-1]["text"] for r in server.requests] == [
        "Which?",
        "Answer with the word yes.",
    ]
    assert pauses == []


def test_patience_is_for_the_whole_reply(server: Server, pauses: list[float]) -> None:
    """A byte every 0.1 s is no answer, though each of them comes in time."""
    server.trickles = True
    with pytest.raises(InputError, match=r"no answer within 0.5 s \(prompt a\)"):
        ask(server, [Prompt("a", "Which?")], retries=0, timeout_s=0.5)


def test_time_out(server: Server, pauses: list[float]) -> None:
    server.replies = [None, None]
    with pytest.raises(InputError, match=r"no answer within 0.5 s \(prompt a\)"):
        ask(server, [Prompt("a", "Which?")], retries=1, timeout_s=0.5)
    assert pauses == [1.0]
    server.replies = [None]
    assert ask(server, [Prompt("a", "Which?")], retries=1, timeout_s=2) == [["Which?"]]


def test_nobody_there(server: Server, pauses: list[float]) -> None:
    settings = AssistantSettings(endpoint="http://127.0.0.1:9/v1", endpoint_model="m", retries=1)
    with pytest.raises(InputError, match="127.0.0.1:9/v1/chat/completions: .*(refused|failed)") as refused:
        assistant(settings).ask([Prompt("a", "Which?")])
    assert "\n" not in str(refused.value)
    assert pauses == [1.0]


@pytest.mark.parametrize(
    "body",
    ["<html>hello</html>", "", "[]", "{}", '{"choices": []}', '{"choices": [{"text": "old"}]}', '{"choices": [{"message": {}}]}',
     '{"choices": [{"message": {"content": [1, 2]}}]}', '{"choices": null}', "\xff"],
)  # fmt: skip
def test_nonsense_is_never_an_answer(server: Server, body: str) -> None:
    server.replies = [(200, body)]
    with pytest.raises(InputError, match=r"answered .*, expected choices\[0\].message.content") as refused:
        ask(server, [Prompt("a", "Which?")])
    assert "\n" not in str(refused.value)


def test_no_content_is_no_answer(server: Server) -> None:
    """The protocol's null: thinking that used up the limit, or a refusal. Stopping there would stop the run for good."""
    server.replies = [said(None)]
    assert ask(server, [Prompt("a", "Which?")]) == [[""]]


def test_the_first_error_ends_it(server: Server) -> None:
    """Of 200 prompts those that wait are not asked any more."""
    server.replies = [(400, "no")] * 300
    with pytest.raises(InputError, match="status 400: no .prompt p0"):
        ask(server, [Prompt(f"p{i}", "Which?") for i in range(200)], requests_at_once=2)
    assert len(server.requests) < 200


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_image_format_is_named(server: Server, name: str) -> None:
    import io

    buffer = io.BytesIO()
    noise_image(0).save(buffer, name)
    ask(server, [Prompt("a", "Which?", (EncodedImage(buffer.getvalue()),))])
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith(f"data:image/{name.lower()};base64,")


def test_a_url_that_is_none(pauses: list[float]) -> None:
    settings = AssistantSettings(endpoint="http://[::1", endpoint_model="m")
    with pytest.raises(ConfigError, match=r"endpoint 'http://\[::1': .*expected a URL"):
        assistant(settings).ask([Prompt("a", "Which?")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "names none; expected exactly one of model, endpoint and function"),
        (["model.path=tinyvl", "function=a:b"], "names model and function"),
        (["endpoint=http://localhost/v1"], "endpoint_model is empty"),
        (["endpoint=localhost:8000", "endpoint_model=m"], "expected a URL such as"),
        (["function=a:b", "timeout_s=0"], "timeout_s"),
    ],
)
def test_settings_that_make_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(AssistantSettings, None, overrides)


def test_patience_settles_no_answer() -> None:
    """What a run's plan and manifest tell: a stopped run goes on when only these change."""
    settings: dict[str, Any] = {"endpoint": "http://x/v1", "endpoint_model": "m"}
    patient = {"timeout_s": 9, "retries": 9, "requests_at_once": 9, "api_key_variable": "KEY"}
    dumps = [AssistantSettings.model_validate(settings | more).model_dump() for more in ({}, patient)]
    assert dumps[0] == dumps[1]
    assert AssistantSettings.model_validate(settings | patient).timeout_s == 9


def test_revisions_for_provenance(tmp_path: Path) -> None:
    """A folder's by its files, a function's by its source; an endpoint tells none."""

    def revision(**settings: Any) -> str | None:
        return assistant(AssistantSettings.model_validate(settings)).revision

    tinyvl = revision(model={"path": "tinyvl"})
    assert tinyvl is not None
    assert re.fullmatch("folder-[0-9a-f]{16}", tinyvl)
    (tmp_path / "adapter_config.json").write_text("{}")
    found = [tinyvl]
    for last in (b"a", b"b"):  # trained further: only the weights have changed
        (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1_000_000) + last)
        found.append(revision(model={"path": "tinyvl", "adapter": str(tmp_path)}))
    assert len(set(found)) == 3
    assert str(revision(function="tests.tiny_editors:look")).startswith("source-")
    assert revision(endpoint="http://x/v1", endpoint_model="m") is None


def test_names_for_provenance() -> None:
    def name(**settings: Any) -> str:
        return AssistantSettings.model_validate(settings).name

    assert name(model={"path": "M"}) == "M"
    assert name(model={"path": "M", "adapter": "A"}) == "M with A"
    assert name(function="a:b") == "a:b"
    assert name(endpoint="http://x/v1", endpoint_model="m") == "m at http://x/v1"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], AssistantSettings]:
    """Settings that name `answer` of a new module with this name and source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> AssistantSettings:
        (tmp_path / f"{name}.py").write_text(source)
        return AssistantSettings(function=f"{name}:answer", seed=3)

    return write


def test_a_function_gets_text_pictures_and_seed(script: Callable[[str, str], AssistantSettings]) -> None:
    """Every sample has a seed of its own, a function of the key alone."""
    settings = script(
        "told", "def answer(text, images, seed):\n    return f'{text} {[i.size for i in images]} {seed}'\n"
    )
    prompts = [Prompt("a", "Which?", (encoded(),)), Prompt("b", "What?")]
    found = assistant(settings).ask(prompts, 2)
    assert found[0] == [f"Which? [(56, 56)] {seed_of(settings, 'a', i)}" for i in range(2)]
    assert found[1] == [f"What? [] {seed_of(settings, 'b', i)}" for i in range(2)]
    assert assistant(settings).ask(prompts[::-1], 2) == found[::-1]
    assert len({answer for answers in found for answer in answers}) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def answer(text, images, seed):\n    return 1 / 0\n",
            "prompt a: ZeroDivisionError: division by zero",
        ),
        ("def answer(text, images, seed):\n    return None\n", "prompt a: returned None, expected a text"),
        ("def answer(text):\n    return ''\n", "prompt a: TypeError: "),
        ("answer = 3\n", "is a int, expected a function"),
        ("other = 3\n", "no attribute 'answer'; expected package.module:name"),
    ],
)
def test_a_function_that_does_not_do(
    source: str, message: str, script: Callable[[str, str], AssistantSettings], request: pytest.FixtureRequest
) -> None:
    name = f"script_{abs(hash(source))}"
    with pytest.raises(InputError, match=message) as refused:
        assistant(script(name, source)).ask([Prompt("a", "Which?")])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["no_such_module:answer", "json", ":", "json:", "a b:c"])
def test_no_such_function(name: str) -> None:
    with pytest.raises(ConfigError, match="expected package.module:name"):
        assistant(AssistantSettings(function=name)).ask([Prompt("a", "Which?")])


def test_the_embedded_model_answers() -> None:
    """Greedy or sampled, an answer depends on the prompt alone, and each sample is drawn by itself."""
    image = EncodedImage.from_image(Image.new("RGB", (112, 112), "white"))
    prompts = [
        Prompt("a", "How many circles are there?", (image,)),
        Prompt("b", "Is there a red square?", (encoded(),)),
    ]
    settings = AssistantSettings.model_validate({"model": {"path": "tinyvl"}, "max_new_tokens": 6})
    greedy = assistant(settings).ask(prompts, 2)
    assert all(len(answers) == 2 and answers[0] == answers[1] for answers in greedy)
    asked = assistant(settings.model_copy(update={"temperature": 2.0}))
    sampled = asked.ask(prompts, 8)
    assert len({*sampled[0], *sampled[1]}) > 2
    assert asked.ask(prompts[1:], 8) == sampled[1:]
    assert pickle.loads(pickle.dumps(asked)).ask(prompts[:1], 8) == sampled[:1]
