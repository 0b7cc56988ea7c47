"""The datasets that all cells of a study share: rendered and split here, or folders that are there.

    OUT/data/rendered/{pairs,questions}            scenes of the trained domains
    OUT/data/split/{pairs,questions}/{train,test}  split jointly
    OUT/data/left_out/{pairs,questions}            domains that are measured only
    OUT/data/watched/{pairs,questions}             the first rows of both measured sets, for evaluations while training
    OUT/inputs.json                                the content of every folder that was trained on or measured, as a hash

Each folder appears whole or not at all, so an interrupted study goes on with what is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_contextrl.commands import leaf
from vlm_contextrl.config import validate
from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.result_files import write_json
from vlm_contextrl.storage import read_manifest, read_rows, write_rows
from vlm_contextrl.study.settings import FolderSettings, RenderSettings, StudyConfig

INPUTS = "inputs.json"
KINDS = ("pairs", "questions")
RENDER = "vlm_contextrl.data_recipes.render"
SPLIT_SEED = 0


@dataclass(frozen=True)
class Rows:
    """Dataset folders of questions and of pairs; a third-party probe may have only one of them."""

    questions: Path | None
    pairs: Path | None


@dataclass(frozen=True)
class StudyData:
    """trained: what all arms train on. measured: by name, what every cell is measured on afterwards. watched: rows of the measured
    sets to look at while training."""

    trained: Rows
    measured: dict[str, Rows]
    watched: Rows


HELD_OUT, LEFT_OUT = "held_out", "left_out"


def check_data(study: StudyConfig) -> None:
    """Everything that can be said of the data before work starts. Raises ConfigError, DataError."""
    if study.render is not None:
        for kind in KINDS:
            for left_out in (False, True):
                _render_config(study.render, kind, left_out)
    if study.folders is not None:
        _check_folders(study.folders)


def plan_data(study: StudyConfig, out: Path) -> StudyData:
    """Where everything is or will be. Raises DataError for a probe that is not there."""
    place = out / "data"
    measured: dict[str, Rows] = {}
    if study.render is not None:
        trained = _folders(place / "split", "train")
        measured[HELD_OUT] = _folders(place / "split", "test")
        if study.render.left_out:
            measured[LEFT_OUT] = _folders(place / "left_out")
    else:
        assert study.folders is not None
        named = {name: path.resolve() for name, path in study.folders if path is not None}
        trained = Rows(named["questions"], named["pairs"])
        measured[HELD_OUT] = Rows(named["held_out_questions"], named["held_out_pairs"])
        if "left_out_pairs" in named:
            measured[LEFT_OUT] = Rows(named["left_out_questions"], named["left_out_pairs"])
    for folder in study.probes:
        path = {read_manifest(folder).kind: folder.resolve()}
        measured[f"probe_{folder.name}"] = Rows(path.get("questions"), path.get("pairs"))
    return StudyData(trained, measured, _folders(place / "watched"))


def make_data(study: StudyConfig, data: StudyData, out: Path) -> None:
    """Render and split what is not there yet. Raises DataError, InputError for data that was made with other settings."""
    place = out / "data"
    if study.render is not None:
        _make_rendered(study.render, place)
    watched = {name: rows for name, rows in data.measured.items() if name in (HELD_OUT, LEFT_OUT)}
    _make_watched(place / "watched", watched, study.eval_rows)


def check_inputs(used: Mapping[str, Rows], out: Path) -> None:
    """Hold every folder to the rows that the study knows it by, and note those that are new. InputError when one was changed.

    used: by name, what arms train on and what is measured.
    """
    place = out / INPUTS
    known: dict[str, str] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    for name, rows in used.items():
        for kind, path in asdict(rows).items():
            if path is None:
                continue
            found = read_manifest(path).content_hash
            if known.setdefault(f"{name} {kind}", found) != found:
                raise InputError(
                    f"{path}: holds other {kind} than when {out} was begun ({name}); restore them, or name another folder with --out"
                )
    write_json(place, known)


def _make_rendered(settings: RenderSettings, place: Path) -> None:
    from vlm_contextrl.splits import run_split

    rendered = {kind: _render(settings, kind, place / "rendered" / kind) for kind in KINDS}
    shares = {"train": 1 - settings.test_share, "test": settings.test_share}
    if not (place / "split").exists():
        run_split(rendered, place / "split", shares, SPLIT_SEED)
    _check_made_with(place / "split/pairs/test", {"fractions": shares})
    if settings.left_out:
        for kind in KINDS:
            _render(settings, kind, place / "left_out" / kind, left_out=True)


def _render_config(settings: RenderSettings, kind: str, left_out: bool = False) -> Any:
    """The recipe's own settings; None for left-out domains when there are none."""
    if left_out and not settings.left_out:
        return None
    # Sets of their own numbers: row i of two renderings with one seed may show one scene.
    number = KINDS.index(kind) + 2 * left_out
    values = {
        "count": getattr(settings, f"left_out_{kind}" if left_out else kind),
        "seed": settings.seed + number,
        "size_px": settings.size_px,
        "rows": kind,
        "domains": settings.left_out if left_out else settings.domains,
    }
    if kind == "questions":
        values["choice_share"] = settings.choice_share
    return validate(leaf(f"{RENDER}:RenderConfig"), values, "render")


def _render(settings: RenderSettings, kind: str, folder: Path, *, left_out: bool = False) -> Path:
    config = _render_config(settings, kind, left_out)
    if not folder.exists():
        leaf(f"{RENDER}:run")(config, folder)
    _check_made_with(folder, config.model_dump())
    return folder


def _check_made_with(folder: Path, settings: dict[str, Any]) -> None:
    found = read_manifest(folder).config
    if changed := [name for name, value in settings.items() if found.get(name) != value]:
        raise InputError(
            f"{folder}: made with {changed[0]} = {found.get(changed[0])!r}, the study now says {settings[changed[0]]!r}; name another "
            "folder with --out"
        )


def _folders(place: Path, side: str = "") -> Rows:
    return Rows(**{kind: place / kind / side for kind in KINDS})


def _check_folders(folders: FolderSettings) -> None:
    for name, path in folders:
        expected = "pairs" if name.endswith("pairs") else "questions"
        if path is not None and (found := read_manifest(path).kind) != expected:
            raise DataError(f"folders.{name}: {path} holds {found}, expected {expected}")


def _make_watched(place: Path, measured: Mapping[str, Rows], n_rows: int) -> None:
    """Their domain becomes the name of the measured set, by which evaluations while training are told apart."""
    for kind in KINDS:
        if not (place / kind).exists():
            first = (
                replace(row, domain=name)
                for name, rows in measured.items()
                for row in islice(read_rows(getattr(rows, kind))[1], n_rows)
            )
            write_rows(first, place / kind, recipe="study", config={"first_rows": n_rows})
        _check_made_with(place / kind, {"first_rows": n_rows})
        if repeated := read_manifest(place / kind).rejects:
            raise DataError(
                f"{place / kind}: {repeated} rows have ids that other measured rows have, too; expected ids that are unique over "
                "held-out and left-out rows"
            )
