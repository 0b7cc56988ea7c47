"""Selection probe: does the model know which context supports an answer?

Every pair is shown in both option orders and scored by the logits of the option tokens; nothing is sampled. With D the margin of the
context over the confounder in one order:

    selection_accuracy         share of (pair, order) with D > 0; a tie counts one half
    order_consistent_accuracy  share of pairs that are right in both orders
    group_accuracy             share of pairs right in both orders and in both directions (A, C+, C-) and (A', C-, C+)
    mean_margin                mean over pairs of the margin averaged over both orders: a preference for a letter cancels
    position_bias              share of (pair, order) in which option A is chosen, a tie counting one half, minus one half
    same_image_control         selection_accuracy with the context in both places, one prompt read both ways: 0.5, or orders and letters are
                               counted wrongly

Intervals are bootstrapped over pairs. Source of the probe: arXiv 2606.17053, section on context unawareness; the controls are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import torch

from vlm_contextrl.errors import DataError
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.pairs import Context, ContrastivePair, EncodedImage
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor
from vlm_contextrl.prompts import SELECTION_PREFILL, option_token_ids, selection_messages

Progress = Callable[[int], None]


def selection_prompt(
    processor: Processor, pair: ContrastivePair, shown: Sequence[ProcessedImage | str]
) -> EncodedPrompt:
    """The selection prompt of a pair with its contexts in the given order."""
    if isinstance(pair.context, EncodedImage):
        images = [c for c in shown if isinstance(c, ProcessedImage)]
        messages = selection_messages(pair.query, pair.answer, pair.options, n_contexts=len(shown))
        return processor.encode(messages, images, SELECTION_PREFILL["image"])
    texts = [c for c in shown if isinstance(c, str)]
    messages = selection_messages(pair.query, pair.answer, pair.options, kind="text", contexts=texts)
    return processor.encode(messages, (), SELECTION_PREFILL["text"])


def contexts(
    processor: Processor, pair: ContrastivePair
) -> tuple[ProcessedImage | str, ProcessedImage | str]:
    """(context, confounder) of a pair, ready for a prompt."""
    where = f"pair {pair.id}"
    return processed(processor, pair.context, where), processed(processor, pair.confounder, where)


def processed(processor: Processor, context: Context, where: str) -> ProcessedImage | str:
    """One context, ready for a prompt. `where` names it in an error."""
    return processor.process_image(context, where) if isinstance(context, EncodedImage) else context


def option_ids(processor: Processor, pairs: Sequence[ContrastivePair], n_contexts: int = 2) -> list[int]:
    """Token ids of the letters A, B, ... after the prompts of these pairs. DataError when they mix images and texts, whose
    letters are not the same tokens."""
    images = isinstance(pairs[0].context, EncodedImage)
    for pair in pairs:
        if isinstance(pair.context, EncodedImage) != images:
            raise DataError(
                f"pairs {pairs[0].id} and {pair.id}: one has images, the other texts; expected one kind, in a "
                "dataset of its own"
            )
    prefill = SELECTION_PREFILL["image" if images else "text"]
    return option_token_ids(processor.tokenizer, prefill, ascii_uppercase[:n_contexts])


@torch.no_grad()
def pair_margins(
    policy: Policy,
    pairs: Sequence[ContrastivePair],
    *,
    batch_pairs: int = 16,
    budget_tokens: int = 16384,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Per pair: id, domain, margins, reverse_margins (None without the confounder's answer), control_margins; each of them with the
    context as A, then as B. budget_tokens: of one forward."""
    per_pair: list[dict[str, Any]] = []
    was_training = policy.training
    policy.eval()
    for start in range(0, len(pairs), batch_pairs):
        batch = pairs[start : start + batch_pairs]
        per_pair += _probe_batch(policy, batch, budget_tokens)
        if progress:
            progress(len(batch))
    policy.train(was_training)
    return per_pair


def probe(
    policy: Policy,
    pairs: Sequence[ContrastivePair],
    *,
    batch_pairs: int = 16,
    budget_tokens: int = 16384,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All measures of the module's docstring, and `per_pair` (see `pair_margins`) for paired comparisons."""
    per_pair = pair_margins(
        policy, pairs, batch_pairs=batch_pairs, budget_tokens=budget_tokens, progress=progress
    )
    return {**measures(per_pair, seed), "per_pair": per_pair}


def measures(per_pair: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """All measures of the module's docstring, of some pairs' margins (see `pair_margins`)."""

    def interval(values: Sequence[float]) -> dict[str, Any]:
        return bootstrap(values, seed)

    both_ways = [p for p in per_pair if p["reverse_margins"] is not None]
    return {
        "selection_accuracy": interval([share_right(p["margins"]) for p in per_pair]),
        "order_consistent_accuracy": interval([float(min(p["margins"]) > 0) for p in per_pair]),
        "group_accuracy": interval([float(min(p["margins"] + p["reverse_margins"]) > 0) for p in both_ways]),
        "mean_margin": interval([sum(p["margins"]) / 2 for p in per_pair]),
        "position_bias": interval([_share_first(p["margins"]) - 0.5 for p in per_pair]),
        "same_image_control": interval([share_right(p["control_margins"]) for p in per_pair]),
    }


def _probe_batch(
    policy: Policy, batch: Sequence[ContrastivePair], budget_tokens: int
) -> list[dict[str, Any]]:
    processor = policy.processor
    prompts: list[EncodedPrompt] = []
    for pair in batch:
        good, bad = contexts(processor, pair)
        prompts += [
            selection_prompt(processor, pair, shown)
            for shown in ((good, bad), (bad, good), (good, good), (good, good))
        ]
        reverse = pair.reversed()
        if reverse is not None:
            prompts += [selection_prompt(processor, reverse, shown) for shown in ((bad, good), (good, bad))]
    logits: Iterator[list[float]] = iter(
        policy.option_logits(prompts, option_ids(processor, batch), budget_tokens).tolist()
    )

    def margin(context_is_first: bool) -> float:
        a, b = next(logits)
        return a - b if context_is_first else b - a

    out = []
    for pair in batch:
        margins = [margin(True), margin(False)]
        control_margins = [margin(True), margin(False)]
        reverse_margins = [margin(True), margin(False)] if pair.reversed() is not None else None
        out.append({"id": pair.id, "domain": pair.domain, "margins": margins, "reverse_margins": reverse_margins,
                    "control_margins": control_margins})  # fmt: skip
    return out


def share_right(margins: Sequence[float]) -> float:
    """Share of margins above zero; a tie counts one half."""
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / len(margins)


def _share_first(margins: Sequence[float]) -> float:
    """Share of the two orders (context first, context second) in which option A wins."""
    first, second = margins
    return share_right([first, -second])
