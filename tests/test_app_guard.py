"""What stands before every request to the app, and the routes beside Gradio's: no file, no name of a file, nothing of others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.app_data import break_picture, colour_pair, square, write_pairs

pytest.importorskip("fastapi", reason="the app's routes need the extra `app`")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from vlm_contextrl.app.guard import Guard
from vlm_contextrl.app.server import Room, _add_routes, open_room
from vlm_contextrl.app.settings import AppSettings

PASSWORD = "correct horse \N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    folder = write_pairs(tmp_path_factory.mktemp("app") / "pairs", [colour_pair(n) for n in range(3)])
    break_picture(folder, "n2")
    opened = open_room(AppSettings(pairs=folder))
    yield opened
    opened.close()


def client(
    room: Room, host: str = "127.0.0.1", password: str = "", base: str = "http://127.0.0.1:7860"
) -> TestClient:
    web = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(web, room)

    @web.post("/gradio_api/run/predict")
    def change() -> str:
        return "changed"

    return TestClient(Guard(web, host=host, password=password), base_url=base)


def authorization(password: str, user: str = "ada") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_pixels_served_are_pixels_stored(room: Room) -> None:
    key = room.catalogue.keys[1]
    for side, colour in (("context", "green"), ("confounder", "blue")):
        answer = client(room).get(f"/image/{key}/{side}")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).tobytes() == square(colour).tobytes()


@pytest.mark.parametrize(
    "path",
    [
        "/image/n1/context",  # an id is no key
        "/image/{key}/query",
        "/image/{key}/context.png",
        "/image/{key}/",
        "/image/{key}",
        "/image/{broken}/context",
        "/image/../../etc/passwd",
        "/image/..%2F..%2Fetc%2Fpasswd/context",
        "/image/%2Fetc%2Fpasswd/context",
        "/image//etc/passwd/context",
        "/image/{key}%00/context",
        "/image/http:%2F%2F127.0.0.1%2F/context",
        "/image/file:%2F%2F%2Fetc%2Fpasswd/context",
        "/openapi.json",
        "/docs",
    ],
)
def test_nothing_else_is_served(room: Room, path: str) -> None:
    known = {"{key}": room.catalogue.keys[1], "{broken}": room.catalogue.keys[2]}
    for name, value in known.items():
        path = path.replace(name, value)
    answer = client(room).get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_decisions_are_whole_lines(room: Room) -> None:
    assert client(room).get("/decisions.jsonl").content == b""
    room.log.decide("ada", ["n0"], "accept")
    with room.log.file.open("ab") as file:
        file.write(b'{"torn')
    answer = client(room).get("/decisions.jsonl")
    assert answer.content.endswith(b"}\n")
    assert b"torn" not in answer.content
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7", ""]
)
def test_on_the_loopback_other_host_names_are_refused(room: Room, name: str) -> None:
    """A page of another site whose name was made to point here (DNS rebinding)."""
    assert client(room).get("/decisions.jsonl", headers={"Host": f"{name}:7860"}).status_code == 403


@pytest.mark.parametrize("name", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "localhost"])
def test_own_host_names(room: Room, name: str) -> None:
    assert client(room).get("/decisions.jsonl", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:7860.evil.example", "http://127.0.0.1:9999"]
)
def test_changes_from_pages_of_others_are_refused(room: Room, origin: str) -> None:
    assert client(room).post("/gradio_api/run/predict", headers={"Origin": origin}).status_code == 403


def test_changes_from_the_own_page(room: Room) -> None:
    assert (
        client(room).post("/gradio_api/run/predict", headers={"Origin": "http://127.0.0.1:7860"}).status_code
        == 200
    )
    assert client(room).post("/gradio_api/run/predict").status_code == 200  # not a browser


@pytest.mark.parametrize(
    "path", ["/image/{key}/context", "/decisions.jsonl", "/", "/gradio_api/info", "/gradio_api/run/predict"]
)
def test_without_the_password_nothing_is_served(room: Room, path: str) -> None:
    path = path.replace("{key}", room.catalogue.keys[1])
    web = client(room, "0.0.0.0", PASSWORD)
    wrong = [
        {},
        authorization("wrong"),
        authorization(""),
        authorization(PASSWORD[:-1]),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()},
    ]
    for headers in wrong:
        answer = web.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert answer.text == "password needed"


def test_with_the_password(room: Room) -> None:
    web = client(room, "0.0.0.0", PASSWORD, base="http://192.168.0.7:7860")
    assert web.get("/decisions.jsonl", headers=authorization(PASSWORD)).status_code == 200
    assert (
        web.post(
            "/gradio_api/run/predict", headers={**authorization(PASSWORD), "Origin": "http://evil.example"}
        ).status_code
        == 403
    )


def test_policy_is_on_every_answer(room: Room) -> None:
    for path in ("/decisions.jsonl", "/nothing"):
        headers = client(room).get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_there_are_no_websockets(room: Room) -> None:
    """As an ASGI server calls it: refused at once, whoever asks."""
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def unreachable(*_: object) -> None:
        raise AssertionError("passed on")

    guard = Guard(unreachable, host="127.0.0.1")
    with ThreadPoolExecutor() as threads:  # a browser of other tests keeps a loop running in this thread
        threads.submit(
            lambda: asyncio.run(guard({"type": "websocket", "headers": []}, unreachable, send))
        ).result()  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_symbolic_link_does_not_lead_out_of_an_image_folder(tmp_path: Path) -> None:
    """`read_pairs` refuses the row; the app shows it as broken and serves nothing of it."""
    secret = tmp_path / "secret.png"
    square("red").save(secret)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    square("green").save(folder / "b.png")
    square("blue").save(folder / "c.png")
    row = {"query": "Which?", "answer": "red", "licence": "CC0-1.0", "confounder_file_name": "b.png"}
    names = {"good": "c.png", "link": "link.png", "up": "../secret.png", "absolute": str(secret),
             "web": "http://127.0.0.1/x.png", "file": f"file://{secret}"}  # fmt: skip
    lines = [json.dumps({**row, "id": name, "context_file_name": file}) for name, file in names.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    room = open_room(AppSettings(pairs=folder))
    web = client(room)
    for name in names:
        index = room.catalogue.by_id[name]
        answer = web.get(f"/image/{room.catalogue.keys[index]}/context")
        assert answer.status_code == (200 if name == "good" else 404)
        assert (index in room.catalogue.faults) == (name != "good")
    room.close()
