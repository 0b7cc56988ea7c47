"""The whole application under attack, as it is served: nothing read, stored, asked of others or run that should not be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.app_browser import serving
from tests.app_data import colour_pair, write_pairs
from vlm_contextrl.app.settings import MAX_UPLOAD

if TYPE_CHECKING:
    from vlm_contextrl.app.server import Room

pytestmark = pytest.mark.slow
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Room, str]]:
    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    folder = write_pairs(tmp_path_factory.mktemp("attacked") / "pairs", [colour_pair(n) for n in range(3)])
    (folder.parent / "secret.txt").write_text("secret of the machine")
    room = open_room(AppSettings(pairs=folder, model="tinyvl"))
    with serving(application(room)) as address:
        yield room, address
    room.close()


@pytest.fixture
def web(served: tuple[Room, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served[1], timeout=30) as client:
        yield client


def config(web: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = web.get("/config").json()
    return found


def test_the_page_asks_nothing_of_others(web: httpx.Client) -> None:
    page = web.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    found = config(web)
    assert found["analytics_enabled"] is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not found.get("run_history")


@pytest.mark.parametrize(
    "prefix",
    ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/stream/", "/static/", "/assets/"],
)
@pytest.mark.parametrize(
    "target",
    ["{secret}", "{pairs}/manifest.json", "{log}", "/etc/passwd", "../../../../etc/passwd", "..%2F..%2F..%2Fetc%2Fpasswd",
     "%2Fetc%2Fpasswd", "http://127.0.0.1:1/x", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "/proc/self/environ",
     "//etc/passwd", "....//....//etc/passwd"],
)  # fmt: skip
def test_no_file_is_served(served: tuple[Room, str], web: httpx.Client, prefix: str, target: str) -> None:
    room, _ = served
    room.log.decide("ada", ["n0"], "skip")
    names = {
        "secret": room.settings.pairs.parent / "secret.txt",
        "pairs": room.settings.pairs,
        "log": room.log.file,
    }
    answer = web.get(prefix + target.format(**names))
    assert answer.status_code in (400, 403, 404, 405, 422)
    for told in ("root:", "secret of the machine", "content_hash", '"decision"', "PATH="):
        assert told not in answer.text


def test_there_is_no_named_endpoint(web: httpx.Client) -> None:
    """Every event is private: none is listed, and none answers under a name that Gradio would give it."""
    assert web.get("/gradio_api/info").status_code == 404
    dependencies = config(web)["dependencies"]
    assert dependencies
    assert {one["api_visibility"] for one in dependencies} == {"private"}
    names = {str(one["api_name"]) for one in dependencies}
    for name in (*names, "lambda", "opened", "handler", "_ask", "_ask_own", "_export", "decide"):
        for path in (
            f"/gradio_api/call/{name}",
            f"/gradio_api/run/{name}",
            f"/gradio_api/api/{name}",
            f"/api/{name}",
        ):
            answer = web.post(path, json={"data": []})
            assert answer.status_code >= 400, f"{path} answered {answer.text}"
    for path in (
        "/monitoring",
        "/gradio_api/mcp/sse",
        "/docs",
        "/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/openapi.json",
    ):
        answer = web.get(path)
        assert answer.status_code >= 400 or "paths" not in answer.text, path


def event(web: httpx.Client, label: str) -> int:
    """The number of the event that is sent by the component with this element id."""
    found = config(web)
    target = next(one["id"] for one in found["components"] if one["props"].get("elem_id") == label)
    return next(
        i
        for i, one in enumerate(found["dependencies"])
        if [target, "click"] in [list(t) for t in one["targets"]]
    )


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{secret}",
        "http://127.0.0.1:{port}/decisions.jsonl",
        "http://169.254.169.254/",
        "../../etc/passwd",
    ],
)
def test_an_upload_field_takes_no_path_and_no_address(
    served: tuple[Room, str], web: httpx.Client, path: str
) -> None:
    """A request made by hand names a file of the machine, or an address, where the page would name an upload."""
    room, address = served
    path = path.format(secret=room.settings.pairs.parent / "secret.txt", port=address.rpartition(":")[2])
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    number = event(web, "ask-own")
    joined = web.post(
        "/gradio_api/queue/join",
        json={
            "data": ["Which?", "red", "", file, file],
            "fn_index": number,
            "session_hash": "attack",
            "event_data": None,
        },
    )
    if joined.status_code != 200:
        assert "root:" not in joined.text
        return
    said = ""
    with web.stream("GET", "/gradio_api/queue/data", params={"session_hash": "attack"}) as answer:
        for line in answer.iter_lines():
            said += line
            if "process_completed" in line or "close_stream" in line:
                break
    assert "process_completed" in said
    for told in ("root:", "secret of", '"decision"', "asked in both"):
        assert told not in said
    last = json.loads(said[said.rindex("data:") + 5 :] if said.count("data:") else "{}")
    assert last.get("success") is False or "failed" in said


def test_an_upload_that_is_too_large_is_refused_and_not_kept(web: httpx.Client) -> None:
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    assert MAX_UPLOAD == "20mb"
    before = kept(uploads)
    answer = web.post("/gradio_api/upload", files={"files": ("big.png", b"\0" * (21 * 1024 * 1024))})
    assert answer.status_code in (400, 413, 500)
    assert kept(uploads) <= before + 1024 * 1024


def test_names_of_uploads_lead_nowhere(web: httpx.Client, tmp_path: Path) -> None:
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    before = escaped(uploads.parent)
    for name in (
        "../../escaped.png",
        "/tmp/escaped.png",
        "..\\escaped.png",
        "<script>alert(1)</script>.png",
        "a" * 300 + ".png",
    ):
        answer = web.post("/gradio_api/upload", files={"files": (name, b"data")})
        if answer.status_code == 200:
            (path,) = answer.json()
            assert Path(path).resolve().is_relative_to(uploads)
    assert escaped(uploads.parent) == before
    assert (uploads.stat().st_mode & 0o077) == 0  # of this user only


def escaped(folder: Path) -> dict[Path, int]:
    """When each of the files was written; other people's may be there."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("escaped*")}


def kept(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_requests_of_other_sites_are_refused(web: httpx.Client) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/predict"):
            assert web.post(path, json={"data": []}, headers=headers).status_code == 403
    answer = web.get("/config", headers={"Origin": "http://evil.example"})
    assert answer.headers.get("access-control-allow-origin") in (None, "")


def test_without_the_password_there_is_nothing(tmp_path: Path) -> None:
    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    room = open_room(
        AppSettings(
            pairs=write_pairs(tmp_path / "pairs", [colour_pair(0)]), host="0.0.0.0", password=PASSWORD
        )
    )
    key = room.catalogue.keys[0]
    paths = ["/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", f"/image/{key}/context", "/decisions.jsonl",
             "/pages/dataset", "/pages/run", "/theme.css", "/login", "/gradio_api/file=/etc/passwd"]  # fmt: skip
    with serving(application(room)) as address, httpx.Client(base_url=address) as client:
        for path in paths:
            assert client.get(path).status_code == 401, path
            assert client.get(path, auth=("ada", "wrong password")).status_code == 401, path
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 401
        assert client.get("/config", auth=("ada", PASSWORD)).status_code == 200
        assert client.get(f"/image/{key}/context", auth=("ada", PASSWORD)).status_code == 200
    room.close()
