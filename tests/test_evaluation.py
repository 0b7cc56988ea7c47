"""Held-out measures while training: together, and by domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_contextrl import evaluation
from vlm_contextrl.config import DataSettings
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.vqa import Answered


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
    found = HeldOut(data).measure(policy, 8, 100)
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
