"""`app`: look at pairs, review them and see a model choose, in the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlm_contextrl.commands import leaf


def app(
    pairs: Annotated[
        Path, typer.Option(metavar="DIR", help="Dataset folder of pairs, or what `pairs import` reads.")
    ],
    model: Annotated[
        str, typer.Option(metavar="M", help="tinyvl, a local model folder or a hub id, to see it choose.")
    ] = "",
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Adapter or whole model, as training wrote it, to compare with the model; repeat for more.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory whose curves to show, also while it trains."),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where decisions and exports go. Default: PAIRS-decisions beside the pairs."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Address to listen on; another than this machine's own needs a password."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the password. Default: the variable VLM_CONTEXTRL_PASSWORD."
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Licence of rows of other formats that name none.")
    ] = "",
) -> None:
    """Look at pairs, review them by keyboard and see a model choose, in the browser.

    Nothing leaves this machine, and the dataset is only read.
    """
    settings = leaf("vlm_contextrl.app.settings:AppSettings")(
        pairs=pairs,
        model=model,
        adapters=tuple(adapter or ()),
        run=run,
        decisions=decisions,
        host=host,
        port=port,
        password=leaf("vlm_contextrl.app.settings:find_password")(password_file),
        licence=licence,
    )
    leaf("vlm_contextrl.app.server:serve")(
        settings,
        lambda address: print(f"{address} (Ctrl+C ends it)", file=sys.stderr),
        leaf("vlm_contextrl.data_recipes.curate.balance:balance"),
    )
