"""A whole study: data, plan, cells, results. Started again, it goes on where it stopped; finished, it is shown again.

OUT/study.yaml   the study as it was read
OUT/data, OUT/inputs.json, OUT/untrained, OUT/cells, OUT/jobs     see `data` and `cells`
OUT/study.json, OUT/study.md, OUT/study.html     the result
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vlm_contextrl.demo_report import duration, hardware
from vlm_contextrl.errors import ContextRLError, InputError
from vlm_contextrl.result_files import write_json, write_text
from vlm_contextrl.storage import read_manifest
from vlm_contextrl.study.cells import Cell, plan_cells
from vlm_contextrl.study.curves import learning_curves
from vlm_contextrl.study.data import Rows, StudyData, check_data, check_inputs, make_data, plan_data
from vlm_contextrl.study.page import study_page
from vlm_contextrl.study.results import summarise
from vlm_contextrl.study.settings import StudyConfig, load_study
from vlm_contextrl.study.tables import markdown
from vlm_contextrl.study.workers import make_slots, run_cells

STUDY = "study.yaml"


class CellsFailedError(ContextRLError, RuntimeError):
    """Some cells did not finish; the message names them."""


def run_study(
    path: Path, out: Path | None = None, overrides: Sequence[str] = (), *, quick: bool = False
) -> tuple[dict[str, Any], Path]:
    """Run, continue or show the study of file `path`; the content of study.json and the folder.

    Raises ConfigError, DataError and InputError before any work. Cells that failed are named under `failed`.
    """
    study = load_study(path, overrides, quick=quick)
    folder = (out or Path("runs") / (f"{study.name}-quick" if quick else study.name)).resolve()
    _check_folder(folder, study.name)
    check_data(study)
    data = plan_data(study, folder)
    cells = plan_cells(study, data, path.parent, folder)
    _begin(folder, study)
    began = time.monotonic()
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        make_data(study, data, folder)
        trained = {
            f"arm {cell.arm}": Rows(cell.config.data.questions, cell.config.data.pairs) for cell in cells
        }
        check_inputs({**trained, **data.measured}, folder)
        write_text(folder / STUDY, _as_text(study))  # not before: a refused start changes nothing
        failed = _run(cells, study, folder, console)
    finally:
        spent_s = _add_time(folder, time.monotonic() - began)
    return _write(study, cells, data, failed, folder, spent_s), folder


def _run(cells: Sequence[Cell], study: StudyConfig, folder: Path, console: Console) -> dict[str, str]:
    if all(cell.is_finished for cell in cells):
        return {}
    slots = make_slots(study, _gpus())
    console.print(
        f"{len(cells)} cells, {len(slots)} at a time, in {folder}. Stop with Ctrl-C: the same command goes on.",
        soft_wrap=True,
    )
    return run_cells(cells, slots, folder / "jobs", console)


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _write(
    study: StudyConfig,
    cells: Sequence[Cell],
    data: StudyData,
    failed: Mapping[str, str],
    folder: Path,
    spent_s: float,
) -> dict[str, Any]:
    facts = _facts(study, data, spent_s)
    result = {"name": study.name, **summarise(cells, study.baseline, failed), "facts": facts}
    write_json(folder / "study.json", result)
    write_text(folder / "study.md", markdown(result))
    write_text(folder / "study.html", study_page(result, learning_curves(cells), facts))
    return result


def _check_folder(folder: Path, name: str) -> None:
    """InputError unless it is new or holds this study."""

    def holds_something() -> bool:
        return any(not path.name.startswith(".") for path in folder.iterdir())  # a kill leaves hidden files

    if not (folder / STUDY).is_file():
        if folder.exists() and (not folder.is_dir() or holds_something()):
            raise InputError(f"{folder}: exists and is no study (no {STUDY}); name another folder with --out")
        return
    try:
        before = yaml.safe_load((folder / STUDY).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise InputError(
            f"{folder / STUDY}: cannot be read; restore it, or name another folder with --out"
        ) from None
    if before != name:
        raise InputError(
            f"{folder}: holds the study {before!r}, not {name!r}; name another folder with --out"
        )


def _begin(folder: Path, study: StudyConfig) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --out"
        ) from None
    if not (folder / STUDY).is_file():
        write_text(folder / STUDY, _as_text(study))


def _as_text(study: StudyConfig) -> str:
    return str(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))


def _add_time(folder: Path, seconds: float) -> float:
    """Seconds of all starts of this study, but for those that were killed."""
    place = folder / "spent.json"
    before = json.loads(place.read_text())["wall_s"] if place.is_file() else 0.0
    write_json(place, {"wall_s": before + seconds})
    return float(before + seconds)


def _facts(study: StudyConfig, data: StudyData, spent_s: float) -> dict[str, str]:
    import torch

    def counts(rows: Any) -> str:
        named = {"questions": rows.questions, "pairs": rows.pairs}
        return " and ".join(f"{read_manifest(path).rows:,} {kind}" for kind, path in named.items() if path)

    packages = ("vlm-contextrl", "torch", "transformers")
    return {
        "trained on": counts(data.trained),
        **{f"measured on, {name.replace('_', ' ')}": counts(rows) for name, rows in data.measured.items()},
        "seeds": ", ".join(map(str, study.seeds)),
        "time": f"{duration(spent_s)}, all starts together",
        "hardware": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }
