"""Arguments that several commands share, checked before any work starts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from vlm_contextrl.errors import ConfigError, InputError


def output_file(path: Path | None) -> Path | None:
    """Hours of work must not end at a folder that is not there."""
    if path is None:
        return None
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: no usable name ({error.strerror}); name another file") from error
    if is_folder:
        raise InputError(f"{path}: is a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON.", callback=output_file),
]
PerPairFile = Annotated[
    Path | None,
    typer.Option(
        "--per-pair", metavar="FILE", help="Write the margins of every pair as JSONL.", callback=output_file
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="YAML", help="Settings; key=value arguments override them.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. count=1000 seed=1.")
]
RunConfigName = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="YAML file, or the name of a shipped one, e.g. tiny_contextrl."),
]
RunOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. optim.learning_rate=1e-5."),
]
NewFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder to write.")]


def run_config(name: str) -> Path:
    """The path of a run configuration: a file, or a shipped one by its name without `.yaml`."""
    return shipped_config(name)


def shipped_config(name: str, folder: str = "") -> Path:
    """As `run_config`, of the configurations in a folder below the shipped ones."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {
        entry.stem: entry
        for entry in sorted((Path(str(files("vlm_contextrl.configs"))) / folder).glob("*.yaml"))
    }
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"{name}: no such file and no shipped configuration; shipped are {', '.join(shipped)}")
