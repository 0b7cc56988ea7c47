"""Pairs of composed pictures: labelled cut-outs over photographs, with exact ground truth.

A pair is a scene, the scene after one object was replaced, moved, recoloured, removed or resized, and a question that the two answer
differently. A fair coin decides which of them is the context, and the same code draws both, so that nothing about having been pasted or
edited tells context from confounder; `controls.trace_control` checks it. Pair number i is a function of (seed, i) and of the two folders.

What it leaves out: what a photograph shows by itself is only known as far as it is written beside it (sources.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from vlm_contextrl.data_recipes.compose.blending import Blending, draw, visible
from vlm_contextrl.data_recipes.compose.controls import blind_answers, trace_control
from vlm_contextrl.data_recipes.compose.questions import COUNT_WEIGHTS, COUNTS, KINDS, Asked, Kind, pose
from vlm_contextrl.data_recipes.compose.scenes import EDITS, Scene, Space, describe, scene_hash
from vlm_contextrl.data_recipes.compose.settings import ComposeConfig, Edit
from vlm_contextrl.data_recipes.compose.sources import (
    Catalogue,
    Cutout,
    Photograph,
    cutout_pixels,
    photograph_pixels,
    read_catalogue,
)
from vlm_contextrl.data_recipes.inputs import provenance
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome, run_step
from vlm_contextrl.errors import DataError
from vlm_contextrl.images import changed_fraction
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_pairs, read_rows

RECIPE = "compose"
DOMAIN = "composites"
RECORD_COLUMNS = ("query", "answer", "confounder_answer", "options", "answer_type", "provenance")
MAX_SCENES, EDITS_PER_SCENE = 400, 6  # without pixels, which is cheap
MAX_DRAWINGS = 20


@dataclass(frozen=True)
class Draft:
    """A pair before it is drawn."""

    edit: Edit
    kind: Kind
    before: Scene
    after: Scene
    asked: Asked


@dataclass(frozen=True)
class ComposeStep:
    """Numbers of pairs to pairs."""

    config: ComposeConfig
    catalogue: Catalogue

    def __call__(self, items: Sequence[int]) -> list[Outcome]:
        """One outcome per number."""
        return [self._outcome(index) for index in items]

    def _outcome(self, index: int) -> Outcome:
        row_id = f"{RECIPE}-{index:06d}"
        rng = Random(f"{RECIPE}:{self.config.seed}:{index}")
        edit = rng.choice(self.config.edits)
        kind = rng.choice(KINDS[edit])
        edited_is_context = rng.random() < 0.5
        photograph = rng.randrange(len(self.catalogue.photographs))
        copies = rng.choices(COUNTS, COUNT_WEIGHTS)[0] + 1 if kind == "count" else 1
        for _ in range(MAX_DRAWINGS):
            draft = self.draft(edit, kind, photograph, copies, rng)
            if draft is None:
                found = f"{MAX_SCENES} tries gave none for {kind} with an object {edit}"
                return Outcome(
                    row_id,
                    reason=f"no_scene: {found}, expected one; give more labels, or a smaller `largest`",
                )
            try:
                before, after = self._draw(draft.before), self._draw(draft.after)
            except DataError as error:
                return Outcome(row_id, reason=f"unreadable_source: {error}")
            if before and after:
                return Outcome(row_id, (self._pair(row_id, draft, (before, after), edited_is_context),))
        file = self.catalogue.photographs[photograph].file
        found = f"in {MAX_DRAWINGS} tries over {file} some object always hardly showed"
        return Outcome(row_id, reason=f"no_contrast: {found}, expected all to stand out")

    def draft(self, edit: Edit, kind: Kind, photograph: int, copies: int, rng: Random) -> Draft | None:
        """Two scenes and a question that they answer differently; None when chance found none."""
        config = self.config
        space = Space(self.catalogue, config.size_px, config.smallest, config.largest)
        for _ in range(MAX_SCENES):
            others = rng.randint(0, 2) if kind == "count" or edit == "replaced" else rng.randint(1, 3)
            before = space.sample(photograph, copies, others, edit == "recoloured", rng)
            for _ in range(EDITS_PER_SCENE if before else 0):
                assert before
                after = EDITS[edit](space, before, rng)
                asked = pose(kind, before, after, space, config.choice_share, rng) if after else None
                if after and asked:
                    return Draft(edit, kind, before, after, asked)
        return None

    def _draw(self, scene: Scene) -> Image.Image | None:
        """The scene's picture; None when an object hardly stands out. Raises DataError when a source cannot be read."""
        config, catalogue = self.config, self.catalogue
        source = catalogue.photographs[scene.photograph]
        photograph = photograph_pixels(config.photographs, source, scene.width, scene.height)
        cutouts = {
            thing.cutout: cutout_pixels(config.cutouts, catalogue.cutouts[thing.cutout], config.size_px)
            for thing in scene.things
        }
        picture = draw(scene, photograph, cutouts, Blending(config.feather_px, config.light))
        return picture if visible(scene, picture, photograph) else None

    def _pair(
        self, row_id: str, draft: Draft, pictures: tuple[Image.Image, Image.Image], edited_is_context: bool
    ) -> ContrastivePair:
        asked = draft.asked
        sides = [(asked.answer, pictures[0]), (asked.other_answer, pictures[1])]
        if edited_is_context:
            sides.reverse()
        photograph = self.catalogue.photographs[draft.before.photograph]
        used = sorted({thing.cutout for scene in (draft.before, draft.after) for thing in scene.things})
        cutouts = [self.catalogue.cutouts[index] for index in used]
        sources: list[Photograph | Cutout] = [photograph, *cutouts]
        described = describe(draft.before, self.catalogue)
        return ContrastivePair(
            id=row_id,
            query=asked.query,
            answer=sides[0][0],
            context=EncodedImage.from_image(sides[0][1]),
            confounder=EncodedImage.from_image(sides[1][1]),
            confounder_answer=sides[1][0],
            options=asked.options,
            answer_type=asked.answer_type,
            domain=DOMAIN,
            recipe=RECIPE,
            provenance=provenance(
                source=[f"photographs/{photograph.file}", *(f"cutouts/{cutout.file}" for cutout in cutouts)],
                sha256=[source.sha256 for source in sources],
                licence="; ".join(dict.fromkeys(source.licence for source in sources)),
                photograph_licence=photograph.licence,
                cutout_licences=[cutout.licence for cutout in cutouts],
                seed=self.config.seed,
                scene=scene_hash(described),
                scene_before=described,
                scene_after=describe(draft.after, self.catalogue),
                question_type=draft.kind,
                edit=draft.edit,
                edited="context" if edited_is_context else "confounder",
                changed_fraction=round(changed_fraction(*pictures), 6),
            ),
        )


