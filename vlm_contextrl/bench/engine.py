"""The engine side by side with TRL 1.16 in one run: same weights, same ids, same completions, same loss, no dropout.

Every measure has up to four sides: `trl_default` (TRL as it comes), `trl` (tuned, see peer.py), `ours`, and `ours_checkpointed` where
checkpointing matters. A speed-up is the peer's best round over our best round; keys that end in `_default` compare with TRL as it
comes. Log-probabilities, option logits and the gradients of all adapters are compared first, and a difference raises.

    train_c32, train_c128   forward and backward of one group; c128 has the vision share and the rho of a 7B model
    rollout                 one group sampled
    processor               one photo: 2 G runs in TRL, one in ours
    selection               pairs asked in both directions, forward and backward
    whole_step              processor, rollout, training, selection pairs and optimizer; TRL: a real GRPOTrainer

Left out: several GPUs, vLLM, and TRL's AsyncGRPOTrainer, which shares prefixes itself but takes no images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch

from vlm_contextrl.bench.clock import one_thread
from vlm_contextrl.bench.machine import hardware, versions
from vlm_contextrl.bench.measures import N_PAIRS, N_PROMPTS, Bench
from vlm_contextrl.bench.peer import trl
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
    """All measures, ready for JSON. Raises MissingExtraError without TRL and ParityError when the sides differ."""
    trl()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    c32 = QUICK if quick else FULL if device.type == "cpu" else ON_A_GPU
    half_vision = max(1, c32.vision_layers // 2)
    c128 = replace(c32, vision_layers=half_vision, completion_tokens=4 * c32.completion_tokens)
    rounds, step_rounds = (1, 1) if quick else (4, 2)
    with one_thread() if device.type == "cpu" else nullcontext():
        bench = Bench(c32, device, rounds)
        progress("train_c32")
        bench.train("c32", c32, bench.sides)
        bench.saved_memory()
        progress("train_c128")
        bench.train("c128", c128, bench.sides_of(c128))
        progress("rollout")
        bench.rollout()
        progress("processor")
        bench.process(*(side // (10 if quick else 1) for side in PHOTO_PX))
        progress("selection")
        bench.selection()
        progress("whole_step")
        bench.rounds = step_rounds
        bench.whole_step()
        machine = hardware(device, bench.machine)
    return {
        **bench.result,
        "rounds": {"parts": rounds, "whole_step": step_rounds},
        "prompts_per_step": N_PROMPTS,
        "pairs_per_step": N_PAIRS,
        "shape": asdict(c32),
        "hardware": machine,
        "versions": versions(),
    }
