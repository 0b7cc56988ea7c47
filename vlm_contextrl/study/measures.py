"""What a trained model is measured by: greedy answers to questions and selection between the contexts of pairs, per measured set.

By question also per domain and form (`vqa_accuracy charts`, `vqa_accuracy multiple choice`), by pair per domain. The code is that of
`vlm-contextrl probe`, whose same-image control is 0.5 unless orders or letters are counted wrongly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm_contextrl.config import RunConfig
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.result_files import write_jsonl
from vlm_contextrl.study.data import Rows

SELECTION = (
    "selection_accuracy",
    "order_consistent_accuracy",
    "group_accuracy",
    "same_image_control",
    "mean_margin",
    "position_bias",
)


def measure_sets(
    config: RunConfig, model: Path | None, sets: Mapping[str, Rows], units: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(set, {measure: {value, n, low, high}}), one after the other, of the model that training left in folder `model`, or of the one that
    it starts from. units: folder for the single answers and margins."""
    import torch

    from vlm_contextrl.models import load_policy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = config.model
    if model is not None:
        trained = (
            {"adapter": str(model)} if settings.tuning == "lora" else {"path": str(model), "adapter": None}
        )
        settings = settings.model_copy(update=trained)
    policy = load_policy(settings, device, trainable=False)
    units.mkdir(exist_ok=True)
    for name, rows in sets.items():
        measured: dict[str, Any] = {}
        if rows.questions:
            measured |= _answers(policy, config, rows.questions, units / f"{name}_questions.jsonl")
        if rows.pairs:
            measured |= _selection(policy, config, rows.pairs, units / f"{name}_pairs.jsonl")
        yield name, measured


def _answers(policy: Any, config: RunConfig, folder: Path, units: Path) -> dict[str, Any]:
    from vlm_contextrl.models import autocast
    from vlm_contextrl.storage import read_questions
    from vlm_contextrl.vqa import answer_questions

    with autocast(config.model, policy.device):
        answered = answer_questions(
            policy,
            read_questions(folder),
            style=config.data.prompt_style,
            max_new_tokens=config.rollout.max_new_tokens,
            budget_tokens=config.optim.tokens_per_micro_batch,
        )
    write_jsonl(units, (asdict(each) for each in answered))
    named = [("vqa_accuracy", float(each.correct)) for each in answered]
    for each in answered:
        form = "multiple choice" if each.has_options else "open questions"
        groups = [group for group in (each.domain, form) if group]
        named += [(f"vqa_accuracy {group}", float(each.correct)) for group in groups]
    return _means(named)


def _selection(policy: Any, config: RunConfig, folder: Path, units: Path) -> dict[str, Any]:
    from vlm_contextrl.models import autocast
    from vlm_contextrl.probe import probe, share_right
    from vlm_contextrl.storage import read_pairs

    with autocast(config.model, policy.device):
        found = probe(policy, read_pairs(folder), budget_tokens=config.optim.tokens_per_micro_batch)
    write_jsonl(units, found["per_pair"])
    shares = (
        (f"selection_accuracy {p['domain']}", share_right(p["margins"]))
        for p in found["per_pair"]
        if p["domain"]
    )
    return {name: found[name] for name in SELECTION} | _means(shares)


def _means(named: Iterable[tuple[str, float]]) -> dict[str, Any]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in named:
        groups[name].append(value)
    return {name: bootstrap(values) for name, values in groups.items()}
