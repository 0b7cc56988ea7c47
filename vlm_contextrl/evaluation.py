"""Held-out questions and pairs while training: the measures of `probe`, by the same code, together and by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_contextrl.config import DataSettings
from vlm_contextrl.foreign.rows import report_rejects
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import probe, share_right
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.vqa import answer_questions

KEPT = ("selection_accuracy", "order_consistent_accuracy", "same_image_control", "mean_margin")


class HeldOut:
    """The held-out sets of a run. Opened before training, so that a missing or broken one is an error at once, not hours later."""

    def __init__(self, data: DataSettings) -> None:
        self.style = data.prompt_style
        self.questions = read_questions(data.eval_questions) if data.eval_questions else None
        self.pairs = read_pairs(data.eval_pairs) if data.eval_pairs else None
        for rows, folder in ((self.questions, data.eval_questions), (self.pairs, data.eval_pairs)):
            if rows is not None and folder:
                report_rejects(rows, folder)

    def measure(self, policy: Policy, max_new_tokens: int, budget_tokens: int) -> dict[str, Any]:
        """{name: {value, n, low, high}} of selection and of greedy answers, for the sets that there are; by_domain: {domain: the same
        of selection_accuracy and vqa_accuracy}."""
        out: dict[str, Any] = {}
        units: list[tuple[str, str, float]] = []
        if self.pairs is not None:
            measured = probe(policy, self.pairs, budget_tokens=budget_tokens)
            out = {name: measured[name] for name in KEPT}
            units += [
                (p["domain"], "selection_accuracy", share_right(p["margins"])) for p in measured["per_pair"]
            ]
        if self.questions is not None:
            answered = answer_questions(
                policy,
                self.questions,
                style=self.style,
                max_new_tokens=max_new_tokens,
                budget_tokens=budget_tokens,
            )
            out["vqa_accuracy"] = bootstrap([float(a.correct) for a in answered])
            units += [(a.domain, "vqa_accuracy", float(a.correct)) for a in answered]
        return out | {"by_domain": _by_domain(units)}


def _by_domain(units: Sequence[tuple[str, str, float]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, list[float]]] = {}
    for domain, name, value in units:
        groups.setdefault(domain, {}).setdefault(name, []).append(value)
    return {
        domain: {name: bootstrap(values) for name, values in named.items()}
        for domain, named in groups.items()
    }
