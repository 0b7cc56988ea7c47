"""Pairs by editing: one question about one picture becomes the picture, its edited copy, and an answer to either.

    writer     proposes a change and the answer after it (writer.py)
    editor     changes the picture (editors.py), with a seed of the row
    coin       half of the pairs are mirrored: the edited picture is then the context, and the new answer the answer
    verifier   pixels first (how much changed), then, when one is named, a model must give the old answer on the original and the new one
               on the edited picture. That rule is the same for both sides, so mirrored pairs are not kept more or less often than others

Every row depends on the seed and on the question alone. After arXiv 2606.17053, which keeps about a third of its candidates.

Traces. Both sides are made smaller alike (`max_pixels`) and written as PNG, so the kind of file tells nothing. An editing model's
autoencoder does leave a trace, on the edited side only. The coin makes it worthless for telling context from confounder; whoever wants it
gone passes the original through the same autoencoder (`reencode`), at the price of an original that is no longer one.

What it leaves out: a second try for a row that failed, and more than one edit per question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.assistants import (
    Answers,
    Assistant,
    AssistantSettings,
    Prompt,
    Refusal,
    assistant,
)
from vlm_contextrl.data_recipes.curate.verify import ExactBounds, VerifierSettings, VerifyConfig, VerifyStep
from vlm_contextrl.data_recipes.edit.editors import Editor, EditorSettings, open_editor
from vlm_contextrl.data_recipes.edit.writer import Proposal, read_proposal, writer_prompt
from vlm_contextrl.data_recipes.inputs import provenance, question_input
from vlm_contextrl.data_recipes.pipeline import Engine, Outcome, run_step
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.row_schema import json_object
from vlm_contextrl.storage import read_rows

RECIPE = "edit"


class EditConfig(Record):
    """What `vlm-contextrl pairs edit` makes."""

    seed: int = Field(0, ge=0, description="a pair depends on the seed and on its question only")
    writer: AssistantSettings = Field(description="who proposes the changes")
    editor: EditorSettings = Field(description="which pipeline makes them")
    bounds: ExactBounds = Field(ExactBounds(), description="exact checks of the pixels")
    verifier: VerifierSettings | None = Field(
        None,
        description="a model that must see the old answer on the original and the new one on the edit; null for none",
    )
    max_pixels: int = Field(
        1024 * 1024, ge=56 * 56, description="larger pictures are made smaller first, on both sides"
    )
    reencode: bool = Field(False, description="pass the original through the editor's autoencoder, too")
    licence: str = Field("", description="licence of rows that name none")
    batch_rows: int = Field(
        8, ge=1, description="questions worked on together; a killed run repeats at most these per worker"
    )


@dataclass
class EditStep:
    """Questions in, pairs out. Writer, editor and verifier are loaded where they are first asked."""

    config: EditConfig
    editor: Editor

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def writer(self) -> Assistant:
        """Who proposes changes."""
        return assistant(self.config.writer)

    @cached_property
    def verify(self) -> VerifyStep:
        """The checks of `pairs verify`."""
        return VerifyStep(VerifyConfig(bounds=self.config.bounds, verifier=self.config.verifier))

    def __call__(self, rows: Sequence[QuestionRow]) -> list[Outcome]:
        """One outcome per question."""
        made = [
            self._pair(row, proposal) if isinstance(proposal, Proposal) else proposal
            for row, proposal in zip(rows, self._proposals(rows), strict=True)
        ]
        pairs = [pair for pair in made if isinstance(pair, ContrastivePair)]
        verified = iter(self.verify(pairs) if pairs else ())
        return [
            Outcome(row.id, (), pair) if isinstance(pair, str) else self._kept(row.id, next(verified))
            for row, pair in zip(rows, made, strict=True)
        ]

    def _proposals(self, rows: Sequence[QuestionRow]) -> list[Proposal | str]:
        """What to change in each picture, or why there is nothing to be done."""
        unfit = [_unfit(row) for row in rows]
        usable = [row for row, reason in zip(rows, unfit, strict=True) if not reason]
        ask_box = bool(self.editor.mask_argument)
        prompts = [
            Prompt(f"edit:{row.id}", writer_prompt(row, ask_box=ask_box), row.images) for row in usable
        ]
        replies = iter(self.writer.ask(prompts) if prompts else ())

        def read(row: QuestionRow, reply: Answers) -> Proposal | str:
            if isinstance(reply, Refusal):
                return f"writer_refused: {reply.why}, expected a proposal"
            return read_proposal(reply[0], row, ask_box=ask_box)

        return [reason or read(row, next(replies)) for row, reason in zip(rows, unfit, strict=True)]

    def _pair(self, row: QuestionRow, proposal: Proposal) -> ContrastivePair | str:
        config, editor = self.config, self.editor
        rng = Random(f"edit:{config.seed}:{row.id}")
        edit_seed, is_mirrored = rng.getrandbits(62), rng.random() < 0.5
        original = made_smaller(row.images[0].decode(row.id), config.max_pixels)
        edited = editor.edit(original, proposal.instruction, edit_seed, proposal.box)
        if isinstance(edited, str):
            return edited
        size = original.size
        if config.reencode:
            original = _resized(editor.through_autoencoder(original, edited.size), size)
        pair = ContrastivePair(
            id=f"{row.id}~edit",
            query=row.query,
            answer=row.answer,
            context=EncodedImage.from_image(original),
            confounder=EncodedImage.from_image(_resized(edited, size)),
            confounder_answer=proposal.answer,
            options=row.options,
            answer_type=row.answer_type,
            domain=row.domain,
            recipe=RECIPE,
            provenance=provenance(
                row,
                edit=proposal.instruction,
                edited="context" if is_mirrored else "confounder",
                box=proposal.box and list(proposal.box),
                writer=config.writer.name,
                writer_revision=self.writer.revision,
                editor=editor.settings.path,
                editor_revision=editor.revision,
                editor_arguments=editor.further,
                reencoded=config.reencode,
                seed=config.seed,
                edit_seed=edit_seed,
            ),
            verdicts=dict(row.verdicts),
        )
        mirrored = replace(pair, answer=proposal.answer, context=pair.confounder, confounder=pair.context)
        return replace(mirrored, confounder_answer=row.answer) if is_mirrored else pair

    def _kept(self, row_id: str, verified: Outcome) -> Outcome:
        """The verified pair, when its other answer was seen on its other side."""
        if verified.reason:
            return Outcome(row_id, (), verified.reason)
        (pair,) = verified.rows
        assert isinstance(pair, ContrastivePair)
        if self.config.verifier:
            said, needed = pair.verdicts["verifier"], self.config.verifier.agreement
            share = said["confounder_answer_share"]
            if share <= 0.5 or share < needed - 1e-9:
                heard = ", ".join(repr(answer) for answer in dict.fromkeys(said["confounder_answers"]))
                found = f"{pair.confounder_answer!r} in {share:.3g} of the answers on the confounder (heard {heard})"
                return Outcome(row_id, (), f"other_answer_unseen: {found}, expected {needed:g}")
        changed = pair.verdicts["exact"]["changed_fraction"]
        return Outcome(row_id, (replace(pair, provenance={**pair.provenance, "changed_fraction": changed}),))


def _unfit(row: QuestionRow) -> str:
    if len(row.images) != 1:
        return f"not_one_image: {len(row.images)} images, expected one"
    if row.context_text:
        return "has_text: a context_text beside the image, expected an image alone"
    return ""


def made_smaller(image: Image.Image, max_pixels: int) -> Image.Image:
    """The picture in at most `max_pixels` pixels, its proportions kept; the same picture when it is small enough."""
    width, height = image.size
    scale = (max_pixels / (width * height)) ** 0.5
    return image if scale >= 1 else _resized(image, (max(1, int(width * scale)), max(1, int(height * scale))))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def run(config: EditConfig, input: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Write the pairs to `out`, the other questions with their reasons to its rejects, and return the summary.

    edited: how many pairs have the edited picture on which side.
    """
    editor = open_editor(config.editor)
    if config.reencode and not editor.has_autoencoder:
        raise ConfigError(f"reencode: {config.editor.path} has no autoencoder; set it to false")
    questions = question_input(input, config.licence)
    asked = [config.writer, *([config.verifier.assistant] if config.verifier else [])]
    summary = run_step(
        EditStep(config, editor),
        questions.rows,
        out,
        recipe=RECIPE,
        config={**config.model_dump(mode="json"), "editor_revision": editor.revision},
        input_hash=questions.content_hash,
        batch_size=config.batch_rows,
        engine=engine,
        refused=questions.refused,
        asked=[each.content for each in asked],
    )
    told = (
        json_object(record["provenance"], str(out)) for record in read_rows(out)[1].records(["provenance"])
    )
    edited = Counter(value["edited"] for value in told)
    return {**summary, "edited": dict(sorted(edited.items()))}
