"""Rows from scenes: contrastive pairs and questions, each a function of (seed, index) alone.

A pair is a scene, a question about it, and the scene after `edit`. A fair coin decides which of the two is
the context, and the answer follows, so neither being edited nor anything that editing leaves behind tells
context from confounder. Domains are drawn uniformly, then question types within the domain, then answers
within the type as far as scenes allow.

What it leaves out: photographs, free text, and any cue of style; the pictures are synthetic and flat.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vlm_contextrl.data_recipes.render.catalogue import DOMAINS, DomainName
from vlm_contextrl.data_recipes.render.scene import CHOICE_SHARE, Domain, Scene, scene_hash
from vlm_contextrl.images import changed_fraction
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow

RECIPE = "render"
LICENCE = "CC0-1.0"
MAX_REDRAWS = 20


class RenderConfig(BaseModel):
    """What `vlm-contextrl pairs render` makes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1, description="rows to make")
    seed: int = Field(default=0, ge=0, description="row i depends on the seed and on i only")
    size_px: int = Field(default=112, ge=56, le=2048, description="side of the square pictures")
    domains: list[DomainName] = Field(
        default=["objects", "charts", "dials", "tables", "geometry"],
        min_length=1,
        description="visual domains, drawn uniformly",
    )
    choice_share: float = Field(
        default=CHOICE_SHARE,
        ge=0,
        le=1,
        description="share of multiple choice among the questions that allow it",
    )
    rows: Literal["pairs", "questions"] = Field(
        default="pairs",
        description="pairs: context and confounder; questions: one picture and one question per row",
    )

    @field_validator("domains")
    @classmethod
    def _unique(cls, domains: list[DomainName]) -> list[DomainName]:
        if len(set(domains)) < len(domains):
            raise ValueError("a domain is named twice; name each once")
        return domains


def make_pair(config: RenderConfig, index: int) -> ContrastivePair:
    """Pair number `index`, whatever was made before."""
    rng = Random(f"pair:{config.seed}:{index}")
    domain = DOMAINS[rng.choice(config.domains)]
    question_type = rng.choice(domain.types)
    for _ in range(MAX_REDRAWS):
        scene, question = domain.ask(question_type, rng, config.choice_share)
        edited = question.edit(rng)
        pictures = [domain.draw(each, config.size_px) for each in (scene, edited)]
        fraction = changed_fraction(*pictures)
        if fraction > 0:
            break
    else:
        raise AssertionError(f"{question_type}: {MAX_REDRAWS} edits without a change at {config.size_px} px")
    other = question.answer_of(edited)
    assert other not in (None, question.answer), f"{question_type}: an edit kept the answer {other!r}"
    sides = [(question.answer, pictures[0]), (other, pictures[1])]
    edited_is_context = rng.random() < 0.5
    if edited_is_context:
        sides.reverse()
    return ContrastivePair(
        id=f"{domain.name}-{question_type}-{index:06d}",
        query=question.query,
        answer=sides[0][0],
        context=EncodedImage.from_image(sides[0][1]),
        confounder=EncodedImage.from_image(sides[1][1]),
        confounder_answer=sides[1][0],
        options=question.options,
        answer_type=question.answer_type,
        domain=domain.name,
        recipe=RECIPE,
        provenance={
            **_provenance(config, scene, question_type),
            "edit": describe_edit(domain, scene, edited),
            "edited": "context" if edited_is_context else "confounder",
            "changed_fraction": round(fraction, 6),
        },
    )


def make_question(config: RenderConfig, index: int) -> QuestionRow:
    """Question number `index`, whatever was made before."""
    rng = Random(f"question:{config.seed}:{index}")
    domain = DOMAINS[rng.choice(config.domains)]
    question_type = rng.choice(domain.types)
    scene, question = domain.ask(question_type, rng, config.choice_share)
    return QuestionRow(
        id=f"{domain.name}-{question_type}-{index:06d}",
        query=question.query,
        answer=question.answer,
        images=(EncodedImage.from_image(domain.draw(scene, config.size_px)),),
        options=question.options,
        answer_type=question.answer_type,
        domain=domain.name,
        recipe=RECIPE,
        provenance=_provenance(config, scene, question_type),
    )


def _provenance(config: RenderConfig, scene: Scene, question_type: str) -> dict[str, Any]:
    return {
        "source": "rendered",
        "licence": LICENCE,
        "seed": config.seed,
        "scene": scene_hash(scene),
        "question_type": question_type,
    }


def describe_edit(domain: Domain, before: Scene, after: Scene) -> str:
    """The facts that went and the facts that came, e.g. `red 5 becomes red 8`."""
    old, new = Counter(domain.facts(before)), Counter(domain.facts(after))
    return f"{', '.join((old - new).elements())} becomes {', '.join((new - old).elements())}"


def render_pairs(config: RenderConfig) -> Iterator[ContrastivePair]:
    """`config.count` pairs."""
    return (make_pair(config, index) for index in range(config.count))


def render_questions(config: RenderConfig) -> Iterator[QuestionRow]:
    """`config.count` questions."""
    return (make_question(config, index) for index in range(config.count))


def run(config: RenderConfig, out: Path) -> dict[str, Any]:
    """Writes a dataset folder and returns the summary; DataError when `out` exists and is not empty."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vlm_contextrl.storage import write_rows

    make = make_pair if config.rows == "pairs" else make_question
    types: Counter[str] = Counter()
    fractions: list[float] = []
    started_s = time.perf_counter()
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(f"render {config.rows}", total=config.count, rate="")

        def rows() -> Iterator[Any]:
            for index in range(config.count):
                row = make(config, index)
                types[f"{row.domain}/{row.provenance['question_type']}"] += 1
                if "changed_fraction" in row.provenance:
                    fractions.append(row.provenance["changed_fraction"])
                yield row
                progress.update(
                    task, advance=1, rate=f"{(index + 1) / (time.perf_counter() - started_s):.0f}/s"
                )

        manifest = write_rows(rows(), out, recipe=RECIPE, config=config.model_dump())
    return {
        "out": str(out),
        "kind": config.rows,
        "rows": manifest.rows,
        "rejects": manifest.rejects,
        "domains": manifest.domains,
        "question_types": dict(sorted(types.items())),
        "changed_fraction_mean": statistics.fmean(fractions) if fractions else None,
        "changed_fraction_median": statistics.median(fractions) if fractions else None,
        "rows_per_s": config.count / (time.perf_counter() - started_s),
    }
