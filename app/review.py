"""The review without its page: which pair a visitor sees, what a key or a button does, how far everybody is.

A visitor's `Session` holds a filter and the pair that is shown. The queue is what the filter leaves, in the order of the dataset; a
decision goes on to the next pair that the filter leaves then. A decision names the pair that the visitor saw: when the page was slower than
the fingers, nothing is decided.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.app.catalogue import Catalogue
from vlm_contextrl.app.decisions import STATES, DecisionLog, annotator_name
from vlm_contextrl.app.facets import clicked, filter_words
from vlm_contextrl.app.filters import Filter, States, matching
from vlm_contextrl.errors import InputError

REASONS = (
    "wrong answer",
    "both sides support the answer",
    "neither side supports the answer",
    "cannot be seen",
    "artefacts give it away",
    "unclear question",
)
MAX_SEARCH_CHARACTERS = 200
_DONE = {"accept": "accepted", "reject": "rejected", "skip": "skipped"}


@dataclass(frozen=True)
class Bulk:
    """A decision on many pairs that waits for its confirmation: on these, whatever the filter is by then."""

    verdict: str
    ids: tuple[str, ...]
    reason: str
    words: str


@dataclass
class Session:
    """What one visitor sees. undoable: the ids of the lines of each decision made here, the latest at the end."""

    asked: Filter = field(default_factory=lambda: Filter({"state": frozenset({"undecided"})}))
    at: int | None = None
    undoable: list[tuple[str, ...]] = field(default_factory=list)
    bulk: Bulk | None = None
    message: str = ""
    failed: bool = False


class Review:
    """The review of one dataset; what all visitors share."""

    def __init__(self, catalogue: Catalogue, log: DecisionLog) -> None:
        self.catalogue, self.log = catalogue, log
        self._states: States = np.zeros(len(catalogue), dtype=np.int64)
        self._seen = 0
        self._lock = threading.RLock()

    def states(self) -> States:
        """The state of every pair by now, as places in STATES."""
        with self._lock:
            self.log.refresh()
            count, touched = self.log.changed_since(self._seen)
            if count < self._seen:  # the file was made shorter by somebody
                self._states[:] = 0
                count, touched = self.log.changed_since(0)
            for pair in set(touched):
                if (index := self.catalogue.by_id.get(pair)) is not None:
                    self._states[index] = STATES.index(self.log.state(pair))
            self._seen = count
            found = self._states.copy()
        found[list(self.catalogue.faults)] = STATES.index("broken")
        return found

    def queue(self, session: Session) -> NDArray[np.int64]:
        """Indices of the pairs that the session's filter leaves."""
        return matching(self.catalogue, self.states(), session.asked)

    # ------------------------------------------------------------ looking

    def open(self, session: Session, pair: str = "") -> None:
        """The pair of this id, in the queue or not; without an id the first one of the queue."""
        with self._speaking(session):
            if not pair:
                self._go(session, None)
            elif pair in self.catalogue.by_id:
                session.at = self.catalogue.by_id[pair]
            else:
                self._go(session, None)
                raise InputError(f"there is no pair {pair!r:.80} in this dataset")

    def step(self, session: Session, by: int) -> None:
        """The next pair of the queue (by 1) or the one before (-1), around the ends."""
        with self._speaking(session):
            self._go(session, session.at, by)

    def click(self, session: Session, facet: object, at: object) -> None:
        """A click on a bar of a facet."""
        self._narrow(session, clicked(self.catalogue, session.asked, facet, at))

    def search(self, session: Session, words: str) -> None:
        """Only pairs that hold these words."""
        asked = session.asked.searching(str(words)[:MAX_SEARCH_CHARACTERS])
        if asked != session.asked:
            self._narrow(session, asked)

    def clear(self, session: Session) -> None:
        """No condition at all."""
        self._narrow(session, Filter())

    # ------------------------------------------------------------ deciding

    def decide(self, session: Session, shown: str, annotator: str, verdict: str, reason: str = "") -> None:
        """On the pair that is shown, under its key `shown`; then the next one."""
        with self._speaking(session):
            index = session.at
            if index is None or self.catalogue.keys[index] != shown:
                raise InputError("the pair had changed: look at this one, then decide")
            if index in self.catalogue.faults:
                raise InputError("a broken row cannot be decided on; exports leave it out and say so")
            name = self.catalogue.ids[index]
            session.undoable.append(self.log.decide(annotator, [name], verdict, reason))
            self._go(session, index)
            session.message = f"{name} {_DONE[verdict]}"

    def undo(self, session: Session, annotator: str) -> None:
        """Take back the last decision made in this session, and show its pair."""
        with self._speaking(session):
            if not session.undoable:
                raise InputError("nothing to undo: no decision was made in this window")
            who = annotator_name(annotator)
            pairs = self.log.undo(who, session.undoable[-1])
            if not pairs:
                raise InputError(f"nothing undone: the last decision here was not made as {who}")
            session.undoable.pop()
            session.at = self.catalogue.by_id.get(pairs[0], session.at)
            session.message = f"undone: {pairs[0]}" if len(pairs) == 1 else f"undone: {len(pairs)} decisions"

    def ask_bulk(self, session: Session, verdict: str, reason: str = "") -> None:
        """Prepare a decision on everything that the filter leaves; nothing is written before it is confirmed."""
        with self._speaking(session):
            if verdict == "reject" and not reason.strip():
                raise InputError("a rejection needs a reason: choose one or write one")
            ids = tuple(self.catalogue.ids[i] for i in self.queue(session) if i not in self.catalogue.faults)
            if not ids:
                raise InputError("no pair matches the filter: nothing to decide")
            session.bulk = Bulk(verdict, ids, reason.strip(), filter_words(session.asked) or "all pairs")

    def confirm_bulk(self, session: Session, annotator: str) -> None:
        """Write what `ask_bulk` prepared."""
        with self._speaking(session):
            bulk = session.bulk
            if bulk is None:
                raise InputError("there is nothing to confirm")
            session.undoable.append(self.log.decide(annotator, bulk.ids, bulk.verdict, bulk.reason))
            session.bulk = None
            self._go(session, session.at)
            session.message = f"{len(bulk.ids):,} pairs {_DONE[bulk.verdict]}"

    def cancel_bulk(self, session: Session) -> None:
        """Forget it."""
        with self._speaking(session):
            session.bulk = None
            session.message = "nothing was decided"

    # ------------------------------------------------------------ inside

    @contextmanager
    def _speaking(self, session: Session) -> Iterator[None]:
        """One visitor at a time, and what the visitor did wrong becomes a message."""
        with self._lock:
            session.message, session.failed = "", False
            try:
                yield
            except InputError as error:
                session.message, session.failed = str(error), True

    def _narrow(self, session: Session, asked: Filter) -> None:
        with self._speaking(session):
            session.asked, session.bulk = asked, None
            queue = self.queue(session)
            if session.at is None or session.at not in queue:
                session.at = int(queue[0]) if len(queue) else None

    def _go(self, session: Session, from_index: int | None, by: int = 1) -> None:
        queue = self.queue(session)
        session.at = following(queue, from_index, by)
        session.bulk = None


def following(queue: Sequence[int] | NDArray[np.int64], index: int | None, by: int = 1) -> int | None:
    """The member of an ascending queue after (by 1) or before (-1) an index, around the ends; None for an empty queue."""
    if len(queue) == 0:
        return None
    if index is None:
        return int(queue[0])
    place = int(np.searchsorted(queue, index, side="right" if by > 0 else "left"))
    return int(queue[(place if by > 0 else place - 1) % len(queue)])
