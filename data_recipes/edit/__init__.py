"""`pairs edit`: a writer proposes a change that changes the answer, a diffusion model makes it, a verifier looks at it."""

from __future__ import annotations

from vlm_contextrl.data_recipes.edit.editors import Editor, EditorSettings, open_editor
from vlm_contextrl.data_recipes.edit.recipe import EditConfig, run
from vlm_contextrl.data_recipes.edit.writer import Proposal, read_proposal, writer_prompt

__all__ = [
    "EditConfig", "Editor", "EditorSettings", "Proposal", "open_editor", "read_proposal", "run", "writer_prompt",
]  # fmt: skip
