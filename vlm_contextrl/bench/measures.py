"""The measures of the bench, one method each; engine.py says what they are and which sides they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl.bench import floor
from vlm_contextrl.bench.clock import SavedBytes, in_turns
from vlm_contextrl.bench.ours import Ours
from vlm_contextrl.bench.parity import agree, gradients, group_loss, margin_loss, selection_prompts
from vlm_contextrl.bench.peer import Peer, naive_option_logits
from vlm_contextrl.bench.peer_step import peer_step
from vlm_contextrl.bench.shapes import (
    Shape,
    bench_processor,
    cut,
    given_completions,
    noise_image,
    pair,
    prompt_of,
    question,
    random_model,
)
from vlm_contextrl.packing import share_starts
from vlm_contextrl.pairs import EncodedImage
from vlm_contextrl.processing import EncodedPrompt

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
N_PROMPTS, N_PAIRS = 2, 2  # of the whole step
SELECTION_WEIGHT = 0.005  # as published
PIXEL_BOUNDS = {"shortest_edge": 784, "longest_edge": 1_003_520}  # as published

Sides = Mapping[str, Any]


class Bench:
    """Measures of one shape on one device; `result` gathers them."""

    def __init__(self, shape: Shape, device: torch.device, rounds: int) -> None:
        self.shape, self.device, self.rounds = shape, device, rounds
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.machine = floor.measured_machine(device, self.dtype)
        self.processor = bench_processor(shape)
        self.sides = self.sides_of(shape)
        self.result: dict[str, Any] = {"seconds": {}, "of_floor": {}, "saved_mib": {}}

    def sides_of(self, shape: Shape) -> dict[str, Any]:
        """The same random weights on all sides."""
        model = random_model(shape, self.processor).to(self.device)
        for parameter in model.parameters():  # `.to` would round the buffers of rotary positions, too
            parameter.data = parameter.data.to(self.dtype)
        return {
            "trl_default": Peer(model, self.processor, tuned=False),
            "trl": Peer(model, self.processor, tuned=True),
            "ours": Ours(model, self.processor),
            "ours_checkpointed": Ours(model, self.processor, checkpointing=True),
        }

    def train(self, name: str, shape: Shape, sides: Sides) -> None:
        """Forward and backward of one group: parity, bytes kept for the backward pass, time."""
        prompt = prompt_of(question(shape, self.processor, 0), self.processor)
        completions = given_completions(shape)

        def logps(side: Any) -> Tensor:
            found: Tensor = side.logps(prompt, completions)
            return found

        saved = self.result["saved_mib"][name] = {}
        for side_name, side in sides.items():
            with SavedBytes(side.model) as kept:
                loss = group_loss(logps(side))
            saved[side_name] = kept.mib
            del loss
        gaps = self.parity(name, sides, logps, group_loss)
        for side_name, key in (("trl", "max_abs_dlogp"), ("trl_default", "max_abs_dlogp_default")):
            self.result[key] = max(gaps[side_name], self.result.get(key, 0.0))
        self.result[f"rho_{name}"] = shape.rho
        self.time(
            f"train_{name}", sides, lambda side: group_loss(logps(side)).backward(), floor.training(shape)
        )
        self.speedup(f"train_{name}", f"train_speedup_{name}")

    def saved_memory(self) -> None:
        """Ratios of bytes kept: without checkpointing against TRL tuned, with it against TRL as it comes."""
        saved = self.result["saved_mib"]["c32"]
        self.result["saved_memory_ratio"] = saved["trl"] / saved["ours"]
        self.result["saved_memory_ratio_default"] = saved["trl_default"] / saved["ours_checkpointed"]

    def rollout(self) -> None:
        """One group of completions of a fixed length."""
        prompt = prompt_of(question(self.shape, self.processor, 0), self.processor)
        n, length = self.shape.completions, self.shape.completion_tokens
        sides = {name: self.sides[name] for name in ("trl", "ours")}
        for name, side in sides.items():
            lengths = [len(ids) for ids in side.generate(prompt, n, length)]
            assert lengths == [length] * n, f"{name} sampled completions of {lengths} tokens"
        work = floor.rollout(self.shape, self.dtype.itemsize)
        self.time("rollout", sides, lambda side: side.generate(prompt, n, length), work)
        self.speedup("rollout", "rollout_speedup")

    def process(self, width_px: int, height_px: int) -> None:
        """The image processor on a photo, within the pixel bounds of the shipped 7B configurations."""
        processor = bench_processor(self.shape)
        processor.image_processor.size = PIXEL_BOUNDS
        image = noise_image(0, width_px, height_px)
        copies = [image] * self.shape.completions

        def each_copy_twice() -> None:
            for _ in range(2):  # to tokenize the prompts, then for the training batch
                processor.image_processor(images=copies, return_tensors="pt")

        calls = {"trl": each_copy_twice, "ours": lambda: processor.process_image(image).patches_ND}
        work = floor.image_processing(width_px, height_px, processor.process_image(image).n_tokens)
        self.time("processor", calls, lambda call: call(), work)
        self.speedup("processor", "processor_speedup")

    def selection(self) -> None:
        """Pairs asked in both directions, forward and backward."""
        prompts, ids = self.selection_prompts(patches_cut=True)

        def logits(side: Any) -> Tensor:
            found: Tensor = side.option_logits(prompts, ids)
            return found

        sides = {name: side for name, side in self.sides.items() if name != "ours_checkpointed"}
        self.result["max_abs_dlogit"] = max(self.parity("selection", sides, logits, margin_loss).values())
        self.time(
            "selection",
            sides,
            lambda side: margin_loss(logits(side)).backward(),
            self.selection_work(prompts),
        )
        self.speedup("selection", "selection_speedup")

    def whole_step(self) -> None:
        """One optimizer step of N_PROMPTS groups and N_PAIRS pairs in both directions."""
        rows = [question(self.shape, self.processor, n) for n in range(N_PROMPTS)]
        pairs = [pair(self.shape, n) for n in range(N_PAIRS)]

        def naive_loss(peer: Peer, model: Any) -> Tensor:
            prompts, ids = self.selection_prompts(patches_cut=False)
            return SELECTION_WEIGHT * margin_loss(naive_option_logits(model, peer.batch(prompts), ids))

        G, C = self.shape.completions, self.shape.completion_tokens
        with TemporaryDirectory() as folder:
            calls: dict[str, Callable[[], Any]] = {
                name: peer_step(
                    self.sides[name],
                    rows,
                    G,
                    C,
                    partial(naive_loss, self.sides[name]),
                    str(Path(folder) / name),
                )
                for name in ("trl_default", "trl")
            }
            calls["ours"] = self.sides["ours"].step(rows, pairs, self.shape, SELECTION_WEIGHT)
            image = floor.image_processing(self.shape.image_px, self.shape.image_px, self.shape.image_tokens)
            group = floor.rollout(self.shape, self.dtype.itemsize) + floor.training(self.shape, seen=True)
            prompts, _ = self.selection_prompts(patches_cut=False)
            work = (
                group.times(N_PROMPTS) + self.selection_work(prompts) + image.times(N_PROMPTS + 2 * N_PAIRS)
            )
            self.time("whole_step", calls, lambda call: call(), work)
        self.speedup("whole_step", "whole_step_speedup")

    def selection_prompts(self, *, patches_cut: bool) -> tuple[list[EncodedPrompt], list[int]]:
        """Prompts of N_PAIRS pairs and the option ids; patches cut beforehand, or anew for every use as a naive batch does."""
        pairs = [pair(self.shape, n) for n in range(N_PAIRS)]
        shown = []
        for each in pairs:
            assert isinstance(each.context, EncodedImage)
            assert isinstance(each.confounder, EncodedImage)
            first = self.processor.process_image(each.context.decode())
            second = self.processor.process_image(each.confounder.decode())
            shown.append((cut(first), cut(second)) if patches_cut else (first, second))
        return selection_prompts(self.processor, pairs, shown)

    def selection_work(self, prompts: list[EncodedPrompt]) -> floor.Work:
        rows, _ = share_starts(prompts, self.processor.image_token_id)
        works = [
            floor.selection(self.shape, len(r.prompt), [c.n_given for c in r.continuations]) for r in rows
        ]
        return sum(works, floor.Work())

    def parity(
        self, name: str, sides: Sides, values: Callable[[Any], Tensor], loss: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Largest difference of every side from ours. Raises ParityError."""
        found = {}
        for side_name, side in sides.items():
            computed = values(side)
            loss(computed).backward()
            found[side_name] = (computed.detach().float(), gradients(side.model))
        tolerance = TOLERANCE[self.dtype]
        return {
            side_name: agree(each, found["ours"], f"{name}: {side_name} and ours", tolerance)
            for side_name, each in found.items()
        }

    def time(self, name: str, sides: Sides, run: Callable[[Any], Any], work: floor.Work) -> None:
        """Seconds of every round and the best round as a multiple of the floor."""

        def clear() -> None:
            for side in sides.values():
                if hasattr(side, "model"):
                    side.model.zero_grad(set_to_none=True)

        calls = {side_name: partial(run, side) for side_name, side in sides.items()}
        seconds = in_turns(calls, self.rounds, self.device, clear)
        floor_s = self.machine.floor_s(work)
        self.result["seconds"][name] = {**seconds, "floor": floor_s}
        self.result["of_floor"][name] = {side: min(times) / floor_s for side, times in seconds.items()}

    def speedup(self, name: str, key: str) -> None:
        """The peer's best round over ours."""
        seconds = self.result["seconds"][name]
        for side, suffix in (("trl", ""), ("trl_default", "_default")):
            if side in seconds:
                self.result[key + suffix] = min(seconds[side]) / min(seconds["ours"])
