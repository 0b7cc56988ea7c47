"""One arm with one seed is a cell: an ordinary run directory, made by the code of `train`, with `measures.json` at the end.

OUT/cells/ARM-SEED/          the run directory; when its `measures.json` has every measured set, the cell is finished
OUT/jobs/ARM-SEED.json       what its process is told; .log: what that printed; .lock: held while it is at work
OUT/untrained/measures.json  the model that the arms start from, measured the same way
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_contextrl.appended_lines import read_lines
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.runlog import CONFIG, check_run_folder
from vlm_contextrl.study.budgets import check_equal
from vlm_contextrl.study.data import Rows, StudyData
from vlm_contextrl.study.settings import StudyConfig, arm_config

MEASURES = "measures.json"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Cell:
    """trains: False for the model as it is before training."""

    arm: str
    seed: int
    config: RunConfig
    run_dir: Path
    measured: Mapping[str, Rows]
    trains: bool = True

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}" if self.trains else UNTRAINED

    @property
    def is_finished(self) -> bool:
        return (self.run_dir / MEASURES).is_file() and self.measures().keys() >= self.measured.keys()

    def job(self) -> dict[str, Any]:
        """What its process is told."""
        sets = {
            name: {kind: str(path) if path else None for kind, path in asdict(rows).items()}
            for name, rows in self.measured.items()
        }
        return {
            "config": self.config.model_dump(mode="json"),
            "run_dir": str(self.run_dir),
            "measured": sets,
            "trains": self.trains,
        }

    def measures(self) -> dict[str, dict[str, Any]]:
        """{measured set: {measure: {value, n, low, high}}}. DataError for a file that is damaged."""
        path = self.run_dir / MEASURES
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); remove it, and the cell is measured again"
            ) from None
        if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
            raise DataError(
                f"{path}: expected an object of measured sets; remove it, and the cell is measured again"
            )
        return found

    def records(self, stream: str) -> list[dict[str, Any]]:
        """The whole lines of metrics, evals or timings."""
        return list(read_lines(self.run_dir / f"{stream}.jsonl", "remove the cell's folder and start again"))


def plan_cells(study: StudyConfig, data: StudyData, folder: Path, out: Path) -> list[Cell]:
    """The untrained model, then all arms of the first seed, of the second, and so on.

    folder: of the study file. Raises ConfigError when an arm is wrong, its budget differs, or a cell that is there was made otherwise.
    """
    configs = configure_arms(study, data, folder)
    start = configs[study.baseline]
    cells = [Cell(study.baseline, start.seed, start, out / UNTRAINED, data.measured, trains=False)]
    for seed in study.seeds:
        for arm, config in configs.items():
            own = config.model_copy(update={"name": f"{study.name}-{arm}-{seed}", "seed": seed})
            cells.append(Cell(arm, seed, own, out / "cells" / f"{arm}-{seed}", data.measured))
    for cell in cells[1:]:
        if (cell.run_dir / CONFIG).is_file():
            try:
                check_run_folder(cell.run_dir, cell.config, resume=True)
            except ConfigError as error:
                raise ConfigError(f"{error}, or name another folder with --out") from None
    return cells


def configure_arms(study: StudyConfig, data: StudyData, folder: Path) -> dict[str, RunConfig]:
    """The run configurations of all arms but for the seed. Raises ConfigError when one is wrong or its budget differs."""
    folders = {
        "data.questions": data.trained.questions,
        "data.pairs": data.trained.pairs,
        "data.eval_questions": data.watched.questions,
        "data.eval_pairs": data.watched.pairs,
    }
    fixed: dict[str, Any] = {"name": study.name, "log.eval_every": study.eval_every}
    if study.steps is not None:
        fixed |= {"steps": study.steps, "epochs": None}
    configs = {arm: arm_config(study, arm, folders, fixed, folder) for arm in study.chosen}
    check_equal(configs, study.baseline)
    return configs
