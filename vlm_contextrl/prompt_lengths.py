"""Prompts that do not fit are found before training, never truncated: a cut prompt loses image tokens or the question."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from vlm_contextrl.asked_pairs import ask, further_contexts
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.prompts import Style
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.term_settings import SelectionTerm
from vlm_contextrl.training_rows import OtherContexts
from vlm_contextrl.vqa import question_prompt


class Overlong:
    """Rows over the limit: an error, or records for rejects.jsonl."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        self.limit, self.stop = config.data.max_prompt_tokens, config.data.on_overlong == "error"
        self.style = config.data.prompt_style
        self.found: list[dict[str, Any]] = []

    def usable(self, policy: Policy, rows: Sequence[Any], kind: str, length: Callable[..., int]) -> list[int]:
        """Indices of rows whose prompt fits. Raises DataError in `error` mode, or when nothing is left."""
        from rich.progress import track

        def measured(some: Sequence[int]) -> list[int | tuple[str, str]]:
            """Of rows by number the length, or the id and what is wrong."""
            shown = track(some, f"measuring {kind}", transient=True, disable=not self.ranks.is_first)
            return [self._length(policy, rows, i, length) for i in shown]

        by_row = self.ranks.each(range(len(rows)), measured)
        wrong = [value for value in by_row if isinstance(value, tuple)]
        lengths = {i: value for i, value in enumerate(by_row) if isinstance(value, int)}
        if wrong and (self.stop or not lengths):
            raise DataError(wrong[0][1])
        self.found += [{"kind": kind, "id": row_id, "reason": reason} for row_id, reason in wrong]
        usable = [i for i, n in lengths.items() if n <= self.limit]
        over = [i for i, n in lengths.items() if n > self.limit]
        if over and (self.stop or not usable):
            raise DataError(
                f"{kind}: {len(over)} of {len(rows)} prompts are longer than {self.limit} tokens, first {rows[over[0]].id} with "
                f"{lengths[over[0]]}, longest {max(lengths.values())}; raise data.max_prompt_tokens, lower model.max_pixels, "
                "or set data.on_overlong=reject"
            )
        refused = getattr(rows, "rejects", ())  # foreign formats: what the reader could not use
        self.found += [{"kind": kind, "id": row_id, "reason": reason} for row_id, reason in refused]
        self.found += [
            {"kind": kind, "id": rows[i].id, "reason": f"prompt of {lengths[i]} tokens"} for i in over
        ]
        return usable

    def _length(
        self, policy: Policy, rows: Sequence[Any], i: int, length: Callable[..., int]
    ) -> int | tuple[str, str]:
        row_id = f"row {i}"
        try:
            row = rows[i]
            row_id = row.id
            return length(policy, row, self.style)
        except DataError as error:  # a picture that the processor refuses, for instance
            return row_id, str(error)

    def write(self, run: RunDirectory) -> None:
        """rejects.jsonl of the run, and one line that says so, when there are any."""
        if self.found:
            counts = Counter(reject["kind"] for reject in self.found)
            shown = ", ".join(f"{n} {kind}" for kind, n in counts.items())
            print(f"not used: {shown}; reasons in {run.path / 'rejects.jsonl'}", file=sys.stderr)
            (run.path / "rejects.jsonl").unlink(missing_ok=True)
            for reject in self.found:
                run.write("rejects", reject)


def question_length(policy: Policy, row: QuestionRow, style: Style) -> int:
    return len(question_prompt(policy.processor, row, style))


class PairLength:
    """Of the longest prompt about a pair, in either direction and with all contexts that a term shows."""

    def __init__(self, config: RunConfig, other_contexts: OtherContexts | None) -> None:
        terms = [t for stage in config.stages for t in stage.objective if isinstance(t, SelectionTerm)]
        self.longer_choices = [term for term in terms if term.contexts > 2]
        self.other_contexts = other_contexts

    def __call__(self, policy: Policy, pair: ContrastivePair, style: Style) -> int:
        shown = [further_contexts(term, pair, self.other_contexts) for term in self.longer_choices] or [[]]
        rng = random.Random(pair.id)  # any order: all are equally long
        asked = [ask(policy.processor, pair, rng, reverse=True, others=others) for others in shown]
        return max(len(each.prompt) for choice in asked for each in choice)
