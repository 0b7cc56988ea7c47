"""`doctor`: what is installed and whether it works."""

from __future__ import annotations

import typer

from vlm_contextrl.commands.arguments import JsonFile
from vlm_contextrl.commands.results import show_table
from vlm_contextrl.result_files import write_json


def doctor(json_file: JsonFile = None) -> None:
    """Check Python, packages, hardware and the embedded model.

    Exit status 1 when something that is needed is broken.
    """
    from vlm_contextrl.doctor import examine

    report = examine()
    write_json(json_file, report)
    rows = [
        (check["state"], name, check["found"] + (f" -> {check['advice']}" if check["advice"] else ""))
        for name, check in report["checks"].items()
    ]
    show_table("", ("state", "check", "found"), rows)
    if not report["ok"]:
        raise typer.Exit(1)