def run(config: ComposeConfig, out: Path, engine: Engine) -> dict[str, Any]:
    """Writes a dataset folder of pairs and says what it holds, with both controls. Files that cannot be used count as rejected inputs."""
    catalogue, refused = read_catalogue(config)
    summary = run_step(
        ComposeStep(config, catalogue),
        range(config.count),
        out,
        recipe=RECIPE,
        config=config.model_dump(mode="json"),
        input_hash=catalogue.content_hash(),
        batch_size=config.batch_size,
        engine=engine,
        refused=refused,
    )
    pairs = read_pairs(out)
    _, rows = read_rows(out)
    records = [{**record, **json.loads(record["provenance"])} for record in rows.records(RECORD_COLUMNS)]
    counts = {key: Counter(record[key] for record in records) for key in ("edit", "edited", "question_type")}
    return {
        **summary,
        "sources": {
            "photographs": len(catalogue.photographs),
            "cutouts": len(catalogue.cutouts),
            "labels": len(catalogue.labels),
            "refused": len(refused),
        },
        "edits": dict(sorted(counts["edit"].items())),
        "edited": dict(sorted(counts["edited"].items())),
        "question_types": dict(sorted(counts["question_type"].items())),
        "blind_answers": blind_answers(records),
        "trace_control": trace_control(pairs, config.control_pairs) if config.control_pairs else None,
    }
