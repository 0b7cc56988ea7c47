"""Bytes that the forward pass keeps for the backward pass, from shapes; checked against what autograd really keeps (tests/test_bench.py).

Per token and decoder layer, h hidden size, f feed-forward size, q and k widths of queries and of keys, s bytes of a product's element:

    norms                 8 h               two inputs in float32; trained norms keep their normalised values, too: 8 h more
    inputs of matrices    s (2 h + q)       with casts e (5 h + q): each matrix keeps a cast of its own
    feed-forward          3 s f + e f       gate, up, silu(gate), and their product
    adapters              7 e r             one narrow output per adapted matrix
    attention             s (2 q + 2 w)     queries, outputs, keys and values; w by kernel, n the keys per token that a continuation sees,
                                            gathered in front of it: flex k, flash and varlen n k, two_part n q
    norms of q and k      4 (q + k)         Qwen3 only

Casts: autocast, e = s; 16-bit weights without it, whose float32 adapters take float32 inputs, e = 4; else none, e = s. Frozen float32
weights under autocast: the graph keeps a 16-bit copy of each matrix of a layer. With checkpointing a layer keeps its input; one layer at a
time keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.log_probs import TILE


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
    shape: Any, batch: Batch, precision: Precision, settings: ModelSettings, *, kernel: str
) -> float:
    """What one layer keeps per token."""
    _, h, f, q, k, _ = Sizes.of(shape)
    s, trained, autocast = precision.product_bytes, settings.tuning == "full", settings.autocast == "bf16"
    float_inputs = not trained and not autocast and s == 2  # of the adapters
    e = 4 if float_inputs else s
    norms = 8 * h * (2 if trained else 1)
    if shape.model_type == "qwen3_vl":
        norms += 4 * (q + k) * (2 if trained else 1)
    inputs = e * (5 * h + q) if autocast or float_inputs else s * (2 * h + q)
    adapters = 0 if trained else 7 * e * settings.lora.rank
    keys = {"two_part": q * batch.keys_per_token, "flex": k}.get(kernel, k * batch.keys_per_token)
    return norms + inputs + (3 * s + e) * f + adapters + s * (2 * q + 2 * keys)


def kernel_on_a_gpu(precision: Precision, settings: ModelSettings) -> str:
    """As `packed_kernels.choose_kernel` on a GPU from Ampere on, with triton and flash-attn (varlen, without, keeps as much)."""
    half, wanted = precision.product_bytes == 2, settings.attention
    if wanted == "auto":
        return "flash" if half else "flex"
    return "two_part" if wanted in ("flash", "varlen") and not half else wanted


def decoder_bytes(
    shape: Any, batch: Batch, precision: Precision, settings: ModelSettings, *, kernel: str
) -> float:
    """What the language model keeps for a micro-batch."""
    layers, h, f, q, k, _ = Sizes.of(shape)
    per_token = decoder_layer_bytes(shape, batch, precision, settings, kernel=kernel)
    casts_frozen = (
        settings.tuning == "lora"
        and settings.quantization == "none"  # 4-bit weights are kept as they are
        and precision.product_bytes < precision.residual_bytes
    )
    copies = precision.product_bytes * (h * (2 * q + 2 * k) + 3 * h * f) if casts_frozen else 0
    layer = batch.tokens * per_token + copies
    if not settings.gradient_checkpointing:
        return layers * layer
    return layers * batch.tokens * h * precision.residual_bytes + layer


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
    """Hidden states of the labels, the directions of their gradients, and four tiles of logits at work (log_probs.py)."""
    sizes = Sizes.of(shape)
    tile = min(batch.labels, TILE[0]) * min(sizes.vocab, TILE[1])
    hidden = batch.labels * sizes.hidden * precision.product_bytes
    d_weight = 4 * sizes.vocab * sizes.hidden if settings.tuning == "full" else 0
    return 4 * 4 * tile + 2 * hidden + d_weight
