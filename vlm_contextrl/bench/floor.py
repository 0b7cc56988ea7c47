"""The least work that each benched part needs, and the least time that this machine could take for it.

FLOPs count a multiplication with its addition as 2. N: parameters of the decoder's linear layers; T tokens, each distinct token once;
A (query, key) pairs of attention; tri(n) = n(n + 1)/2.

    linear layers      2 N T (1 + b)        b = 1: only the gradient of the inputs is needed (LoRA), 2: that of the weights, too
    attention          4 L H d A (1 + 2)    three gradients
    LM head            2 h V T_c (1 + 1)    labelled positions, frozen weights
    vision             once per distinct image, without gradient
    decoding, bytes    C W + KV (C P + G tri(C)) per prompt; W bytes of weights, KV bytes of keys and values per token

    floor = FLOPs / (FLOP/s of a matrix product) + bytes / (bytes/s of a copy)

Left out: adapters, norms, rotary positions, embeddings, sampling. No implementation reaches the floor; TRL and ours are divided by the
same one, so repeated work shows as distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlm_contextrl.bench.clock import Call, in_turns
from vlm_contextrl.bench.shapes import MERGE, PATCH_PX, Shape


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes that have to be moved."""

    flops: float = 0.0
    n_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.n_bytes + other.n_bytes)

    def times(self, n: float) -> Work:
        return Work(n * self.flops, n * self.n_bytes)


@dataclass(frozen=True)
class Machine:
    """What the hardware does at its best, measured: FLOP/s of a matrix product, bytes/s of a copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float

    def floor_s(self, work: Work) -> float:
        return work.flops / self.flops_per_s + work.n_bytes / self.bytes_per_s


def triangle(n: int) -> float:
    return n * (n + 1) / 2


def linear_parameters(shape: Shape) -> int:
    """N: weights of the linear layers of the decoder."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return shape.layers * (shape.hidden * (2 * q + 2 * kv) + 3 * shape.hidden * shape.intermediate)


def vision(shape: Shape) -> Work:
    """One forward over one image: linear layers, patch embedding, merger, attention (full in the last block, windows of 64 else)."""
    tokens, h = shape.image_tokens, shape.vision_hidden
    patches, merged = MERGE**2 * tokens, MERGE**2 * h
    block = 4 * h * h + 3 * h * shape.vision_intermediate
    embedding = 3 * 2 * PATCH_PX**2 * h
    merger = merged * merged + merged * shape.hidden
    windows = (shape.vision_layers - 1) * 64
    linear = 2 * patches * (shape.vision_layers * block + embedding) + 2 * tokens * merger
    return Work(linear + 4 * patches * (patches + windows) * h)


def decoder(shape: Shape, tokens: float, pairs: float, backward: bool) -> Work:
    """Forward, and with `backward` the gradients of LoRA, over tokens with that many (query, key) pairs."""
    linear = 2 * linear_parameters(shape) * tokens * (2 if backward else 1)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * pairs * (3 if backward else 1)
    return Work(linear + attention)


def head(shape: Shape, positions: float, options: int | None = None) -> Work:
    """One pass of the LM head over positions, or over the rows of a few options only."""
    return Work(2 * shape.hidden * (options or shape.vocab) * positions)


def training(shape: Shape, *, seen: bool = False) -> Work:
    """Forward and backward of one group: one image (none when its features are there already), its prompt once, G completions."""
    P, G, C = shape.prompt_tokens, shape.completions, shape.completion_tokens
    pairs = triangle(P) + G * (C * P + triangle(C))
    work = decoder(shape, P + G * C, pairs, True) + head(shape, G * C).times(2)
    return work if seen else work + vision(shape)


def rollout(shape: Shape, element_bytes: int) -> Work:
    """Image and prompt once, then C tokens for each of G rows."""
    P, G, C = shape.prompt_tokens, shape.completions, shape.completion_tokens
    prefill = vision(shape) + decoder(shape, P, triangle(P), False) + head(shape, 1)
    pairs = G * (C * P + triangle(C))
    weights = element_bytes * (linear_parameters(shape) + shape.hidden * shape.vocab)
    kv = element_bytes * shape.layers * 2 * shape.kv_heads * shape.head_dim
    read = C * weights + kv * (C * P + G * triangle(C))
    return prefill + decoder(shape, G * C, pairs, False) + head(shape, G * C) + Work(0, read)


def selection(shape: Shape, shared: int, own: list[int]) -> Work:
    """One pair: two images, `shared` tokens that all its questions begin with, then what each of them adds."""
    pairs = triangle(shared) + sum(n * shared + triangle(n) for n in own)
    work = vision(shape).times(2) + decoder(shape, shared + sum(own), pairs, True)
    return work + head(shape, len(own), options=2).times(2)


def image_processing(width_px: int, height_px: int, n_tokens: int) -> Work:
    """Pixels in as bytes, patches out as float32 (each twice: a still image fills both frames of a patch)."""
    return Work(0, 3 * width_px * height_px + 4 * n_tokens * MERGE**2 * 3 * 2 * PATCH_PX**2)


def measured_machine(device: torch.device, dtype: torch.dtype, n: int = 1024, mib: int = 128) -> Machine:
    """Best of five products of n x n matrices, and of five copies of `mib` MiB."""
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    seconds = in_turns(calls, 5, device)
    return Machine(2 * n**3 / min(seconds["product"]), 2 * mib * 2**20 / min(seconds["copy"]))
