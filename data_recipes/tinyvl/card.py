"""The model card of TinyVL: what it was made of, on what, and what it measures on scenes it has not seen."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.data_recipes.render import RenderConfig
from vlm_contextrl.data_recipes.render.generate import make_pair
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.models import load_policy
from vlm_contextrl.probe import probe
from vlm_contextrl.vqa import answer_questions

CARD_SEED = 20_000_001  # scenes of the card; pretraining uses the configuration's own seed
N_PAIRS = 600


def measure(folder: Path, size_px: int) -> dict[str, Any]:
    """Accuracy on both questions of fresh pairs: overall, per domain, with and without options; and the selection probe."""
    policy = load_policy(ModelSettings(path=str(folder)), trainable=False)
    config = RenderConfig(count=N_PAIRS, seed=CARD_SEED, size_px=size_px)
    pairs = [make_pair(config, index) for index in range(N_PAIRS)]
    rows = [row for pair in pairs for row in pair.questions()]
    answered = answer_questions(policy, rows, style="direct", max_new_tokens=8)
    groups: dict[str, list[float]] = defaultdict(list)
    for answer in answered:
        groups[answer.domain].append(float(answer.correct))
        groups["multiple choice" if answer.has_options else "open"].append(float(answer.correct))
    selection = probe(policy, pairs)
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "vqa_accuracy": bootstrap([float(a.correct) for a in answered]),
        "vqa_accuracy_of": {name: bootstrap(values) for name, values in sorted(groups.items())},
        "selection_accuracy": selection["selection_accuracy"],
        "order_consistent_accuracy": selection["order_consistent_accuracy"],
    }


def write_card(folder: Path, config: TinyVLConfig, result: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write README.md beside the weights."""
    stages = "\n".join(
        f"| {name} | {stage['step']} | {stage['loss']:.3f} | {stage['minutes']:.0f} |"
        for name, stage in result["stages"].items()
    )
    settings = "\n".join(f"    {key}={value}" for key, value in config.model_dump(mode="json").items())
    rows = [("questions, all", measured["vqa_accuracy"])]
    rows += [(f"questions, {name}", value) for name, value in measured["vqa_accuracy_of"].items()]
    rows += [("selection", measured["selection_accuracy"])]
    rows += [("selection, right in both option orders", measured["order_consistent_accuracy"])]
    accuracies = "\n".join(
        f"| {name} | {100 * value['value']:.1f}% | {100 * value['low']:.1f} to {100 * value['high']:.1f} | {value['n']} |"
        for name, value in rows
    )
    (folder / "README.md").write_text(f"""# TinyVL

A Qwen2.5-VL architecture of {result["parameters"] / 1e6:.1f} million parameters, trained from scratch on rendered scenes (objects, charts,
dials, tables and signs, geometry; 112 px). It exists so that vision-language reinforcement learning can be watched on a laptop; outside
those scenes it knows nothing. Licence: Apache-2.0; the scenes are CC0-1.0.

Made by `vlm-contextrl tinyvl build --out DIR` with

{settings}

| stage | steps | last loss | minutes |
|---|---|---|---|
{stages}

Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__.split("+")[0]}. Minutes are those of a shared machine.

Measured on {N_PAIRS} pairs of fresh scenes, both questions of each, greedy answers (95% bootstrap intervals):

| what | accuracy | interval | n |
|---|---|---|---|
{accuracies}

Both questions of a pair are asked, so a constant answer is right at most half the time.
""")
