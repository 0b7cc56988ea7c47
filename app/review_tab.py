"""The page of the review: components, and which action of `Review` each of them calls.

Every event is private: it has no name in the API. Events run outside Gradio's queue, which would add a round trip to every key; app.js
sends them one at a time, so that the last answer is of the last event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from vlm_contextrl.app import cards, facets
from vlm_contextrl.app.export import export_reviewed
from vlm_contextrl.app.pictures import Pictures
from vlm_contextrl.app.review import REASONS, Review, Session, following
from vlm_contextrl.app.viewer import pair_viewer
from vlm_contextrl.errors import DataError, InputError

_SENDS_FACET = """
let pressed = null;
element.addEventListener('click', event => {
  const bar = event.target.closest('[data-facet]');
  if (!bar) return;
  pressed = `[data-facet="${bar.dataset.facet}"][data-at="${bar.dataset.at}"]`;
  trigger('click', {facet: bar.dataset.facet, at: Number(bar.dataset.at)});
});
watch('value', () => { if (pressed) element.querySelector(pressed)?.focus(); pressed = null; });
"""
_SENDS_REASON = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-reason]');
  if (button) trigger('click', {reason: Number(button.dataset.reason)});
});
"""
Handler = Callable[..., list[Any]]


class ReviewTab:
    """Builds the tab inside a `gr.Blocks`; `load` connects the first view of a visitor."""

    def __init__(self, review: Review, pictures: Pictures, annotator: str) -> None:
        self.review, self.pictures = review, pictures
        self.session = gr.State(Session())
        with gr.Row():
            with gr.Column(scale=1, min_width=260, elem_id="filters"):
                self.search = gr.Textbox(
                    label="Search", placeholder="words, all of them", elem_id="search", max_length=200
                )
                self.facets = gr.HTML(js_on_load=_SENDS_FACET, elem_id="facets", apply_default_css=False)
                self.clear = gr.Button("Clear the filter", size="sm", elem_id="clear")
            with gr.Column(scale=3, min_width=420):
                self.progress = gr.HTML(elem_id="progress", apply_default_css=False)
                self.card = gr.HTML(elem_id="card", apply_default_css=False)
                self.viewer = pair_viewer()
                self.texts = gr.HTML(elem_id="texts", apply_default_css=False)
                self._buttons(annotator)
                self.details = gr.HTML(elem_id="details", apply_default_css=False)
        self.shown = gr.Textbox(visible="hidden", elem_id="shown")
        gr.HTML(cards.help_dialog(), apply_default_css=False)
        self.outputs = [
            self.session, self.viewer, self.texts, self.card, self.details, self.progress, self.facets,
            self.status, self.shown, self.bulk, self.bulk_words, self.reason,
        ]  # fmt: skip
        self._connect()

    def load(self, demo: gr.Blocks) -> None:
        """Open what the address asks for, `?pair=ID`, or the first pair that is undecided."""

        def opened(session: Session, request: gr.Request) -> list[Any]:
            self.review.open(session, request.query_params.get("pair", ""))
            return self._rendered(session)

        demo.load(
            opened, self.session, self.outputs, api_visibility="private", show_progress="hidden", queue=False
        )

    def _buttons(self, annotator: str) -> None:
        with gr.Row(elem_id="actions"):
            self.previous = gr.Button("Previous (k)", elem_id="previous", size="sm", min_width=90)
            self.next = gr.Button("Next (j)", elem_id="next", size="sm", min_width=90)
            self.accept = gr.Button(
                "Accept (a)", elem_id="accept", variant="primary", size="sm", min_width=90
            )
            self.reject = gr.Button("Reject (r)", elem_id="reject", size="sm", min_width=90)
            self.skip = gr.Button("Skip (s)", elem_id="skip", size="sm", min_width=90)
            self.undo = gr.Button("Undo (u)", elem_id="undo", size="sm", min_width=90)
            self.help = gr.Button("Keys (?)", elem_id="help-button", size="sm", min_width=90)
        self.status = gr.HTML(elem_id="status", apply_default_css=False)
        self.reasons = gr.HTML(
            cards.reason_buttons(), js_on_load=_SENDS_REASON, elem_id="reasons", apply_default_css=False
        )
        with gr.Row():
            self.reason = gr.Textbox(
                label="Reason",
                placeholder="in your words; Enter rejects",
                elem_id="reason",
                max_length=500,
                scale=2,
            )
            self.annotator = gr.Textbox(
                annotator,
                label="Annotator",
                placeholder="your name",
                elem_id="annotator",
                max_length=60,
                scale=1,
            )
        with gr.Accordion("All pairs under the filter", open=False, elem_id="bulk"):
            with gr.Row():
                self.accept_all = gr.Button("Accept all of them", size="sm", elem_id="accept-all")
                self.reject_all = gr.Button(
                    "Reject all of them, with the reason above", size="sm", elem_id="reject-all"
                )
            with gr.Group(visible=False) as self.bulk:
                self.bulk_words = gr.HTML(apply_default_css=False)
                with gr.Row():
                    self.confirm = gr.Button("Confirm", variant="primary", size="sm", elem_id="confirm")
                    self.cancel = gr.Button("Cancel", size="sm", elem_id="cancel")
        with gr.Accordion("Export", open=False, elem_id="export"):
            gr.HTML(
                "<p>Accepted pairs become a new dataset beside the decisions, the others its rejects with their reasons. "
                '<a href="/decisions.jsonl" download>Download the decisions</a> (JSONL).</p>',
                apply_default_css=False,
            )
            self.export = gr.Button("Export the accepted pairs", size="sm", elem_id="export-button")
            self.exported = gr.HTML(elem_id="exported", apply_default_css=False)

    def _connect(self) -> None:
        review, who, reason, shown = self.review, self.annotator, self.reason, self.shown

        def decision(verdict: str) -> Callable[..., None]:
            return lambda session, key, name, why="": review.decide(session, key, name, verdict, why)

        def usual(session: Session, key: str, name: str, event: gr.EventData) -> list[Any]:
            number = event._data.get("reason")
            if isinstance(number, int) and 1 <= number <= len(REASONS):
                review.decide(session, key, name, "reject", REASONS[number - 1])
            return self._rendered(session)

        def facet(session: Session, event: gr.EventData) -> list[Any]:
            review.click(session, event._data.get("facet"), event._data.get("at"))
            return self._rendered(session)

        self._on(self.next.click, self._then(lambda session: review.step(session, 1)))
        self._on(self.previous.click, self._then(lambda session: review.step(session, -1)))
        self._on(self.accept.click, self._then(decision("accept")), shown, who)
        self._on(self.skip.click, self._then(decision("skip")), shown, who)
        self._on(self.reject.click, self._then(decision("reject")), shown, who, reason)
        self._on(self.reason.submit, self._then(decision("reject")), shown, who, reason)
        self._on(self.reasons.click, usual, shown, who)
        self._on(self.undo.click, self._then(review.undo), who)
        self._on(self.facets.click, facet)
        self._on(self.search.change, self._then(review.search), self.search, trigger_mode="always_last")
        self._on(self.clear.click, self._then(review.clear)).then(
            lambda: "", None, self.search, api_visibility="private", queue=False, show_progress="hidden"
        )
        self._on(self.accept_all.click, self._then(lambda session: review.ask_bulk(session, "accept")))
        self._on(
            self.reject_all.click,
            self._then(lambda session, why: review.ask_bulk(session, "reject", why)),
            reason,
        )
        self._on(self.confirm.click, self._then(review.confirm_bulk), who, trigger_mode="once")
        self._on(self.cancel.click, self._then(review.cancel_bulk))
        self.help.click(
            None, None, None, js="() => document.querySelector('#help').showModal()", api_visibility="private"
        )
        self.export.click(
            self._export,
            None,
            self.exported,
            api_visibility="private",
            concurrency_id="export",
            concurrency_limit=1,
        )

    def _on(self, event: Any, handler: Handler, *inputs: Any, **options: Any) -> Any:
        # Gradio's usual mode, "once", loses what is pressed between the new pair's appearance and the end of the event before.
        options.setdefault("trigger_mode", "multiple")
        return event(
            handler, [self.session, *inputs], self.outputs,
            api_visibility="private", show_progress="hidden", queue=False, **options,
        )  # fmt: skip

    def _then(self, action: Callable[..., None]) -> Handler:
        """The action, then everything that it may have changed."""

        def handler(session: Session, *values: Any) -> list[Any]:
            action(session, *values)
            return self._rendered(session)

        return handler

    def _export(self, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008  (how Gradio hands it in)
        def watch(done: int, total: int) -> None:
            progress((done, total), unit="pairs")

        try:
            folder, manifest = export_reviewed(self.review.catalogue, self.review.log, watch=watch)
        except InputError as error:
            return cards.status(str(error), failed=True)
        return cards.status(
            f"{manifest.rows} pairs written to {folder}, {manifest.rejects} left out (rejects.jsonl)", False
        )

    def _rendered(self, session: Session) -> list[Any]:
        return rendered(self.review, self.pictures, session)


def rendered(review: Review, pictures: Pictures, session: Session) -> list[Any]:
    """What a visitor sees now: a value per output of the tab."""
    catalogue, states = review.catalogue, review.states()
    queue = review.queue(session)
    index = session.at
    viewer, texts, card, details = None, "", cards.empty_card(len(catalogue)), ""
    if index is not None:
        try:
            pair = catalogue.pair(index)
            viewer = pictures.value(index, pair)
            texts = "" if viewer else cards.texts(pair)
            card, details = (
                cards.question_card(pair),
                cards.details(pair, review.log.standing(pair.id)),
            )
        except DataError as error:
            card = cards.broken_card(catalogue.ids[index], str(error))
        ahead = following(queue, index)
        if ahead not in (None, index):
            pictures.prepare_ahead(int(ahead))
    place = int(np.searchsorted(queue, index)) + 1 if index is not None and index in queue else None
    return [
        session,
        viewer,
        texts,
        card,
        details,
        cards.progress(states, place, len(queue)),
        facets.facets_html(catalogue, states, session.asked),
        cards.status(session.message, session.failed),
        catalogue.keys[index] if index is not None else "",
        gr.update(visible=session.bulk is not None),
        cards.bulk_words(session.bulk) if session.bulk else "",
        gr.skip() if session.failed else "",
    ]
