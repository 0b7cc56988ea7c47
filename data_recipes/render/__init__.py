"""Procedural pictures with exact ground truth in five domains, and pairs that differ in one decisive fact."""

from __future__ import annotations

from vlm_contextrl.data_recipes.render.catalogue import DOMAINS, DomainName, render_scene, scene_examples
from vlm_contextrl.data_recipes.render.generate import (
    RenderConfig,
    make_pair,
    make_question,
    render_pairs,
    render_questions,
    run,
)
from vlm_contextrl.data_recipes.render.scene import Domain, Scene, SceneQuestion, scene_hash

__all__ = [
    "DOMAINS",
    "Domain",
    "DomainName",
    "RenderConfig",
    "Scene",
    "SceneQuestion",
    "make_pair",
    "make_question",
    "render_pairs",
    "render_questions",
    "render_scene",
    "run",
    "scene_examples",
    "scene_hash",
]
