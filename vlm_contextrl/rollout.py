"""Sampling of completions: each prompt is prefilled once, its cache expanded to the G completions of its group.

Written for transformers' dynamic cache; every engine behind `sample` takes prompts and gives completions with their log-probabilities.
Image placeholders and other vision tokens are never sampled: their text would need pixels that do not exist.

Shapes: P prompts, G completions per prompt, B = P * G rows, T prompt tokens (left-padded), V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `ids` ends with the end token unless it was cut at the length limit."""

    ids: Tensor
    logps: Tensor  # of the sampling policy, one per token, at the sampling temperature
    truncated: bool


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    n: int,
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> list[list[Completion]]:
    """G = n completions for each of P prompts. Temperature 0 is greedy. Same generator state, same completions."""
    from transformers import DynamicCache

    device, base, end_ids = (
        policy.device,
        policy.base,
        torch.tensor(policy.processor.end_ids, device=policy.device),
    )
    ids_PT, positions_3PT = (x.to(device) for x in policy.pad(prompts))
    T = ids_PT.shape[1]
    lengths_P = torch.tensor([len(p) for p in prompts], device=device)
    mask_PT = (torch.arange(T, device=device) >= T - lengths_P[:, None]).long()
    cache = DynamicCache(config=base.config.get_text_config())
    cached = {_cache_argument(base.model): cache}
    hidden = base.model(
        input_ids=ids_PT,
        position_ids=positions_3PT,
        attention_mask=mask_PT,
        mm_encoder_outputs=policy.encoder_outputs([i for p in prompts for i in p.images]),
        use_cache=True,
        **cached,
    ).last_hidden_state
    cache.batch_repeat_interleave(n)
    logits_BV = base.lm_head(hidden[:, -1]).repeat_interleave(n, 0)
    next_position_B = (positions_3PT[:, :, -1].amax(0) + 1).repeat_interleave(n)
    mask_BT = mask_PT.repeat_interleave(n, 0)
    forbidden = _forbidden_tokens(policy, logits_BV.shape[-1])

    done_B = torch.zeros(len(prompts) * n, dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    for step in range(max_new_tokens):
        token_B, logp_B = _draw(logits_BV, forbidden, temperature, generator)
        tokens.append(torch.where(done_B, -1, token_B))
        logps.append(logp_B)
        done_B = done_B | torch.isin(token_B, end_ids)
        if bool(done_B.all()) or step == max_new_tokens - 1:
            break
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
        hidden = base.model(
            input_ids=token_B[:, None],
            position_ids=(next_position_B + step).expand(3, -1)[..., None],
            attention_mask=mask_BT,
            use_cache=True,
            **cached,
        ).last_hidden_state
        logits_BV = base.lm_head(hidden[:, -1])
    ids_BC, logps_BC = torch.stack(tokens, 1).cpu(), torch.stack(logps, 1).cpu()
    ends = set(policy.processor.end_ids)
    flat = [
        Completion(ids := row[row >= 0], row_logps[: len(ids)], int(ids[-1]) not in ends)
        for row, row_logps in zip(ids_BC, logps_BC, strict=True)
    ]
    return [flat[p * n : (p + 1) * n] for p in range(len(prompts))]


def _cache_argument(model: Any) -> str:
    """What transformers calls it: `cache` from 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _draw(
    logits_BV: Tensor, forbidden_V: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities under the unrestricted policy, which is what training compares with."""
    logits_BV = logits_BV.float() / (temperature or 1.0)
    allowed_BV = logits_BV.masked_fill(forbidden_V, -torch.inf)
    if temperature == 0:
        token_B = allowed_BV.argmax(-1)
    else:
        token_B = torch.multinomial(allowed_BV.softmax(-1), 1, generator=generator)[:, 0]
    return token_B, logits_BV.log_softmax(-1).gather(-1, token_B[:, None])[:, 0]


def _forbidden_tokens(policy: Policy, vocab: int) -> Tensor:
    names = (
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|im_start|>",
    )
    ids = [policy.processor.tokenizer.convert_tokens_to_ids(name) for name in names]
    mask_V = torch.zeros(vocab, dtype=torch.bool, device=policy.device)
    mask_V[[i for i in ids if i is not None and i != policy.processor.tokenizer.unk_token_id]] = True
    return mask_V
