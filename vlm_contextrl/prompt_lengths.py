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
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.term_settings import SelectionTerm
from vlm_contextrl.training_rows import OtherContexts
from vlm_contextrl.vqa import question_prompt


class Overlong:
    """Rows over the limit: an error, or records for rejects.jsonl."""

    def __init__(self, config: RunConfig) -> None:
        self.limit, self.stop = config.data.max_prompt_tokens, config.data.on_overlong == "error"
        self.style = config.data.prompt_style
        self.found: list[dict[str, Any]] = []

    def usable(self, policy: Policy, rows: Sequence[Any], kind: str, length: Callable[..., int]) -> list[int]:
        """Indices of rows whose prompt fits. Raises DataError in `error` mode, or when nothing is left."""
        from rich.progress import track

        lengths: dict[int, int] = {}
        for i in track(range(len(rows)), f"measuring {kind}", transient=True):
            row_id = f"row {i}"
            try:
                row = rows[i]
                row_id = row.id
                lengths[i] = length(policy, row, self.style)
            except DataError as error:  # a picture that the processor refuses, for instance
                if self.stop:
                    raise
                self.found.append({"kind": kind, "id": row_id, "reason": str(error)})
        if not lengths:
            raise DataError(
                f"{kind}: none of {len(rows)} rows can be used, first {self.found[-len(rows)]['reason']}"
            )
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
