"""The rooms of the repository end up inside the package, whole, and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vlm_contextrl import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOMS = [folder for name, folder in SETUPTOOLS["package-dir"].items() if name != folder]


def test_every_package_folder_is_listed() -> None:
    """A folder that is missing in `packages` works in a checkout and is absent from the wheel."""
    found = set()
    for name, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join((name, *path.parent.relative_to(ROOT / folder).parts)))
    assert sorted(found) == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("name", SETUPTOOLS["packages"])
def test_every_package_has_an_init_file(name: str) -> None:
    room = max((key for key in SETUPTOOLS["package-dir"] if f"{name}.".startswith(f"{key}.")), key=len)
    rest = name.removeprefix(room).strip(".").split(".")
    assert ROOT.joinpath(SETUPTOOLS["package-dir"][room], *rest, "__init__.py").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_bare_import_of_a_room_is_refused(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import this package as vlm_contextrl.{room}" in done.stderr


def test_version_is_the_same_in_code_and_metadata() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_constraints_lie_within_the_declared_range() -> None:
    from packaging.requirements import Requirement

    declared = {r.name: r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    lines = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert [requirement.name for requirement in pinned] == ["torch"]
    for requirement in pinned:
        (pin,) = requirement.specifier
        assert declared[requirement.name].specifier.contains(pin.version)


# ---------------------------------------------------------------- the wheel


def expected_files() -> set[str]:
    """Installed names of all code, configurations, the app's pages, the type marker and the embedded model."""
    files = {"vlm_contextrl/py.typed"}
    for name, folder in SETUPTOOLS["package-dir"].items():
        files |= {
            f"{name.replace('.', '/')}/{p.relative_to(ROOT / folder).as_posix()}"
            for p in (ROOT / folder).rglob("*.py")
        }
    files |= {
        f"vlm_contextrl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    files |= {
        f"vlm_contextrl/tinyvl/{path.name}" for path in (ROOT / "vlm_contextrl" / "tinyvl").glob("[!.]*")
    }
    files |= {f"vlm_contextrl/app/pages/{path.name}" for path in (ROOT / "app" / "pages").iterdir()}
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves a build folder beside the sources."""
    copy = tmp_path_factory.mktemp("source") / "vlm_contextrl"
    wanted = {"pyproject.toml", "README.md", "LICENSE", "vlm_contextrl", *ROOMS}
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: (
        set(names) - wanted if Path(folder) == ROOT else ignored(folder, names)
    ))  # fmt: skip
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_what_the_checkout_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected_files()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_unpacked_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """The copy of the wheel must win over the checkout, and no room may lie at the top level."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import vlm_contextrl, vlm_contextrl.data_recipes.render as render\n"
        "from vlm_contextrl.commands.arguments import run_config\n"
        "print(vlm_contextrl.__file__, render.__file__, run_config('tiny_contextrl'), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(tmp_path / "site" / "vlm_contextrl")) for line in done.stdout.split())
    assert not any((tmp_path / "site" / room).exists() for room in ROOMS)
