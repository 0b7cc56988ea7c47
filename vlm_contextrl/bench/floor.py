"""The least work that each benched part needs, and the least time that this machine could take for it.

FLOPs count a multiplication with its addition as 2. N: parameters of the decoder's linear layers; T tokens, each distinct token once,
the last one of a completion not at all (nothing is predicted from it); A (query, key) pairs of attention; tri(n) = n(n + 1)/2.

    linear layers      2 N T (1 + b)        b = 1: only the gradient of the inputs is needed (LoRA), 2: that of the weights, too
    attention          4 L H d A (1 + 2)    three gradients
    LM head            2 h V T_c (1 + 1)    labelled positions, frozen weights
    vision             once per distinct image, without gradient
    decoding, bytes    (C - 1) W + n KV ((C - 1) P + G tri(C - 1)) for n prompts together; W bytes of weights, KV bytes of keys and
                       values per token

    floor = sum over parts of max(FLOPs / (FLOP/s of a matrix product), bytes / (bytes/s of a copy))

Left out: adapters, norms, rotary positions, embeddings, sampling. No implementation reaches the floor; TRL and ours are divided by the
same one, so repeated work shows as distance. (Ours runs a prompt's last token once per completion: P - 1 + G C positions of P + G (C - 1).)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlm_contextrl.bench.machine import Machine
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


def seconds(parts: Iterable[Work], machine: Machine) -> float:
    """Parts one after the other; within a part arithmetic and memory work at the same time."""
    return sum(max(p.flops / machine.flops_per_s, p.n_bytes / machine.bytes_per_s) for p in parts)


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
    windows = (shape.vision_layers - 1) * min(64, patches)
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
    pairs = triangle(P) + G * ((C - 1) * P + triangle(C - 1))
    work = decoder(shape, P + G * (C - 1), pairs, True) + head(shape, G * C).times(2)
    return work if seen else work + vision(shape)


def rollout(shape: Shape, element_bytes: int, prompts: int = 1) -> list[Work]:
    """Prefill of images and prompts, then decoding: C - 1 more tokens for each of G rows per prompt, all rows together."""
    P, G, C = shape.prompt_tokens, shape.completions, shape.completion_tokens
    prefill = vision(shape) + decoder(shape, P, triangle(P), False) + head(shape, 1)
    cached = (
        (C - 1) * P,
        G * triangle(C - 1),
    )  # tokens read: of prompts, which their rows share, and of completions
    decoding = decoder(shape, G * (C - 1), G * cached[0] + cached[1], False) + head(shape, G * (C - 1))
    weights = element_bytes * (linear_parameters(shape) + shape.hidden * shape.vocab)
    kv = element_bytes * shape.layers * 2 * shape.kv_heads * shape.head_dim
    read = Work(0, (C - 1) * weights + prompts * kv * sum(cached))
    return [prefill.times(prompts), decoding.times(prompts) + read]


def selection(shape: Shape, shared: int, own: list[int]) -> Work:
    """One pair: two images, `shared` tokens that all its questions begin with, then what each of them adds."""
    pairs = triangle(shared) + sum(n * shared + triangle(n) for n in own)
    work = vision(shape).times(2) + decoder(shape, shared + sum(own), pairs, True)
    return work + head(shape, len(own), options=2).times(2)


def image_processing(width_px: int, height_px: int, n_tokens: int) -> Work:
    """Pixels in as bytes, patches out as float32 (each twice: a still image fills both frames of a patch)."""
    return Work(0, 3 * width_px * height_px + 4 * n_tokens * MERGE**2 * 3 * 2 * PATCH_PX**2)
