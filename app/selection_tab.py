"""The page on which models choose: between the sides of a pair, or of a visitor's own question with two pictures.

One event at a time asks the models, whoever sent it; the others wait in a queue of limited length, and each can be cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlm_contextrl.app import cards
from vlm_contextrl.app.choice_html import NO_MODEL, choices_table, progress_line
from vlm_contextrl.app.chooser import Chooser
from vlm_contextrl.app.pictures import Pictures
from vlm_contextrl.app.review import Review, Session
from vlm_contextrl.app.viewer import pair_viewer
from vlm_contextrl.errors import ContextRLError, DataError, InputError
from vlm_contextrl.images import IMAGE_SUFFIXES, decode_image
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, check_pair

OWN_ID = "own question"
MAX_TEXT_CHARACTERS = 2000
_ASKING: dict[str, Any] = {
    "api_visibility": "private", "show_progress": "hidden", "concurrency_id": "model", "concurrency_limit": 1,
}  # fmt: skip
Values = tuple[Any, str, str, str]  # viewer, question, result, status


class SelectionTab:
    """Builds the tab inside a `gr.Blocks`. session: of the review, whose pair is taken over."""

    def __init__(
        self, tab: gr.Tab, review: Review, session: gr.State, pictures: Pictures, chooser: Chooser | None
    ) -> None:
        self._review, self._pictures, self._chooser = review, pictures, chooser
        if chooser is None:
            gr.HTML(NO_MODEL, elem_id="no-model", apply_default_css=False)
            return
        with gr.Row():
            self.pair = gr.Textbox(
                label="Pair", placeholder="id of a pair", elem_id="selection-pair", scale=3
            )
            ask = gr.Button("Ask the model", variant="primary", elem_id="ask", scale=1)
            cancel = gr.Button("Cancel", elem_id="ask-cancel", scale=1)
        with gr.Accordion("Your own question about two pictures", open=False, elem_id="own"):
            with gr.Row():
                query = gr.Textbox(label="Question", elem_id="own-query", max_length=MAX_TEXT_CHARACTERS)
                answer = gr.Textbox(
                    label="Answer that C+ supports", elem_id="own-answer", max_length=MAX_TEXT_CHARACTERS
                )
                other = gr.Textbox(
                    label="Answer that C\N{MINUS SIGN} supports (may be empty)",
                    elem_id="own-other",
                    max_length=MAX_TEXT_CHARACTERS,
                )
            with gr.Row():
                kinds = sorted(IMAGE_SUFFIXES)
                context = gr.File(
                    label="Picture C+", type="binary", file_types=kinds, elem_id="own-context", height=120
                )
                confounder = gr.File(
                    label="Picture C\N{MINUS SIGN}",
                    type="binary",
                    file_types=kinds,
                    elem_id="own-confounder",
                    height=120,
                )
            ask_own = gr.Button("Ask about these", elem_id="ask-own")
        status = gr.HTML(elem_id="ask-status", apply_default_css=False)
        question = gr.HTML(elem_id="ask-question", apply_default_css=False)
        viewer = pair_viewer()
        result = gr.HTML(elem_id="ask-result", apply_default_css=False)
        outputs = [viewer, question, result, status]
        asked: list[dict[str, Any]] = [
            ask.click(self._ask, [session, self.pair], outputs, **_ASKING),
            self.pair.submit(self._ask, [session, self.pair], outputs, **_ASKING),
            ask_own.click(self._ask_own, [query, answer, other, context, confounder], outputs, **_ASKING),
        ]
        cancel.click(
            _cancelled,
            None,
            status,
            cancels=asked,
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        )
        tab.select(
            self._taken_over,
            [session, self.pair],
            self.pair,
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        )

    def _taken_over(self, session: Session, name: str) -> str:
        """The pair under review, until one was named here."""
        return name if session.at is None else self._review.catalogue.ids[session.at]

    def _ask(self, session: Session, name: str) -> Iterator[Values]:
        """About the pair of this name, or the one under review when none is named (yet)."""
        name = str(name).strip() or self._taken_over(session, "")
        index = self._review.catalogue.by_id.get(name)
        if index is None:
            yield None, "", "", cards.status(f"there is no pair {name!r:.80} in this dataset", failed=True)
            return
        try:
            pair = self._review.catalogue.pair(index)
        except DataError as error:
            yield None, cards.broken_card(self._review.catalogue.ids[index], str(error)), "", ""
            return
        yield from self._said(pair, self._pictures.value(index, pair))

    def _ask_own(
        self, query: str, answer: str, other: str, context: bytes | None, confounder: bytes | None
    ) -> Iterator[Values]:
        try:
            pair, viewer = self._own_pair(query, answer, other, context, confounder)
        except InputError as error:
            yield None, "", "", cards.status(str(error), failed=True)
            return
        yield from self._said(pair, viewer)

    def _said(self, pair: ContrastivePair, viewer: dict[str, Any] | None) -> Iterator[Values]:
        assert self._chooser is not None
        question = cards.question_card(pair) + ("" if viewer else cards.texts(pair))
        total = self._chooser.stages()
        waiting = "asking" if self._chooser.is_loaded else "loading the model"
        yield viewer, question, "", progress_line(0, total, waiting)
        table = ""
        try:
            for done, said in enumerate(self._chooser.choose(pair), start=1):
                table = choices_table(said)
                yield gr.skip(), gr.skip(), table, progress_line(done, total, f"{done} of {total}")
        except ContextRLError as error:
            yield gr.skip(), gr.skip(), table, cards.status(str(error), failed=True)
            return
        yield gr.skip(), gr.skip(), table, cards.status("asked in both orders", failed=False)

    def _own_pair(
        self, query: str, answer: str, other: str, context: bytes | None, confounder: bytes | None
    ) -> tuple[ContrastivePair, dict[str, Any]]:
        """The visitor's pair and its viewer's value. Pictures are decoded within the bounds of `decode_image`, then kept as plain PNG."""
        if not context or not confounder:
            raise InputError("two pictures are needed: one for C+, one for C\N{MINUS SIGN}")
        images = [
            decode_image(bytes(data), name)
            for data, name in ((context, "picture C+"), (confounder, "picture C\N{MINUS SIGN}"))
        ]
        first, second = (EncodedImage.from_image(image) for image in images)
        query, answer, other = (str(text).strip()[:MAX_TEXT_CHARACTERS] for text in (query, answer, other))
        pair = ContrastivePair(
            id=OWN_ID, query=query, answer=answer, confounder_answer=other or None, context=first, confounder=second,
            provenance={"licence": "the visitor's own"},
        )  # fmt: skip
        if reason := check_pair(pair):
            raise InputError(reason)
        return pair, self._pictures.upload(images, ("Your picture C+", "Your picture C\N{MINUS SIGN}"))


def _cancelled() -> str:
    return cards.status("cancelled", failed=False)
