"""Sampling of completions: each prompt is prefilled once, its cache expanded to the G completions of its group.

Decoding runs in stages. A stage has a fixed batch and a cache of fixed length, so that on a GPU one CUDA graph replays every step of it; a
new stage begins when the cache is full or half of the sequences have ended, and those leave the batch. Image placeholders and other vision
tokens are never sampled: their text would need pixels that do not exist.

Every completion has random numbers of its own, drawn from the seed of its prompt: what is sampled depends neither on the prompts beside it
nor on the process that samples it.

Shapes: P prompts, G completions per prompt, B = P * G rows or those of them that go on, T prompt tokens (left-padded), C tokens of a
completion, K cached tokens, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vlm_contextrl.errors import first_line
from vlm_contextrl.log_probs import in_product_dtype
from vlm_contextrl.merged_adapters import merged_adapters
from vlm_contextrl.packing import under_budget
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, Processor

STAGE_TOKENS = 256  # a stage's cache has room for this many more
NEVER_SAMPLED = (
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|im_start|>",
)  # fmt: skip
_graphs_work = True  # until one could not be recorded


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `ids` ends with the end token unless it was cut at the length limit."""

    ids: Tensor
    logps: Tensor  # of the sampling policy, one per token, at the sampling temperature
    truncated: bool


class Engine(Protocol):
    """What samples: the policy itself, or vLLM with its weights (vllm_engine.py)."""

    def sync(self, policy: Policy) -> None:
        """Take over the policy's current weights."""

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[list[Completion]]: ...


class OwnEngine:
    """The policy decodes itself, adapters merged. prompt_tokens: budget of one prefill; sequences: completions decoded together, at
    least one group."""

    def __init__(self, prompt_tokens: int, sequences: int) -> None:
        self.prompt_tokens, self.sequences = prompt_tokens, sequences

    def sync(self, policy: Policy) -> None:
        pass

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[list[Completion]]:
        sampled = []
        with merged_adapters(policy.model):
            for batch in self._batches(prompts, n):
                sampled += sample(
                    policy,
                    [prompts[p] for p in batch],
                    n,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seeds=[seeds[p] for p in batch],
                )
        return sampled

    def _batches(self, prompts: Sequence[EncodedPrompt], n: int) -> Iterator[list[int]]:
        most = max(1, self.sequences // n)
        for batch in under_budget(range(len(prompts)), lambda p: len(prompts[p]), self.prompt_tokens):
            yield from (batch[at : at + most] for at in range(0, len(batch), most))


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    n: int,
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int] = (),
) -> list[list[Completion]]:
    """G = n completions for each of P prompts. Temperature 0 is greedy and needs no seeds; otherwise each prompt has one, and the same
    seed gives the same completions."""
    if temperature and len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds, expected one per prompt")
    device, ends = policy.device, torch.tensor(policy.processor.end_ids, device=policy.device)
    chance_BC = torch.cat([_chances(seed, n, max_new_tokens) for seed in seeds]).to(device) if seeds else None
    stage, logits_BV = _prefill(policy, prompts, n, min(max_new_tokens, STAGE_TOKENS))
    forbidden_V = forbidden_tokens(policy, logits_BV.shape[-1])
    ids_BC = torch.full((len(prompts) * n, max_new_tokens), -1, device=device)
    logps_BC = torch.zeros(ids_BC.shape, device=device)
    row_B = torch.arange(len(ids_BC), device=device)  # which completions the rows of the stage are
    going_B = torch.ones_like(row_B, dtype=torch.bool)
    for c in range(max_new_tokens):
        chance_B = None if chance_BC is None else chance_BC[row_B, c]
        token_B, logp_B = _draw(logits_BV, forbidden_V, temperature, chance_B)
        ids_BC[row_B, c] = torch.where(going_B, token_B, -1)
        logps_BC[row_B, c] = logp_B
        going_B &= ~torch.isin(token_B, ends)
        n_going = int(going_B.sum())
        if n_going == 0 or c == max_new_tokens - 1:
            break
        if stage.is_full or 2 * n_going <= len(row_B):
            kept = going_B.nonzero()[:, 0]
            stage = stage.next(kept, min(max_new_tokens - c - 1, STAGE_TOKENS))
            row_B, token_B, going_B = row_B[kept], token_B[kept], going_B[kept]
        logits_BV = stage.step(token_B)
    end_ids = set(policy.processor.end_ids)
    flat = [
        Completion(ids := row[row >= 0], row_logps[: len(ids)], int(ids[-1]) not in end_ids)
        for row, row_logps in zip(ids_BC.cpu(), logps_BC.cpu(), strict=True)
    ]
    return [flat[p * n : (p + 1) * n] for p in range(len(prompts))]


def _prefill(policy: Policy, prompts: Sequence[EncodedPrompt], n: int, room: int) -> tuple[_Stage, Tensor]:
    """Run the prompts once; the first stage for n completions of each, and the logits of their first tokens [B, V]."""
    from transformers import DynamicCache

    ids_PT, positions_3PT = (x.to(policy.device) for x in policy.pad(prompts))
    T = ids_PT.shape[1]
    lengths_P = torch.tensor([len(p) for p in prompts], device=policy.device)
    mask_PT = torch.arange(T, device=policy.device) >= T - lengths_P[:, None]
    cache = DynamicCache(config=policy.base.config.get_text_config())
    images = [image for prompt in prompts for image in prompt.images]
    logits_PV = policy.next_logits(ids_PT, positions_3PT, mask_PT.long(), cache, images)
    group_B = torch.arange(len(prompts), device=policy.device).repeat_interleave(n)
    position_P = positions_3PT[:, :, -1].amax(0) + 1
    return _Stage.of(policy, cache, mask_PT, position_P, group_B, room), logits_PV[group_B]


