"""Bytes that the forward pass keeps for the backward pass, from shapes; checked against what autograd really keeps (tests/test_bench.py).

Per token and decoder layer, h hidden size, f feed-forward size, q and k widths of queries and of keys, s bytes of a product's element:

    norms                 8 h           two inputs in float32; trained norms keep their normalised values, too: 8 h more
    inputs of matrices    s (2 h + q)   trained weights under autocast: s (5 h + q), each matrix casts its own copy
    feed-forward          4 s f         gate, up, silu(gate), their product
    adapters              7 s r         one narrow output per adapted matrix
    attention             s (2 q + 2 w) queries, outputs, and the keys and values that a continuation sees, gathered in front of it:
                                        w = k (grouped heads) or q (two_part on a GPU) times keys per token
    norms of q and k      4 (q + k)     Qwen3 only

With checkpointing a layer keeps its input; one layer at a time keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.log_probs import TOKEN_TILE, VOCABULARY_TILE


@dataclass(frozen=True)
class Precision:
    """Bytes of an element of a matrix product and of the residual stream."""

    product_bytes: int
    residual_bytes: int

    @classmethod
    def of(cls, settings: ModelSettings) -> Precision:
        stored = {"float32": 4, "bfloat16": 2}[settings.dtype]
        return cls(2 if settings.autocast == "bf16" else stored, stored)


@dataclass(frozen=True)
class Batch:
    """Groups of equal size: P prompt tokens, G completions of C tokens; `prompts` of them in one forward pass."""

    prompt: int
    completions: int
    completion: int
    prompts: int = 1

    @property
    def tokens(self) -> int:
        return self.prompts * (self.prompt - 1 + self.completions * self.completion)

    @property
    def labels(self) -> int:
        return self.prompts * self.completions * self.completion

    @property
    def keys_per_token(self) -> float:
        """Keys that are gathered, over tokens: the prompt's own and, for every completion, the prompt's and its own."""
        gathered = self.prompt - 1 + self.completions * (self.prompt - 1 + self.completion)
        return self.prompts * gathered / self.tokens

    def within(self, budget_tokens: int) -> Batch:
        """As many groups as fit; when not even one does, its completions are cut to the budget (a usual, not the worst, batch)."""
        if self.tokens <= budget_tokens:
            return Batch(self.prompt, self.completions, self.completion, budget_tokens // self.tokens)
        room = max(self.completions, budget_tokens - self.prompt + 1)
        return Batch(self.prompt, self.completions, max(1, room // self.completions))


class Sizes(NamedTuple):
    """Of the language model: layers, hidden and feed-forward size, widths of queries and of keys, vocabulary."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocab: int

    @classmethod
    def of(cls, shape: Any) -> Sizes:
        text = shape.get_text_config()
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
        return cls(
            int(text.num_hidden_layers),
            hidden,
            int(text.intermediate_size),
            heads * head_dim,
            int(text.num_key_value_heads) * head_dim,
            int(text.vocab_size),
        )


def decoder_layer_bytes(
    shape: Any, batch: Batch, precision: Precision, settings: ModelSettings, *, repeats_keys: bool
) -> float:
    """What one layer keeps per token."""
    _, h, f, q, k, _ = Sizes.of(shape)
    s, trained = precision.product_bytes, settings.tuning == "full"
    casts = trained and settings.autocast == "bf16"
    norms = 8 * h * (2 if trained else 1)
    if shape.model_type == "qwen3_vl":
        norms += 4 * (q + k) * (2 if trained else 1)
    inputs = s * ((5 if casts else 2) * h + q)
    adapters = 0 if trained else 7 * s * settings.lora.rank
    width = q if repeats_keys else k
    attention = s * (2 * q + 2 * width * batch.keys_per_token)
    return norms + inputs + 4 * s * f + adapters + attention


def kernel_repeats_keys(precision: Precision, settings: ModelSettings) -> bool:
    """Whether attention on a GPU gets a copy of each key per query head: the two_part kernel, which float32 falls back to."""
    wanted = settings.attention
    return wanted == "two_part" or (wanted != "flex" and precision.product_bytes == 4)


def decoder_bytes(
    shape: Any, batch: Batch, precision: Precision, settings: ModelSettings, *, repeats_keys: bool
) -> float:
    """What the language model keeps for a micro-batch."""
    sizes = Sizes.of(shape)
    layer = decoder_layer_bytes(shape, batch, precision, settings, repeats_keys=repeats_keys)
    if not settings.gradient_checkpointing:
        return batch.tokens * layer * sizes.layers
    return batch.tokens * (sizes.layers * sizes.hidden * precision.residual_bytes + layer)


def vision_bytes(
    shape: Any, patches: int, precision: Precision, settings: ModelSettings, *, kept: bool
) -> float:
    """With `kept`, what a trained tower keeps (nothing when it is frozen); without, the largest moment of a pass without gradient."""
    vision, s = shape.vision_config, precision.product_bytes
    depth, h, f = int(vision.depth), int(vision.hidden_size), int(vision.intermediate_size)
    gated = shape.model_type == "qwen2_5_vl"
    if not kept:
        return patches * s * (4 * h + (3 if gated else 2) * f)
    if not (settings.train_vision or (settings.tuning == "lora" and settings.lora.vision)):
        return 0
    norms = 8 * h * (2 if settings.tuning == "full" else 1)
    return patches * depth * (norms + s * (7 * h + (4 if gated else 2) * f))


def head_bytes(shape: Any, batch: Batch, precision: Precision, settings: ModelSettings) -> float:
    """Hidden states of the labels, the directions of their gradients, and the tiles of log_probs.py: logits, exponentials, one at work."""
    sizes = Sizes.of(shape)
    tile = min(batch.labels, TOKEN_TILE) * min(sizes.vocab, VOCABULARY_TILE)
    hidden = batch.labels * sizes.hidden * precision.product_bytes
    d_weight = 4 * sizes.vocab * sizes.hidden if settings.tuning == "full" else 0
    return 3 * 4 * tile + 2 * hidden + d_weight
