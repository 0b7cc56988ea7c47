"""`pairs edit`, `retrieve`, `trajectories`, `compose`, `verify`, `difficulty`, `dedupe`, `decontaminate`: each writes a new folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import (
    SETTINGS,
    JsonFile,
    ListSettings,
    NewFolder,
    Overrides,
    shipped_config,
)
from vlm_contextrl.commands.results import show_summary
from vlm_contextrl.result_files import write_json

Questions = Annotated[
    Path,
    typer.Option(
        "--input", metavar="DIR", help="Questions: a dataset folder, an image folder, or rows.jsonl."
    ),
]
Pairs = Annotated[
    Path, typer.Option("--input", metavar="DIR", help="Pairs: a dataset folder or an image folder.")
]
Rows = Annotated[Path, typer.Option("--input", metavar="DIR", help="Pairs or questions: a dataset folder.")]
Trajectories = Annotated[Path, typer.Option("--input", metavar="DIR", help="Folder of trajectories.")]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Where work runs: local processes, or a Ray cluster."),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="YAML file, or the name of a shipped one, e.g. edit; key=value arguments override it.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes (local) or actors (ray).")]


def _run(
    recipe: str,
    input_folder: Path | None,
    out: Path,
    overrides: list[str] | None,
    config: str | None,
    json_file: Path | None,
    engine: str,
    workers: int,
) -> None:
    from vlm_contextrl.config import load_config
    from vlm_contextrl.devices import check_devices

    module, _, record = SETTINGS[recipe].partition(":")
    path = None if config is None else shipped_config(config, "recipes")
    settings = load_config(leaf(f"{module}:{record}"), path, overrides or [])
    if engine == "local":  # Ray's workers have devices of their own
        check_devices(settings)
    place = leaf("vlm_contextrl.data_recipes.pipeline:Engine")(engine, workers)
    inputs = () if input_folder is None else (input_folder,)
    summary = leaf(f"{module}:run")(settings, *inputs, out, place)
    write_json(json_file, summary)
    show_summary(summary)


def edit(
    input_folder: Questions, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Make pairs by editing images: a writer proposes a change, a diffusion model makes it, a verifier looks at it."""
    _run("edit", input_folder, out, overrides, config, json_file, engine, workers)


def retrieve(
    input_folder: Questions, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Make pairs of look-alike images that are asked the same and answer differently."""
    _run("retrieve", input_folder, out, overrides, config, json_file, engine, workers)


def trajectories(
    input_folder: Trajectories, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Make pairs of coding-agent trajectories that worked on the same code."""
    _run("trajectories", input_folder, out, overrides, config, json_file, engine, workers)


def compose(
    out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Compose pairs from photographs and cut-outs, with exact ground truth."""
    _run("compose", None, out, overrides, config, json_file, engine, workers)


def verify(
    input_folder: Pairs, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Keep the pairs that pass exact checks and a model that looks at both images."""
    _run("verify", input_folder, out, overrides, config, json_file, engine, workers)


def difficulty(
    input_folder: Rows, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Keep the rows that a model gets right neither always nor never."""
    _run("difficulty", input_folder, out, overrides, config, json_file, engine, workers)


def dedupe(
    input_folder: Rows, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Drop rows that ask the same about the same images or texts as an earlier one."""
    _run("dedupe", input_folder, out, overrides, config, json_file, engine, workers)


def decontaminate(
    input_folder: Rows, out: NewFolder, overrides: Overrides = None, config: ConfigFile = None, json_file: JsonFile = None,
    engine: EngineName = "local", workers: Workers = 1, list_settings: ListSettings = False,
) -> None:  # fmt: skip
    """Drop rows whose images or questions are in a benchmark."""
    _run("decontaminate", input_folder, out, overrides, config, json_file, engine, workers)
