"""Our side of the bench: the same work through packing, policy, rollout and terms.

A policy is made anew for every call, so its cache of image features is empty: the vision tower is counted once per image in each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_contextrl.bench.shapes import Shape, with_our_engine
from vlm_contextrl.config import PolicyTerm, SelectionTerm
from vlm_contextrl.models import enable_checkpointing
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.packed_kernels import choose_kernel
from vlm_contextrl.packing import Continuation, PackedRow, pack
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.rollout import Completion, OwnEngine
from vlm_contextrl.terms import Group, PolicyObjective, SelectionObjective, Update
from vlm_contextrl.vqa import question_prompt

BUDGET_TOKENS, SEQUENCES = 16384, 64  # tokens_per_micro_batch, sequences_at_once: the defaults of config.py
LEARNING_RATE = 1e-6  # as TRL's default


class Ours:
    """A copy of a PEFT model with packed attention and fused adapters."""

    def __init__(self, model: Any, processor: Processor, *, checkpointing: bool = False) -> None:
        self.model, self.processor = with_our_engine(copy.deepcopy(model)), processor
        if checkpointing:
            enable_checkpointing(self.model.get_base_model().model.language_model)

    def policy(self) -> Policy:
        """The policy with nothing in its cache."""
        parameter = next(iter(self.model.parameters()))
        kernel = choose_kernel("auto", parameter.device, parameter.dtype)
        return Policy(self.model, self.processor, attention_kernel=kernel.name)

    def logps(self, prompt: EncodedPrompt, completions: Sequence[Tensor]) -> Tensor:
        """Log-probabilities [G, C] of completions of one length."""
        policy = self.policy()
        row = PackedRow(prompt, tuple(Continuation(c) for c in completions))
        packed = pack([row], policy.positions, self.processor.tokenizer.pad_token_id)
        logps_L, _ = policy.completion_logps(packed)
        return logps_L.view(len(completions), -1)

    def option_logits(self, prompts: Sequence[EncodedPrompt], option_ids: Sequence[int]) -> Tensor:
        """Logits [B, O] after each prompt."""
        return self.policy().option_logits(prompts, option_ids)

    def generate(self, prompt: EncodedPrompt, n: int, max_new_tokens: int) -> list[Tensor]:
        """Token ids of n completions of one prompt."""
        return [c.ids for c in sampled(self.policy().eval(), [prompt], n, max_new_tokens)[0]]

    def step(
        self,
        rows: Sequence[QuestionRow],
        pairs: Sequence[ContrastivePair],
        shape: Shape,
        selection_weight: float,
    ) -> Callable[[], None]:
        """A function that runs one optimizer step, images and prompts included."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
        terms = (
            PolicyObjective(PolicyTerm(term="policy"), shape.completion_tokens, 1.0),
            SelectionObjective(SelectionTerm(term="selection_loss", weight=selection_weight, reverse=True)),
        )
        rewards_PG = torch.arange(len(rows) * shape.completions).view(len(rows), -1) % 2
        advantages_PG, _ = group_advantages(rewards_PG.float())

        def run() -> None:
            policy = self.policy()
            prompts = [question_prompt(self.processor, row, "plain") for row in rows]
            policy.eval()
            completions = sampled(policy, prompts, shape.completions, shape.completion_tokens)
            policy.train()
            groups = [
                Group(
                    row,
                    prompt,
                    group,
                    [self.processor.decode(c.ids.tolist()) for c in group],
                    rewards_PG[p].tolist(),
                    advantages_PG[p],
                )
                for p, (row, prompt, group) in enumerate(zip(rows, prompts, completions, strict=True))
            ]
            update = Update(groups, pairs, "0")
            optimizer.zero_grad(set_to_none=True)
            for term in terms:
                for share in term.shares(policy, update, BUDGET_TOKENS):
                    loss, _ = share()
                    (term.weight * loss).backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()

        return run


def sampled(
    policy: Policy, prompts: Sequence[EncodedPrompt], n: int, max_new_tokens: int
) -> list[list[Completion]]:
    """Completions at temperature 1, as in training."""
    seeds = list(range(len(prompts)))
    return OwnEngine(BUDGET_TOKENS, SEQUENCES).sample(
        policy, prompts, n, max_new_tokens=max_new_tokens, temperature=1.0, seeds=seeds
    )
