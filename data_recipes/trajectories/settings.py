"""Settings of `pairs trajectories`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.assistants import AssistantSettings

Closeness = Literal["repository", "file", "function"]


class TrajectoriesConfig(Record):
    """Which trajectories are joined, and what a pair shows of them."""

    licence: str = Field("", description="licence of trajectories that name none, e.g. MIT")
    instances: Path | None = Field(
        None,
        description="task descriptions (JSON, jsonl or Parquet: instance_id, repo, base_commit, problem_statement, ...), joined by "
        "instance_id; jsonl files of the input folder whose rows have no messages are read as well",
    )
    sources: Path | None = Field(
        None, description="sources before the patch, as OWNER__NAME/COMMIT/path, for functions by syntax tree"
    )
    resolved_only: bool = Field(
        False, description="only trajectories that are known to have solved their task"
    )

    match: Literal["commit", "repository"] = Field(
        "commit", description="first filter: same repository and commit, or same repository"
    )
    same: Closeness = Field(
        "function",
        description="how close two edits must be; nearer filters than this one are counted, not applied",
    )
    files: list[str] = Field(
        ["*.py"], min_length=1, description="edited files that count, as patterns of the whole path"
    )
    ignored_files: list[str] = Field(
        ["*test*", "setup.py", "*conftest.py", "docs/*", "doc/*"],
        description="edited files that do not count after all",
    )
    min_issue_similarity: float = Field(
        0.05, ge=0, le=1, description="cosine of two issue texts that are related"
    )
    max_issue_similarity: float = Field(
        0.9, ge=0, le=1, description="above it two issues are taken for the same one"
    )
    issue_encoder: str | None = Field(
        None,
        description="folder of a text encoder for that cosine (mean of its last hidden states); default: tf-idf",
    )
    max_patch_overlap: float = Field(
        0.5, ge=0, le=1, description="shared lines of two patches over all their lines; above: ambiguous"
    )
    pairs_per_trajectory: int = Field(2, ge=1, description="pairs that one trajectory may be part of")

    context_tokens: int = Field(
        6000, ge=64, description="longest context; whole messages are left out in the middle, and counted"
    )
    answer_tokens: int = Field(1000, ge=8, description="longest answer; a pair with a longer one is rejected")
    tokenizer: str = Field(
        "tinyvl", description="whose tokens are counted: a model folder, or the embedded model"
    )
    max_masked: float = Field(0.5, gt=0, le=1, description="largest masked share of a context's characters")
    max_lexical_accuracy: float = Field(
        0.6,
        ge=0.5,
        le=1,
        description="share of pairs that a bag of words may solve; the easiest are rejected until it holds; 1: all stay",
    )
    judge: AssistantSettings | None = Field(
        None, description="who is asked whether a pair has one right answer and no shortcut"
    )
    seed: int = Field(0, ge=0, description="of the choice among equals and of the side that is the context")
    batch_size: int = Field(
        64, ge=1, description="trajectories (then pairs) per unit of work that survives a kill"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrajectoriesConfig:
        if self.min_issue_similarity >= self.max_issue_similarity:
            raise ValueError(
                f"min_issue_similarity {self.min_issue_similarity} is not below max_issue_similarity {self.max_issue_similarity}"
            )
        return self
