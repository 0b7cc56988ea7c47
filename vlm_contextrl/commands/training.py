"""`train`, `merge`, `demo` and `tinyvl build`: commands that make a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlm_contextrl.commands import leaf
from vlm_contextrl.commands.arguments import (
    ConfigFile,
    ListSettings,
    NewFolder,
    Overrides,
    RunConfigName,
    RunOverrides,
    run_config,
)
from vlm_contextrl.commands.results import show_summary

tinyvl_app = typer.Typer(help="The embedded model.", no_args_is_help=True)


def train(
    config: RunConfigName,
    overrides: RunOverrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the run directory.")
    ] = False,
    list_settings: ListSettings = False,
) -> None:
    """Train a model as a configuration says."""
    from vlm_contextrl.config import RunConfig, load_config

    settings = load_config(RunConfig, run_config(config), overrides or [])
    run_dir = out or Path("runs") / settings.name
    from vlm_contextrl.trainer import (
        train as run,
    )  # seconds of torch, after the settings are known to be valid

    metrics = run(settings, run_dir, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # of torchrun
        show_summary({"run": run_dir, **metrics})


def merge(
    model: Annotated[str, typer.Option(metavar="M", help="tinyvl, a local model folder or a hub id.")],
    adapter: Annotated[Path, typer.Option(metavar="DIR", help="Adapter folder, e.g. runs/NAME/final.")],
    out: NewFolder,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Precision of the weights that are written.")
    ] = "bfloat16",
) -> None:
    """Write a model with its adapter merged, as an ordinary model folder."""
    import torch

    from vlm_contextrl.checkpoints import export
    from vlm_contextrl.config import ModelSettings
    from vlm_contextrl.models import load_policy, merge_adapter
    from vlm_contextrl.storage import new_folder

    with new_folder(out) as folder:
        policy = load_policy(ModelSettings(path=model, adapter=str(adapter)), trainable=False)
        merge_adapter(policy, getattr(torch, dtype))
        export(policy, folder)
    show_summary({"out": out})


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for data, run and report.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A shorter run that shows the path, not the effect.")
    ] = False,
) -> None:
    """Render pairs, train the embedded model on them, write a report."""
    from vlm_contextrl.demo import run

    run(out, quick)


@tinyvl_app.command()
def build(
    out: NewFolder,
    overrides: Overrides = None,
    config: ConfigFile = None,
    list_settings: ListSettings = False,
) -> None:
    """Train the embedded model from scratch on rendered scenes."""
    from vlm_contextrl.config import load_config

    settings = load_config(leaf("vlm_contextrl.data_recipes.tinyvl:TinyVLConfig"), config, overrides or [])
    show_summary({"out": out, **leaf("vlm_contextrl.data_recipes.tinyvl:run")(settings, out)})
