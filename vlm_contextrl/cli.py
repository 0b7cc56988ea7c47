"""The `vlm-contextrl` command.

Help and the parsing of arguments load neither torch nor transformers, datasets and pydantic: what a command
needs is imported when it runs. Exit codes: 0 done, 1 `doctor` found something broken, 2 an error of the
user's (one line on stderr), 130 interrupted. A traceback is an error of ours.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlm_contextrl import __version__
from vlm_contextrl.commands import (
    benching,
    comparing,
    diagnosis,
    evaluating,
    measuring,
    pairs,
    serving,
    studying,
    training,
)
from vlm_contextrl.errors import ContextRLError, environment_error

# Without markup typer leaves rich out of help, which is faster, and prints square brackets as they are.
app = typer.Typer(
    name="vlm-contextrl",
    help="Fine-tune vision-language models by reinforcement learning with context selection.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vlm-contextrl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.add_typer(pairs.app, name="pairs")
app.command("train")(training.train)
app.command("merge")(training.merge)
app.command("probe")(measuring.probe)
app.add_typer(evaluating.app, name="eval")
app.command("compare")(comparing.compare)
app.command("app")(serving.app)
app.command("study")(studying.study)
app.command("demo")(training.demo)
app.command("doctor")(diagnosis.doctor)
app.add_typer(training.tinyvl_app, name="tinyvl")
app.add_typer(benching.app, name="bench")


def main() -> None:
    """Run the command line and exit; an error of the user's becomes one line and status 2."""
    try:
        app()
    except ContextRLError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not (said := environment_error(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before or after typer's own handling
        sys.exit(130)
