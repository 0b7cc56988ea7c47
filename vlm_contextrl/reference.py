"""ContextRL in one file: the whole method, flat, for reading and as the oracle of the trainer.

    D(z)   = l+(z) - l-(z)                                  margin of the option tokens, one forward, nothing sampled
    L_CA   = mean over pairs of -log sigmoid(clip(D, -c, c))
    A_i    = (r_i - mean(r)) / (std(r) + 1e-6)              advantage inside a group of G completions of one prompt
    L_GRPO = mean over completions of mean over tokens of -min(ratio * A, clip(ratio, 1 - lo, 1 + hi) * A)
    L      = L_GRPO + lambda * L_CA

Source: arXiv 2606.17053; GRPO arXiv 2402.03300; the unequal clip range of arXiv 2503.14476.

Plain on purpose: prompts are repeated G times and padded, images are processed G times, sampling recomputes everything for every token.
tests/test_reference.py holds the trainer to these numbers. Left out: KL to a reference model, the other policy variants, several updates
per rollout, micro-batches, checkpoints.

Shapes: P prompts, G completions per prompt, B = P * G rows, T tokens, C completion tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl.answers import score_answer
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.prompts import option_token_ids, selection_messages, vqa_messages


@dataclass(frozen=True)
class Settings:
    """The knobs of the method."""

    completions_per_prompt: int = 8
    max_new_tokens: int = 8
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.3
    selection_weight: float = 0.005  # lambda
    margin_clip: float = 5.0  # c


# ---------------------------------------------------------------- what the model sees


def question_prompt(processor: Processor, row: QuestionRow) -> EncodedPrompt:
    images = [processor.process_image(image) for image in row.images]
    return processor.encode(
        vqa_messages(row.query, len(images), row.options, row.context_text, "direct"), images
    )


def selection_prompt(processor: Processor, pair: ContrastivePair, context_first: bool) -> EncodedPrompt:
    assert isinstance(pair.context, EncodedImage)
    assert isinstance(pair.confounder, EncodedImage)
    shown = (pair.context, pair.confounder) if context_first else (pair.confounder, pair.context)
    images = [processor.process_image(image) for image in shown]
    return processor.encode(selection_messages(pair.query, pair.answer, pair.options), images)


def model_inputs(
    prompts: Sequence[EncodedPrompt], continuations: Sequence[Tensor], processor: Processor
) -> dict[str, Any]:
    """Right-padded prompt + continuation, one row each, pixels repeated row by row."""
    rows = [torch.cat([p.ids_T, c]) for p, c in zip(prompts, continuations, strict=True)]
    pad = processor.tokenizer.pad_token_id
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths_B = torch.tensor([len(r) for r in rows])
    images = [image for p in prompts for image in p.images]
    return {
        "input_ids": ids_BT,
        "attention_mask": (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long(),
        "mm_token_type_ids": (ids_BT == processor.image_token_id).int(),
        "pixel_values": torch.cat([i.patches_ND for i in images]),
        "image_grid_thw": torch.tensor([i.grid_thw for i in images]),
    }


# ---------------------------------------------------------------- rollout and reward


@torch.no_grad()
def rollout(
    model: Any, processor: Processor, prompt: EncodedPrompt, settings: Settings, generator: torch.Generator
) -> list[Tensor]:
    """G completions of one prompt, one token at a time, everything recomputed."""
    completions: list[Tensor] = []
    for _ in range(settings.completions_per_prompt):
        ids = torch.empty(0, dtype=torch.long)
        while len(ids) < settings.max_new_tokens and (len(ids) == 0 or int(ids[-1]) not in processor.end_ids):
            logits_V = (
                model(**model_inputs([prompt], [ids], processor)).logits[0, -1].float() / settings.temperature
            )
            logits_V[processor.image_token_id] = -torch.inf  # a sampled placeholder would need pixels
            ids = torch.cat([ids, torch.multinomial(logits_V.softmax(-1), 1, generator=generator)])
        completions.append(ids)
    return completions


def group_rewards(processor: Processor, row: QuestionRow, completions: Sequence[Tensor]) -> Tensor:
    """1 for a right answer, 0 otherwise."""
    texts = [processor.decode(c.tolist()) for c in completions]
    return torch.tensor([float(score_answer(t, row.answer, row.answer_type, row.options)) for t in texts])


def group_advantages(rewards_G: Tensor) -> Tensor:
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + 1e-6)


# ---------------------------------------------------------------- losses


def completion_logps(
    model: Any,
    processor: Processor,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Tensor],
    temperature: float,
) -> list[Tensor]:
    """Log-probability of every completion token, one tensor per completion."""
    logits_BTV = model(**model_inputs(prompts, completions, processor)).logits / temperature
    out = []
    for logits_TV, prompt, completion in zip(logits_BTV, prompts, completions, strict=True):
        predicting = logits_TV[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
        out.append(predicting.log_softmax(-1).gather(-1, completion[:, None])[:, 0])
    return out


def policy_loss(
    logps: Sequence[Tensor], old_logps: Sequence[Tensor], advantages_B: Tensor, settings: Settings
) -> Tensor:
    """Clipped surrogate, mean over tokens inside a completion, then mean over completions."""
    losses = []
    for logp, old, advantage in zip(logps, old_logps, advantages_B, strict=True):
        ratio = (logp - old).exp()
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        losses.append(-torch.minimum(ratio * advantage, clipped * advantage).mean())
    return torch.stack(losses).mean()


def selection_loss(
    model: Any,
    processor: Processor,
    pairs: Sequence[ContrastivePair],
    context_first: Sequence[bool],
    settings: Settings,
) -> Tensor:
    """Clipped margin of the option tokens at the position after the prompt."""
    prompts = [
        selection_prompt(processor, pair, first) for pair, first in zip(pairs, context_first, strict=True)
    ]
    a, b = option_token_ids(processor.tokenizer, "")
    logits_BTV = model(
        **model_inputs(prompts, [torch.empty(0, dtype=torch.long)] * len(prompts), processor)
    ).logits
    margins = []
    for logits_TV, prompt, first in zip(logits_BTV, prompts, context_first, strict=True):
        at_end = logits_TV[len(prompt) - 1]
        margins.append(at_end[a] - at_end[b] if first else at_end[b] - at_end[a])
    return -F.logsigmoid(torch.stack(margins).clamp(-settings.margin_clip, settings.margin_clip)).mean()


# ---------------------------------------------------------------- one step


def step_loss(
    model: Any,
    processor: Processor,
    rows: Sequence[QuestionRow],
    completions: Sequence[Sequence[Tensor]],
    rewards: Sequence[Tensor],
    pairs: Sequence[ContrastivePair],
    context_first: Sequence[bool],
    settings: Settings,
) -> Tensor:
    """L_GRPO + lambda * L_CA of one batch; on-policy, so the old log-probabilities are the current ones."""
    prompts = [question_prompt(processor, row) for row in rows]
    flat_prompts = [p for p, group in zip(prompts, completions, strict=True) for _ in group]
    flat_completions = [c for group in completions for c in group]
    advantages_B = torch.cat([group_advantages(r) for r in rewards])
    logps = completion_logps(model, processor, flat_prompts, flat_completions, settings.temperature)
    loss = policy_loss(logps, [logp.detach() for logp in logps], advantages_B, settings)
    if pairs:
        loss = loss + settings.selection_weight * selection_loss(
            model, processor, pairs, context_first, settings
        )
    return loss


def train_step(
    model: Any,
    processor: Processor,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[QuestionRow],
    pairs: Sequence[ContrastivePair],
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, float]:
    """Sample, reward, one optimizer step."""
    completions = [
        rollout(model, processor, question_prompt(processor, row), settings, generator) for row in rows
    ]
    rewards = [group_rewards(processor, row, group) for row, group in zip(rows, completions, strict=True)]
    orders = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    loss = step_loss(
        model, processor, rows, completions, rewards, pairs, [orders.random() < 0.5 for _ in pairs], settings
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss.item(), "reward": torch.stack(rewards).mean().item()}
