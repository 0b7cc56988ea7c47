"""`doctor` on a working environment, and on the ways in which one breaks."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl import doctor
from vlm_contextrl.cli import main


@pytest.fixture(autouse=True)
def _embedded_model(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    monkeypatch.setattr(
        "vlm_contextrl.models.resolve", lambda path: str(tiny_model_folder) if path == "tinyvl" else path
    )


def versions(monkeypatch: pytest.MonkeyPatch, **replaced: str | None) -> None:
    """Lets packages be of another version, or absent."""
    real = metadata.version

    def version(name: str) -> str:
        found = replaced.get(name, "as it is")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return real(name) if found == "as it is" else found

    monkeypatch.setattr(metadata, "version", version)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vlm-contextrl", "doctor", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    return int(exited.value.code or 0)


def test_working_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--json", str(tmp_path / "r.json")) == 0
    report: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert report["ok"]
    base = {"torch", "transformers", "peft", "accelerate", "datasets"}
    machine = {"python", "system", "memory", "disk", "device", "bfloat16"}
    assert base | machine | {"torchvision", "attention", "embedded model"} <= set(report["checks"])
    assert all(set(check) == {"state", "found", "advice"} for check in report["checks"].values())
    out = capsys.readouterr().out
    assert "extra trackio" in out
    assert "over packed groups" in out


def test_version_outside_the_declared_range_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, transformers="4.57.0")
    report = doctor.examine()
    check = report["checks"]["transformers"]
    assert not report["ok"]
    assert check["state"] == "broken"
    assert "4.57.0, expected" in check["found"]
    assert check["advice"].startswith("pip install 'transformers")


def test_missing_base_package_is_broken_and_missing_extra_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, peft=None, trackio=None)
    checks = doctor.examine()["checks"]
    assert checks["peft"]["state"] == "broken"
    assert checks["trackio"]["state"] == "note"
    assert checks["trackio"]["advice"] == "pip install 'vlm-contextrl[trackio]'"


def test_torchvision_that_does_not_import_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torchvision="0.28.0")

    def fail(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor, "import_module", fail)
    check = doctor.examine()["checks"]["torchvision"]
    assert check["state"] == "broken"
    assert "operator torchvision::nms does not exist" in check["found"]
    assert check["advice"] == "pip uninstall torchvision"


def test_absent_torchvision_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torchvision=None)
    assert doctor.examine()["checks"]["torchvision"]["state"] == "ok"


def test_missing_embedded_model_is_exit_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlm_contextrl.models.resolve", lambda path: str(tmp_path / "none"))
    assert command(monkeypatch) == 1
    assert "missing" in doctor.examine()["checks"]["embedded model"]["found"]


def test_damaged_embedded_model_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlm_contextrl.models.resolve", lambda path: str(tmp_path))
    check = doctor.examine()["checks"]["embedded model"]
    assert check["state"] == "broken"
    assert "config.json" in check["found"]


def test_a_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation raises anything on import; the report goes on."""
    monkeypatch.setattr(importlib.import_module("vlm_contextrl.attention"), "register", lambda: 1 / 0)
    check = doctor.examine()["checks"]["attention"]
    assert check["state"] == "broken"
    assert "ZeroDivisionError" in check["found"]
