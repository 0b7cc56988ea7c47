"""`vlm-contextrl app` and the Space: what is refused before anything is served, in one line, and what is handed on."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.app_data import colour_pair, write_pairs
from vlm_contextrl.app import server
from vlm_contextrl.app.app import settings_from
from vlm_contextrl.app.settings import AppSettings
from vlm_contextrl.cli import main
from vlm_contextrl.errors import InputError

PASSWORD = "correct horse"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", [colour_pair(0)])


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[AppSettings]:
    """What would have been served."""
    served: list[AppSettings] = []
    monkeypatch.setattr(server, "serve", lambda settings, *_: served.append(settings))
    monkeypatch.delenv("VLM_CONTEXTRL_PASSWORD", raising=False)
    return served


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vlm-contextrl", "app", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        main()
    return int(exited.value.code or 0)


def test_defaults(monkeypatch: pytest.MonkeyPatch, handed_on: list[AppSettings], folder: Path) -> None:
    assert call(monkeypatch, "--pairs", folder) == 0
    assert handed_on == [AppSettings(pairs=folder)]
    assert (handed_on[0].host, handed_on[0].port, handed_on[0].password) == ("127.0.0.1", 7860, "")


def test_another_address_needs_a_password(
    monkeypatch: pytest.MonkeyPatch,
    handed_on: list[AppSettings],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "--pairs", folder, "--host", "0.0.0.0") == 2
    assert capsys.readouterr().err.startswith("error: --host 0.0.0.0: other machines could reach the app")
    assert not handed_on
    monkeypatch.setenv("VLM_CONTEXTRL_PASSWORD", PASSWORD)
    assert call(monkeypatch, "--pairs", folder, "--host", "0.0.0.0") == 0
    assert handed_on[0].password == PASSWORD


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_dataset_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert call(monkeypatch, "--pairs", tmp_path / name, "--port", port) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / name}: ")
    assert len(said.splitlines()) == 1


def test_a_port_in_use_is_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert call(monkeypatch, "--pairs", folder, "--port", port) == 2
    assert f"--port {port}: cannot be listened on" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from vlm_contextrl.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "gradio", None)
    room = server.open_room(AppSettings(pairs=folder))
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[app\]"):
        server.application(room)
    room.close()


def test_space_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, Any] = {"VLM_CONTEXTRL_PAIRS": str(folder), "VLM_CONTEXTRL_MODEL": "tinyvl"}
    monkeypatch.delenv("VLM_CONTEXTRL_PASSWORD", raising=False)
    with pytest.raises(InputError, match="expected a password"):
        settings_from(variables)
    monkeypatch.setenv("VLM_CONTEXTRL_PASSWORD", PASSWORD)
    settings = settings_from(variables)
    assert (settings.pairs, settings.model, settings.host, settings.port) == (
        folder,
        "tinyvl",
        "0.0.0.0",
        7860,
    )
    with pytest.raises(InputError, match="VLM_CONTEXTRL_PAIRS is not set"):
        settings_from({})


def test_the_space_file_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    """As a Space runs it: the file alone, in a folder of its own."""
    file = tmp_path / "app.py"
    file.write_bytes((Path(__file__).parents[1] / "app" / "app.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == "error: VLM_CONTEXTRL_PAIRS is not set, expected the dataset folder to show\n"


def test_head_of_the_space_names_what_is_there() -> None:
    """The configuration of a Space stands at the top of its README: a file beside it, a version that the extra allows."""
    root = Path(__file__).parents[1]
    _, head, _ = (root / "app" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(head)
    assert (root / "app" / settings["app_file"]).is_file()
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    (gradio,) = (Requirement(line) for line in extras["app"] if line.startswith("gradio"))
    assert settings["sdk_version"] in gradio.specifier
    assert (root / "app" / "requirements.txt").read_text(encoding="utf-8").strip() == "vlm-contextrl[app]"
