"""The engine side by side with TRL 1.16 in one run: same weights, same ids, same completions, same loss, no dropout.

Every measure has up to four sides: `trl` (tuned, see peer.py) is compared with `ours`; `trl_default` (TRL as it comes, which checkpoints)
with `ours_checkpointed`, in keys that end in `_default`. A speed-up is the median over rounds of the peer's time over ours.

    train_c32, train_c128              forward and backward of one group, 32 and 128 tokens per completion; at 128 rho is as of 512-token
                                       answers to 1,200-token prompts
    rollout                            one group sampled
    processor                          one photo: 2 G runs in TRL, one in ours
    selection                          pairs asked in both directions (`reverse: true`), which share their images; forward and backward
    selection_one_way                  pairs asked in one direction, as the shipped 7B configurations do: nothing is shared
    whole_step, whole_step_c128        processor, rollout, training, selection pairs in both directions and optimizer; TRL: a real
                                       GRPOTrainer

TRL has no context selection: its side there is a naive padded batch.

Log-probabilities and option logits of every side, and the gradient of every adapter, are compared with ours before train_* and selection*
are timed, and a difference raises. Rollout, processor and whole step are not compared: what they sample and update is not the same number
for number.

Left out: several GPUs, vLLM, and TRL's AsyncGRPOTrainer, which shares prefixes itself but takes no images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch

from vlm_contextrl.bench.machine import hardware, measured_machine, one_thread, versions
from vlm_contextrl.bench.measures import N_PAIRS, N_PROMPTS, Bench
from vlm_contextrl.bench.peer import check_trl
from vlm_contextrl.bench.shapes import Shape

PHOTO_PX = (1024, 900)
FULL = Shape()
QUICK = Shape(
    hidden=32, layers=2, heads=2, kv_heads=1, intermediate=48, vocab=900, vision_hidden=32, vision_layers=2, vision_heads=2,
    vision_intermediate=48, image_px=84, prompt_tokens=48, completions=4, completion_tokens=4,
)  # fmt: skip
ON_A_GPU = Shape(
    hidden=2048, layers=24, heads=16, kv_heads=4, intermediate=8192, vocab=65536, vision_hidden=1024, vision_layers=12,
    vision_heads=16, vision_intermediate=2736, image_px=896, prompt_tokens=1200,
)  # fmt: skip


def run(quick: bool = False, progress: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """All measures, ready for JSON. Raises MissingExtraError or ConfigError without TRL 1.16 and ParityError when the sides differ."""
    check_trl()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    c32 = QUICK if quick else FULL if device.type == "cpu" else ON_A_GPU
    half_vision = max(1, c32.vision_layers // 2)
    c128 = replace(c32, vision_layers=half_vision, completion_tokens=4 * c32.completion_tokens)
    width_px, height_px = (px // (10 if quick else 1) for px in PHOTO_PX)
    rounds, step_rounds = (1, 1) if quick else (5, 3)
    with one_thread() if device.type == "cpu" else nullcontext():
        machine = measured_machine(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
        bench = Bench(c32, device, machine)
        longer = Bench(c128, device, machine, bench.result)
        measures: dict[str, Callable[[], None]] = {
            "train_c32": lambda: bench.train("c32", rounds),
            "train_c128": lambda: longer.train("c128", rounds),
            "rollout": lambda: bench.rollout(rounds),
            "processor": lambda: bench.process(width_px, height_px, rounds),
            "selection": lambda: bench.selection("", rounds, both_ways=True),
            "selection_one_way": lambda: bench.selection("_one_way", rounds, both_ways=False),
            "whole_step": lambda: bench.whole_step("", step_rounds),
            "whole_step_c128": lambda: longer.whole_step("_c128", step_rounds),
        }
        for name, measure in measures.items():
            progress(name)
            measure()
        described = hardware(device, machine)
    return {
        **bench.result,
        "rounds": {"parts": rounds, "whole_step": step_rounds},
        "prompts_per_step": N_PROMPTS,
        "pairs_per_step": N_PAIRS,
        "shape": asdict(c32),
        "hardware": described,
        "versions": versions(),
    }
