"""What a study file says: arms, seeds, data, and how large `--quick` is.

An arm is a run configuration: a file, or `base` with settings changed. Changes are keys of the configuration, nested or dotted
(`objective.1.weight: 0.1`), with `config` for the file that they start from. The study itself sets name, seed, steps, data and threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from vlm_contextrl.commands.arguments import run_config
from vlm_contextrl.config import Record, RunConfig, load_config
from vlm_contextrl.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
ArmName = Annotated[str, Field(pattern=r"^\w[\w-]*$")]  # a dot would lead into the arm
Seed = Annotated[int, Field(ge=0)]
Changes = dict[str, Any]


class RenderSettings(Record):
    """Datasets to render (`vlm-contextrl pairs render`), split so that no image and no scene is both trained on and measured."""

    domains: list[str] = Field(min_length=1, description="visual domains that are trained on and measured")
    left_out: list[str] = Field([], description="visual domains that are measured only")
    pairs: int = Field(ge=4, description="pairs of the domains, training and held-out together")
    questions: int = Field(ge=4, description="questions of the domains, training and held-out together")
    test_share: float = Field(gt=0, lt=1, description="share of them that is held out")
    left_out_pairs: int = Field(0, ge=0, description="pairs of the left-out domains")
    left_out_questions: int = Field(0, ge=0, description="questions of the left-out domains")
    choice_share: float = Field(
        0.4, ge=0, le=1, description="share of multiple choice among questions that allow it"
    )
    size_px: int = Field(112, ge=56, le=2048, description="side of the square pictures")
    seed: int = Field(1101, ge=0, description="of the scenes; the seeds of the study do not change the data")

    @model_validator(mode="after")
    def _consistent(self) -> RenderSettings:
        if bool(self.left_out) != bool(self.left_out_pairs and self.left_out_questions):
            raise ValueError("give left_out, left_out_pairs and left_out_questions together, or none of them")
        if twice := sorted(set(self.domains) & set(self.left_out)):
            raise ValueError(f"left_out: {twice[0]!r} is among the domains that are trained on")
        return self


class FolderSettings(Record):
    """Dataset folders that are there. Paths are relative to the working directory."""

    questions: Path = Field(description="questions to train on")
    pairs: Path = Field(description="pairs to train on")
    held_out_questions: Path
    held_out_pairs: Path
    left_out_questions: Path | None = Field(None, description="questions of domains that are not trained on")
    left_out_pairs: Path | None = Field(None, description="pairs of domains that are not trained on")

    @model_validator(mode="after")
    def _consistent(self) -> FolderSettings:
        if (self.left_out_questions is None) != (self.left_out_pairs is None):
            raise ValueError("give left_out_questions and left_out_pairs together, or neither")
        return self


class StudyConfig(Record):
    """One study."""

    name: Name
    base: str | Changes = Field(
        {}, description="where arms start that name no `config`: a run configuration, or its settings"
    )
    arms: dict[ArmName, str | Changes] = Field(
        min_length=1, description="name -> a run configuration, or changes to one"
    )
    settings: Changes = Field({}, description="changes to every arm, after its own")
    only: list[str] = Field([], description="arms to run; empty: all")
    baseline: str = Field("grpo", description="the arm that the others are compared with")
    seeds: list[Seed] = Field(min_length=1)
    steps: int | None = Field(None, ge=1, description="rollout steps of every arm; None: as configured")
    render: RenderSettings | None = None
    folders: FolderSettings | None = None
    eval_every: int = Field(0, ge=0, description="steps between evaluations while training (0: never)")
    eval_rows: int = Field(
        200, ge=1, description="questions and pairs of each measured set that are looked at while training"
    )
    probes: list[Path] = Field(
        [], description="further dataset folders that every cell is measured on; may be added later"
    )
    processes: int | None = Field(
        None, ge=1, description="cells at a time; None: as many as there are cores (or GPUs)"
    )
    threads: int = Field(1, ge=1, description="threads of a cell; results depend on it in the last digits")
    quick: Changes = Field({}, description="changes to this file for --quick")

    @property
    def chosen(self) -> list[str]:
        """Names of the arms that are run, in the order of the file."""
        return [name for name in self.arms if name in self.only or not self.only]

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if (self.render is None) == (self.folders is None):
            raise ValueError("give exactly one of `render` and `folders`")
        if unknown := sorted(set(self.only) - set(self.arms)):
            raise ValueError(f"only: no arm {unknown[0]!r}; arms are {', '.join(self.arms)}")
        if self.baseline not in self.chosen:
            raise ValueError(
                f"baseline: {self.baseline!r} is none of the arms that are run ({', '.join(self.chosen)})"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice; name each once")
        names = [path.name for path in self.probes]
        if len(set(names)) < len(names):
            raise ValueError("probes: two folders have the same name; results are listed by it")
        return self


def load_study(path: Path, overrides: Sequence[str] = (), *, quick: bool = False) -> StudyConfig:
    """Read a study file; changes for --quick come before `overrides`. Raises ConfigError with one line."""
    if quick:
        changes = load_config(StudyConfig, path).quick
        if not changes:
            raise ConfigError(f"{path}: has no `quick` settings; run it without --quick")
        overrides = [*as_overrides(changes), *overrides]
    return load_config(StudyConfig, path, overrides)


def arm_config(study: StudyConfig, arm: str, folders: Changes, fixed: Changes, beside: Path) -> RunConfig:
    """The run configuration of an arm. Raises ConfigError that names the arm.

    folders: the study's data; an arm may name others among its own changes, such as pairs of another source. fixed: what no arm
    decides. beside: folder of the study file, where files that it names are looked for first.
    """
    chosen = study.arms[arm]
    starts_itself = isinstance(chosen, str) or "config" in chosen
    try:
        start, *own = _layers(chosen if starts_itself else study.base, beside)
        own += [] if starts_itself else _layers(chosen, beside)
        layers = (start, folders, *own, study.settings, fixed)
        return load_config(RunConfig, None, [line for layer in layers for line in as_overrides(layer)])
    except ConfigError as error:
        raise ConfigError(f"arm {arm!r}: {error}") from None


def _layers(given: str | Changes, folder: Path) -> list[Changes]:
    """Settings of the file that is named, if any, and the changes to them."""
    changes = {"config": given} if isinstance(given, str) else dict(given)
    file = changes.pop("config", None)
    if file is None:
        return [changes]
    beside = folder / str(file)
    path = beside if beside.is_file() else run_config(str(file))
    return [load_config(RunConfig, path).model_dump(mode="json"), changes]


def as_overrides(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested or dotted keys as the `key=value` lines that `load_config` takes."""
    for key, value in changes.items():
        if isinstance(value, dict) and value:
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, default=str, ensure_ascii=False)}"  # JSON is YAML
