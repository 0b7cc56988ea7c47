"""The five domains by name, and single scenes with their questions (for the tiny model's pretraining)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from PIL import Image

from vlm_contextrl.data_recipes.render.charts import CHARTS
from vlm_contextrl.data_recipes.render.dials import DIALS
from vlm_contextrl.data_recipes.render.geometry import GEOMETRY
from vlm_contextrl.data_recipes.render.objects import OBJECTS
from vlm_contextrl.data_recipes.render.scene import Domain, Scene, SceneQuestion
from vlm_contextrl.data_recipes.render.tables import TABLES

DomainName = Literal["objects", "charts", "dials", "tables", "geometry"]
DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (OBJECTS, CHARTS, DIALS, TABLES, GEOMETRY)}


def render_scene(domain: str, scene: Scene, size_px: int = 112) -> Image.Image:
    """The picture of a scene: RGB, `size_px` square."""
    return DOMAINS[domain].draw(scene, size_px)


def scene_examples(
    seed: int,
    index: int,
    domains: Sequence[str] = tuple(DOMAINS),
    size_px: int = 112,
    questions_per_scene: int = 4,
) -> tuple[Image.Image, str, list[SceneQuestion], str]:
    """(image, description, up to N different questions, domain) of scene `index`.

    Depends on (seed, index) only. The first question decides the scene, so its answers are balanced as in
    `render_questions`; the rest is asked of the same scene.
    """
    rng = Random(f"{seed}:{index}")
    domain = DOMAINS[rng.choice(tuple(domains))]
    scene, first = domain.ask(rng.choice(domain.types), rng)
    more = [question for _ in range(3) for question in domain.questions(scene, rng)]
    distinct = {(question.type, question.answer, question.query): question for question in (first, *more)}
    questions = list(distinct.values())[:questions_per_scene]
    return domain.draw(scene, size_px), domain.describe(scene), questions, domain.name
