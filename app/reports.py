"""The pages beside the review, as whole HTML documents without a script: the dataset's, and a run's while it trains.

They are those that `pairs stats --html` and training write, made anew when what they show has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vlm_contextrl.app.catalogue import Catalogue
from vlm_contextrl.app.run_view import run_page, run_version, run_words
from vlm_contextrl.dataset_report.page import dataset_page
from vlm_contextrl.errors import ContextRLError, DataError
from vlm_contextrl.report.page import CONTENT_SECURITY_POLICY
from vlm_contextrl.report.style import CSS

Balance = Callable[[Path], Mapping[str, Any]]


class Reports:
    """Pages of one dataset and, when one was named, of one run. balance: measures what might give the answer away; reads every picture, so
    it is begun when the page is first asked for, and the page is complete when it is done."""

    def __init__(self, catalogue: Catalogue, run: Path | None, balance: Balance | None = None) -> None:
        self.catalogue, self.run = catalogue, run
        self._measure, self._balance = balance, None if balance else "not measured here"
        self._found: Mapping[str, Any] | None = None
        self._kept: dict[str, tuple[str, str]] = {}  # page: its version and text
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ the dataset

    def dataset_version(self) -> str:
        """Changes when the page does."""
        return "complete" if self._balance is not None else "measuring"

    def dataset_words(self) -> str:
        """What the page does not hold (yet), in one line; empty when there is nothing to say."""
        if self.dataset_version() == "measuring":
            return (
                "Measuring what might tell context from confounder; the page is shown again when it is done."
            )
        return f"Balance: {self._balance}" if self._balance else ""

    def dataset(self) -> str:
        """The dataset's page."""
        self._begin()
        return self._made("dataset", self.dataset_version(), self._dataset)

    def _dataset(self) -> str:
        try:
            return dataset_page(self.catalogue.path, balance=self._found)
        except DataError:  # one of the examples is a broken row
            return dataset_page(self.catalogue.path, balance=self._found, shown=0)

    def _begin(self) -> None:
        with self._lock:
            if self._measure is None or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._measured, daemon=True)
            self._thread.start()

    def _measured(self) -> None:
        assert self._measure is not None
        try:
            self._found = self._measure(self.catalogue.path)
            self._balance = ""
        except ContextRLError as error:
            self._balance = f"cannot be measured: {error}"

    # ------------------------------------------------------------ the run

    def run_version(self) -> str:
        """Changes when the run has written something."""
        return run_version(self.run) if self.run else ""

    def run_words(self) -> str:
        """How far the run is."""
        try:
            return run_words(self.run) if self.run else ""
        except DataError as error:
            return str(error)

    def run_report(self) -> str:
        """The run's page."""
        run = self.run
        if run is None:
            return message_page("No run", "Start the app with --run DIR to see one.")
        return self._made("run", run_version(run), lambda: run_page(run))

    def _made(self, name: str, version: str, make: Callable[[], str]) -> str:
        with self._lock:
            known, text = self._kept.get(name, ("", ""))
        if known != version or not text:
            try:
                text = make()
            except DataError as error:
                return message_page("This page cannot be shown", str(error))
            with self._lock:
                self._kept[name] = (version, text)
        return text


def message_page(title: str, text: str) -> str:
    """In place of a page that cannot be made."""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><title>{escape(title)}</title>
<style>{CSS}</style></head><body><main><h1>{escape(title)}</h1><p class="lead">{escape(text)}</p></main></body></html>
"""
