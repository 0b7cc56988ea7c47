"""Arguments that several commands share, checked before any work starts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.results import show_table
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
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings by name; --settings lists them.")
]
RunConfigName = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="YAML file, or the name of a shipped one, e.g. tiny_contextrl."),
]
RunOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings by name, e.g. optim.learning_rate=1e-5; `train --settings` lists them.",
    ),
]
# The settings of a command, by its name.
SETTINGS = {
    "train": "vlm_contextrl.config:RunConfig",
    "study": "vlm_contextrl.study.settings:StudyConfig",
    "render": "vlm_contextrl.data_recipes.render:RenderConfig",
    "edit": "vlm_contextrl.data_recipes.edit:EditConfig",
    "retrieve": "vlm_contextrl.data_recipes.retrieve:RetrieveConfig",
    "trajectories": "vlm_contextrl.data_recipes.trajectories:TrajectoriesConfig",
    "compose": "vlm_contextrl.data_recipes.compose:ComposeConfig",
    "verify": "vlm_contextrl.data_recipes.curate.verify:VerifyConfig",
    "difficulty": "vlm_contextrl.data_recipes.curate.difficulty:DifficultyConfig",
    "dedupe": "vlm_contextrl.data_recipes.curate.dedupe:DedupeConfig",
    "decontaminate": "vlm_contextrl.data_recipes.curate.decontaminate:DecontaminateConfig",
    "build": "vlm_contextrl.data_recipes.tinyvl:TinyVLConfig",
}


def _list_settings(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    from vlm_contextrl.records import describe

    show_table("", ("setting", "default", "meaning"), describe(leaf(SETTINGS[str(context.command.name)])))
    raise typer.Exit


ListSettings = Annotated[
    bool,
    typer.Option(
        "--settings",
        is_eager=True,
        callback=_list_settings,
        help="List every setting with its default, and stop.",
    ),
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
