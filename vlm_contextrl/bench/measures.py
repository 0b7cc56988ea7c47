"""The measures of the bench, one method each, and the check that both sides compute the same thing; engine.py says what is compared.

A bench of two different computations is worth nothing: values and the gradient of every adapter are compared before the time is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl.bench import floor
from vlm_contextrl.bench.machine import Machine, SavedBytes, in_turns
from vlm_contextrl.bench.ours import Ours
from vlm_contextrl.bench.peer import Peer, naive_option_logits
from vlm_contextrl.bench.peer_step import peer_step
from vlm_contextrl.bench.shapes import (
    Shape,
    bench_processor,
    given_completions,
    noise_image,
    pair,
    prompt_of,
    question,
    random_model,
    selection_prompts,
)
from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.packing import share_starts
from vlm_contextrl.processing import EncodedPrompt

# Of values in nats or logits, and of a gradient as a share of its largest entry. Found in float32: 3e-6 and 5e-6; in bfloat16, with small
# models on a CPU: 0.015 and 0.03.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
N_PROMPTS, N_PAIRS = 2, 2  # of the whole step
SELECTION_WEIGHT = 0.005  # as published
CLIP = 5.0  # of margins, as published
PIXEL_BOUNDS = {"shortest_edge": 784, "longest_edge": 1_003_520}  # as published

Sides = Mapping[str, Any]
Found = tuple[Tensor, dict[str, Tensor]]  # values, and the gradient of every adapter


class ParityError(ContextRLError, RuntimeError):
    """The two sides of a comparison do not compute the same thing."""


class Bench:
    """Measures of one shape on one device; `result` gathers them, those of other shapes too."""

    def __init__(
        self, shape: Shape, device: torch.device, machine: Machine, result: dict[str, Any] | None = None
    ) -> None:
        self.shape, self.device, self.machine = shape, device, machine
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.processor = bench_processor(shape)
        self.sides = self._sides()
        fresh: dict[str, Any] = {"seconds": {}, "of_floor": {}, "saved_mib": {}}
        self.result = fresh if result is None else result

    def _sides(self) -> dict[str, Any]:
        """The same random weights on all sides."""
        model = random_model(self.shape, self.processor).to(self.device)
        for parameter in model.parameters():  # `.to` would round the buffers of rotary positions, too
            parameter.data = parameter.data.to(self.dtype)
        return {
            "trl_default": Peer(model, self.processor, tuned=False),
            "trl": Peer(model, self.processor, tuned=True),
            "ours": Ours(model, self.processor),
            "ours_checkpointed": Ours(model, self.processor, checkpointing=True),
        }

    def train(self, name: str, rounds: int) -> None:
        """Forward and backward of one group: parity, bytes kept for the backward pass, time."""
        prompt = prompt_of(question(self.shape, self.processor, 0), self.processor)
        completions = given_completions(self.shape)

        def logps(side: Any) -> Tensor:
            found: Tensor = side.logps(prompt, completions)
            return found

        saved = self.result["saved_mib"][name] = {}
        for side_name, side in self.sides.items():
            with SavedBytes(side.model) as kept:
                loss = group_loss(logps(side))
            saved[side_name] = kept.mib
            del loss
        self.parity(name, logps, group_loss, "max_abs_dlogp")
        self.result[f"rho_{name}"] = self.shape.rho
        if name == "c32":
            self.result["saved_memory_ratio"] = saved["trl"] / saved["ours"]
            self.result["saved_memory_ratio_default"] = saved["trl_default"] / saved["ours_checkpointed"]
        work = [floor.training(self.shape)]
        self.time(f"train_{name}", self.sides, lambda side: group_loss(logps(side)).backward(), work, rounds)
        self.speedup(f"train_{name}", f"train_speedup_{name}")

    def rollout(self, rounds: int) -> None:
        """One group of completions of a fixed length."""
        prompt = prompt_of(question(self.shape, self.processor, 0), self.processor)
        n, length = self.shape.completions, self.shape.completion_tokens
        sides = {name: self.sides[name] for name in ("trl", "ours")}
        for name, side in sides.items():
            lengths = [len(ids) for ids in side.generate(prompt, n, length)]
            assert lengths == [length] * n, f"{name} sampled completions of {lengths} tokens"
        work = floor.rollout(self.shape, self.dtype.itemsize)
        self.time("rollout", sides, lambda side: side.generate(prompt, n, length), work, rounds)
        self.speedup("rollout", "rollout_speedup")

    def process(self, width_px: int, height_px: int, rounds: int) -> None:
        """The image processor on a photo, within the pixel bounds of the shipped 7B configurations."""
        processor = bench_processor(self.shape)
        processor.image_processor.size = PIXEL_BOUNDS
        image = noise_image(0, width_px, height_px)
        copies = [image] * self.shape.completions

        def each_copy_twice() -> None:
            for _ in range(2):  # to tokenize the prompts, then for the training batch
                processor.image_processor(images=copies, return_tensors="pt")

        calls = {"trl": each_copy_twice, "ours": lambda: processor.process_image(image).patches_ND}
        work = [floor.image_processing(width_px, height_px, processor.process_image(image).n_tokens)]
        self.time("processor", calls, lambda call: call(), work, rounds)
        self.speedup("processor", "processor_speedup")

    def selection(self, suffix: str, rounds: int, *, both_ways: bool) -> None:
        """Forward and backward of N_PAIRS pairs, asked in both directions or in one."""
        name = f"selection{suffix}"
        prompts, ids = self.selection_prompts(both_ways=both_ways, patches_cut=True)

        def logits(side: Any) -> Tensor:
            found: Tensor = side.option_logits(prompts, ids)
            return found

        def loss(logits_BO: Tensor) -> Tensor:
            return margin_loss(logits_BO, both_ways=both_ways)

        self.parity(name, logits, loss, "max_abs_dlogit")
        work = [self.selection_work(prompts)]
        self.time(name, self.sides, lambda side: loss(logits(side)).backward(), work, rounds)
        self.speedup(name, f"selection_speedup{suffix}")

    def whole_step(self, suffix: str, rounds: int) -> None:
        """One optimizer step of N_PROMPTS groups and N_PAIRS pairs in both directions."""
        rows = [question(self.shape, self.processor, n) for n in range(N_PROMPTS)]
        pairs = [pair(self.shape, n) for n in range(N_PAIRS)]
        G, C, px = self.shape.completions, self.shape.completion_tokens, self.shape.image_px

        def naive_loss(peer: Peer, model: Any) -> Tensor:
            prompts, ids = self.selection_prompts(both_ways=True, patches_cut=False)
            logits_BO = naive_option_logits(model, peer.batch(prompts), ids)
            return SELECTION_WEIGHT * margin_loss(logits_BO, both_ways=True)

        prompts, _ = self.selection_prompts(both_ways=True, patches_cut=False)
        work = [
            *floor.rollout(self.shape, self.dtype.itemsize, N_PROMPTS),
            floor.training(self.shape, seen=True).times(N_PROMPTS),
            self.selection_work(prompts),
            floor.image_processing(px, px, self.shape.image_tokens).times(N_PROMPTS + 2 * N_PAIRS),
        ]
        peers, ours = ("trl_default", "trl"), ("ours", "ours_checkpointed")
        with TemporaryDirectory() as folder:
            calls: dict[str, Callable[[], Any]] = {}
            for name in peers:
                peer = self.sides[name]
                loss = partial(naive_loss, peer)
                calls[name] = peer_step(peer, rows, G, C, loss, str(Path(folder) / name))
            for name in ours:
                calls[name] = self.sides[name].step(rows, pairs, self.shape, SELECTION_WEIGHT)
            self.time(f"whole_step{suffix}", calls, lambda call: call(), work, rounds, peers)
        self.speedup(f"whole_step{suffix}", f"whole_step_speedup{suffix}")

    def selection_prompts(
        self, *, both_ways: bool, patches_cut: bool
    ) -> tuple[list[EncodedPrompt], list[int]]:
        pairs = [pair(self.shape, n) for n in range(N_PAIRS)]
        return selection_prompts(self.processor, pairs, both_ways=both_ways, patches_cut=patches_cut)

    def selection_work(self, prompts: list[EncodedPrompt]) -> floor.Work:
        rows, _ = share_starts(prompts, self.processor.image_token_id)
        works = [
            floor.selection(self.shape, len(r.prompt), [c.n_given for c in r.continuations]) for r in rows
        ]
        return sum(works, floor.Work())

    def parity(
        self, name: str, values: Callable[[Any], Tensor], loss: Callable[[Tensor], Tensor], key: str
    ) -> None:
        """Compare every side with ours and keep the largest difference of the values. Raises ParityError."""
        found = {}
        for side_name, side in self.sides.items():
            computed = values(side)
            loss(computed).backward()
            found[side_name] = (computed.detach().float(), gradients(side.model))
        ours = found.pop("ours")
        tolerance = TOLERANCE[self.dtype]
        gaps = {side: agree(it, ours, f"{name}: {side} and ours", tolerance) for side, it in found.items()}
        for side_name, suffix in (("trl", ""), ("trl_default", "_default")):
            self.result[key + suffix] = max(gaps[side_name], self.result.get(key + suffix, 0.0))

    def time(
        self,
        name: str,
        sides: Sides,
        run: Callable[[Any], Any],
        work: list[floor.Work],
        rounds: int,
        time_themselves: Collection[str] = (),
    ) -> None:
        """Seconds of every round and their median as a multiple of the floor."""

        def clear() -> None:
            for side in sides.values():
                if hasattr(side, "model"):
                    side.model.zero_grad(set_to_none=True)

        calls = {side_name: partial(run, side) for side_name, side in sides.items()}
        seconds = in_turns(calls, rounds, self.device, done=clear, time_themselves=time_themselves)
        floor_s = floor.seconds(work, self.machine)
        self.result["seconds"][name] = {**seconds, "floor": floor_s}
        self.result["of_floor"][name] = {side: median(times) / floor_s for side, times in seconds.items()}

    def speedup(self, name: str, key: str) -> None:
        """The peer's time over ours, the median of the rounds' ratios: tuned over ours, TRL as it comes over ours under checkpointing.

        The sides of a round run one behind the other, so a machine that is slow for a while is slow for both.
        """
        seconds = self.result["seconds"][name]
        for peer, ours, suffix in (("trl", "ours", ""), ("trl_default", "ours_checkpointed", "_default")):
            if peer in seconds:
                ratios = [a / b for a, b in zip(seconds[peer], seconds[ours], strict=True)]
                self.result[key + suffix] = median(ratios)


def agree(peer: Found, ours: Found, where: str, tolerance: float) -> float:
    """The largest difference of the values, in their own unit.

    Raises ParityError when it is over the tolerance, or when the gradient of any parameter differs by more than that share of the
    largest entry of that gradient.
    """
    values = float((peer[0] - ours[0]).abs().max())
    if peer[1].keys() != ours[1].keys():
        raise ParityError(f"{where}: other parameters have gradients; expected those of the adapters")
    shares = {
        name: float((peer[1][name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in ours[1].items()
    }
    wrong = [name for name, share in shares.items() if not share <= tolerance]  # a NaN is no agreement
    if not values <= tolerance or wrong:
        gradient = (
            f", the gradient of {wrong[0]} by {shares[wrong[0]]:.2g} of its largest entry" if wrong else ""
        )
        raise ParityError(
            f"{where} compute different things: values differ by {values:.2g}{gradient}; expected at most {tolerance:g}"
        )
    return values


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter that has one; they are cleared."""
    found = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def group_loss(logps_GC: Tensor) -> Tensor:
    """GRPO at a ratio of 1, with advantages spread over [-1, 1]."""
    advantages_G1 = torch.linspace(-1, 1, len(logps_GC), device=logps_GC.device)[:, None]
    return -(advantages_G1 * (logps_GC - logps_GC.detach()).exp()).mean()


def margin_loss(logits_BO: Tensor, *, both_ways: bool) -> Tensor:
    """-log sigmoid(clip(D)), mean over rows, which A supports; with `both_ways` B supports every other one."""
    first_B = logits_BO[:, 0] - logits_BO[:, 1]
    sign_B = torch.ones_like(first_B)
    if both_ways:
        sign_B[1::2] = -1
    return F.softplus(-(sign_B * first_B).clamp(-CLIP, CLIP)).mean()
