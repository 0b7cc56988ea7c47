"""Held-out questions and pairs while training: the measures of `probe`, by the same code, together and by domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vlm_contextrl.config import DataSettings
from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.rows import report_rejects
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import contexts, measures, pair_margins, selection_prompt
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.vqa import Answered, answer_questions, question_prompt

Unit = TypeVar("Unit")
KEPT = ("selection_accuracy", "order_consistent_accuracy", "same_image_control", "mean_margin")


class HeldOut:
    """The held-out sets of a run. Opened and checked before training: a missing or broken one is an error at once, not hours later."""

    def __init__(self, data: DataSettings) -> None:
        self.style = data.prompt_style
        self.questions = read_questions(data.eval_questions) if data.eval_questions else None
        self.pairs = read_pairs(data.eval_pairs) if data.eval_pairs else None
        for rows, folder in ((self.questions, data.eval_questions), (self.pairs, data.eval_pairs)):
            if rows is not None and folder:
                report_rejects(rows, folder)

    def check(self, policy: Policy, ranks: Ranks) -> None:
        """DataError for a row that cannot be shown to this model."""
        wrong = ranks.each(
            self.questions or (), lambda rows: [_error(self._show, policy, row) for row in rows]
        )
        wrong += ranks.each(
            self.pairs or (), lambda pairs: [_error(_show_pair, policy, pair) for pair in pairs]
        )
        if reason := next(filter(None, wrong), None):
            raise DataError(reason)

    def _show(self, policy: Policy, row: QuestionRow) -> None:
        question_prompt(policy.processor, row, self.style)

    def measure(
        self, policy: Policy, max_new_tokens: int, budget_tokens: int, ranks: Ranks
    ) -> dict[str, Any]:
        """{name: {value, n, low, high}} of selection and of greedy answers, for the sets that there are; by_domain: {domain: the same}."""
        out: dict[str, Any] = {}
        by_domain: dict[str, dict[str, Any]] = defaultdict(dict)
        if self.pairs is not None:
            margins = ranks.each(
                self.pairs, lambda pairs: pair_margins(policy, pairs, budget_tokens=budget_tokens)
            )
            out |= _selection(margins)
            for domain, some in _by_domain(margins, lambda pair: pair["domain"]).items():
                by_domain[domain] |= _selection(some)
        if self.questions is not None:
            answered = ranks.each(
                self.questions,
                lambda rows: answer_questions(
                    policy, rows, style=self.style, max_new_tokens=max_new_tokens, budget_tokens=budget_tokens
                ),
            )
            out |= _answers(answered)
            for domain, those in _by_domain(answered, lambda answer: answer.domain).items():
                by_domain[domain] |= _answers(those)
        return out | {"by_domain": by_domain}


def _show_pair(policy: Policy, pair: ContrastivePair) -> None:
    selection_prompt(policy.processor, pair, contexts(policy.processor, pair))


def _error(show: Callable[[Policy, Any], None], policy: Policy, row: Any) -> str | None:
    try:
        show(policy, row)
    except DataError as error:
        return str(error)
    return None


def _selection(margins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = measures(margins)
    return {name: found[name] for name in KEPT}


def _answers(answered: Sequence[Answered]) -> dict[str, Any]:
    return {"vqa_accuracy": bootstrap([float(each.correct) for each in answered])}


def _by_domain(units: Sequence[Unit], domain_of: Callable[[Unit], str]) -> dict[str, list[Unit]]:
    groups: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        groups[domain_of(unit)].append(unit)
    return groups
