"""Held-out measures while training: together, and by domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl import evaluation
from vlm_contextrl.config import DataSettings
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.vqa import Answered


class Alone(Ranks):
    """Takes what is made as it is, whatever the rows are."""

    def each(self, rows: Any, made: Any) -> Any:
        return made(rows)


def test_parts_of_ranks_come_back_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows over three ranks: 0 3 6, 1 4, 2 5; and fewer rows than ranks."""
    for n in (7, 2, 0):
        parts = [[10 * i for i in range(n)][rank::3] for rank in range(3)]
        for rank in range(3):
            ranks = Ranks(rank, 3)
            seen: list[list[int]] = []
            monkeypatch.setattr(
                ranks, "gather", lambda own, seen=seen, parts=parts: seen.append(own) or parts
            )
            assert ranks.each(range(n), lambda rows: [10 * i for i in rows]) == [10 * i for i in range(n)]
            assert seen == [parts[rank]]


def test_measures_by_domain_by_hand(
    monkeypatch: pytest.MonkeyPatch, pairs_folder: Path, questions_folder: Path
) -> None:
    """Pairs: dials right in one order of two, charts in both and in none. Questions: dials 1 of 1, charts 1 of 2."""
    margins = [("dials", [1.0, -1.0]), ("charts", [1.0, 2.0]), ("charts", [-1.0, -2.0])]
    per_pair = [
        {"domain": d, "margins": m, "reverse_margins": None, "control_margins": [1.0, -1.0]}
        for d, m in margins
    ]
    answers = [("dials", True), ("charts", True), ("charts", False)]
    answered = [Answered(str(i), domain, False, "", right) for i, (domain, right) in enumerate(answers)]
    monkeypatch.setattr(evaluation, "pair_margins", lambda *_, **__: per_pair)
    monkeypatch.setattr(evaluation, "answer_questions", lambda *_, **__: answered)

    data = DataSettings(questions=questions_folder, eval_questions=questions_folder, eval_pairs=pairs_folder)
    policy: Any = None
    found = HeldOut(data).measure(policy, 8, 100, Alone())
    assert found.keys() == {*evaluation.KEPT, "vqa_accuracy", "by_domain"}
    values = {
        domain: {name: (entry["value"], entry["n"]) for name, entry in entries.items()}
        for domain, entries in found["by_domain"].items()
    }
    assert values == {
        "dials": {"selection_accuracy": (0.5, 1), "order_consistent_accuracy": (0.0, 1), "mean_margin": (0.0, 1),
                  "same_image_control": (0.5, 1), "vqa_accuracy": (1.0, 1)},
        "charts": {"selection_accuracy": (0.5, 2), "order_consistent_accuracy": (0.5, 2), "mean_margin": (0.0, 2),
                   "same_image_control": (0.5, 2), "vqa_accuracy": (0.5, 2)},
    }  # fmt: skip