class _Stage:
    """Decoding with a fixed batch and a cache of fixed length."""

    def __init__(self, policy: Policy, cache: Any, mask_BK: Tensor, position_B: Tensor, filled: int) -> None:
        self.policy, self.cache, self.filled = policy, cache, filled
        self.mask_B11K, self.position_B = mask_BK[:, None, None], position_B
        self.token_B = torch.zeros_like(position_B)
        self._replay: Callable[[], Tensor] | None = None

    @classmethod
    def of(
        cls, policy: Policy, cache: Any, mask_BK: Tensor, position_B: Tensor, rows: Tensor, room: int
    ) -> _Stage:
        """Copy the chosen rows of a cache (repeated ones too) into one with room for more tokens."""
        from transformers.cache_utils import Cache

        filled = mask_BK.shape[1]
        longer = Cache(layers=[_cache_layer(filled + room) for _ in cache.layers])
        layers: list[tuple[Any, Any]] = list(zip(longer.layers, cache.layers, strict=True))
        for new, old in layers:
            keys, values = (x[:, :, :filled].index_select(0, rows) for x in (old.keys, old.values))
            new.lazy_initialization(in_product_dtype(keys), in_product_dtype(values))
            new.keys[:, :, :filled], new.values[:, :, :filled] = keys, values
            new.cumulative_length.fill_(filled)
            old.keys = old.values = None  # not both caches of all layers at once
        longer_mask_BK = torch.cat([mask_BK[rows], mask_BK.new_zeros(len(rows), room)], 1)
        return cls(policy, longer, longer_mask_BK, position_B[rows].clone(), filled)

    @property
    def is_full(self) -> bool:
        return self.filled == self.mask_B11K.shape[-1]

    def next(self, rows: Tensor, room: int) -> _Stage:
        """A stage that goes on with some of the rows."""
        mask_BK = self.mask_B11K[:, 0, 0, : self.filled]
        return self.of(self.policy, self.cache, mask_BK, self.position_B, rows, room)

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one token per row; logits [B, V] of the next."""
        self.token_B.copy_(token_B)
        self.mask_B11K[..., self.filled] = True
        if self._replay is None:
            self._replay = _capture(self._forward, self.cache) if token_B.is_cuda else self._forward
        logits_BV = self._replay()
        self.position_B += 1
        self.filled += 1
        return logits_BV

    def _forward(self) -> Tensor:
        positions_3B1 = self.position_B.expand(3, -1)[..., None]
        return self.policy.next_logits(self.token_B[:, None], positions_3B1, self.mask_B11K, self.cache)


def _cache_layer(n_tokens: int) -> Any:
    """A cache of one layer whose memory stays where it is, in the precision of attention: under autocast keys leave the rotation in
    float32."""
    from transformers.cache_utils import StaticLayer

    class Layer(StaticLayer):
        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return super().update(
                in_product_dtype(key_states), in_product_dtype(value_states), *args, **kwargs
            )

    return Layer(max_cache_len=n_tokens)


def _capture(forward: Callable[[], Tensor], cache: Any) -> Callable[[], Tensor]:
    """Record a step as a CUDA graph. Where that fails, steps are launched one kernel at a time, and one line says so."""
    global _graphs_work
    if not _graphs_work:
        return forward
    lengths = [layer.cumulative_length.clone() for layer in cache.layers]

    def rewind() -> None:
        for layer, length in zip(cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)

    outside, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    try:
        stream.wait_stream(outside)
        with torch.cuda.stream(stream):
            forward()  # libraries choose their kernels before the recording
        outside.wait_stream(stream)
        rewind()
        with torch.cuda.graph(graph):
            logits_BV = forward()
    except RuntimeError as error:
        _graphs_work = False  # nor will they next time
        torch.cuda.set_stream(outside)
        reason = first_line(error.__context__ or error)
        print(f"rollout: no CUDA graph ({reason}); decoding goes on without", file=sys.stderr)
        rewind()
        return forward
    rewind()

    def replay() -> Tensor:
        graph.replay()
        return logits_BV

    return replay


def _chances(seed: int, n: int, max_new_tokens: int) -> Tensor:
    """Uniform numbers [G, C] of one prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, max_new_tokens, generator=generator, dtype=torch.float64)


def _draw(
    logits_BV: Tensor, forbidden_V: Tensor, temperature: float, chance_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Next tokens, by inversion of the cumulative distribution, and their log-probabilities under the unrestricted policy, which is what
    training compares with."""
    logps_BV = (logits_BV.float() / (temperature or 1.0)).log_softmax(-1)
    if chance_B is None:
        token_B = logps_BV.masked_fill(forbidden_V, -torch.inf).argmax(-1)
    else:
        up_to_BV = logps_BV.double().exp_().masked_fill_(forbidden_V, 0).cumsum(-1)
        drawn_B1 = (chance_B * up_to_BV[:, -1])[:, None]
        token_B = torch.searchsorted(up_to_BV, drawn_B1, right=True)[:, 0].clamp(max=len(forbidden_V) - 1)
    return token_B, logps_BV.gather(-1, token_B[:, None])[:, 0]


def forbidden_ids(processor: Processor) -> list[int]:
    """Tokens that are never sampled, as far as the tokenizer has them."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.convert_tokens_to_ids(name) for name in NEVER_SAMPLED]
    return [i for i in ids if i is not None and i != tokenizer.unk_token_id]


def forbidden_tokens(policy: Policy, vocab: int) -> Tensor:
    """Which of the vocabulary [V] are never sampled."""
    mask_V = torch.zeros(vocab, dtype=torch.bool, device=policy.device)
    mask_V[forbidden_ids(policy.processor)] = True
    return mask_V
