"""First stage: the vision tower learns what a scene holds, without the language model.

    loss = mean over queries of  sum over words w of BCE( e_w . h(query, v_1 .. v_N) + b_w,  w stands in a phrase that was looked up )

A query (lookups.py) attends to the visual tokens v_i, the ones that the language model will read, through two layers of
cross-attention, and names the other words of the phrases that hold it. That is how a question will use the picture, so what the head
needs lies where a language model can find it; and what is learned of one red thing serves all, wherever they stand. The head is thrown
away but for its word vectors e_w, with which the language model starts. An image costs a fifth of what it costs together with the
language model, and the gradient reaches the tower at once instead of through a decoder that cannot read yet.

Shapes: B images, Q queries per image, W words, N visual tokens of an image, H hidden size of the language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_contextrl.data_recipes.render import scene_examples
from vlm_contextrl.data_recipes.tinyvl.lookups import Lookup, lookups, phrases_of
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.processing import Processor

HEAD_DIM = 32


def scene_words(config: TinyVLConfig) -> tuple[str, ...]:
    """Every word of the descriptions of `word_scenes` scenes, most frequent first."""
    counts: Counter[str] = Counter()
    for index in range(config.word_scenes):
        description = scene_examples(config.seed, index, size_px=28, questions_per_scene=1)[1]
        counts.update(word for phrase in phrases_of(description) for word in phrase)
    return tuple(word for word, _ in counts.most_common())


class Reader(nn.Module):
    """One layer of cross-attention from queries to visual tokens, then an MLP; both residual, both normalised before."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query, self.key_value = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, queries_BQH: Tensor, tokens_BNH: Tensor) -> Tensor:
        key, value = self.key_value(tokens_BNH).chunk(2, -1)
        query, key, value = (
            x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for x in (self.query(self.norm(queries_BQH)), key, value)
        )
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        queries_BQH = queries_BQH + self.out(read)
        out: Tensor = queries_BQH + self.mlp(self.mlp_norm(queries_BQH))
        return out


class LookupHead(nn.Module):
    """From queries and visual tokens to the words that were found."""

    def __init__(self, words: Sequence[str], hidden: int, n_tokens: int) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(words)}
        self.embed = nn.Embedding(len(words), hidden)
        self.places = nn.Parameter(0.02 * torch.randn(n_tokens, hidden))
        self.norm, self.out_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.readers = nn.ModuleList(Reader(hidden) for _ in range(2))
        # Most words are not found by most queries: start there.
        self.word_bias = nn.Parameter(torch.full((len(words),), -4.0))
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens_BNH: Tensor, queries_BQW: Tensor) -> Tensor:
        """Logits [B, Q, W]; queries are multi-hot over the words."""
        tokens_BNH = self.norm(tokens_BNH) + self.places
        x = queries_BQW @ self.embed.weight
        for reader in self.readers:
            x = reader(x, tokens_BNH)
        logits: Tensor = self.out_norm(x) @ self.embed.weight.T + self.word_bias
        return logits

    def multi_hot(self, batch: Sequence[Sequence[Lookup]]) -> tuple[Tensor, Tensor]:
        """(queries, targets), both [B, Q, W] zeros and ones. Words outside the vocabulary are left out."""
        queries_BQW = torch.zeros(len(batch), len(batch[0]), len(self.index))
        targets_BQW = torch.zeros_like(queries_BQW)
        for b, asked in enumerate(batch):
            for q, lookup in enumerate(asked):
                found = {word for phrase in lookup.found for word in phrase} - set(lookup.words)
                queries_BQW[b, q, [self.index[w] for w in lookup.words if w in self.index]] = 1
                targets_BQW[b, q, [self.index[w] for w in found if w in self.index]] = 1
        return queries_BQW, targets_BQW

    @torch.no_grad()
    def give_vectors(self, model: Any, tokenizer: Any) -> int:
        """Start the language model's tied embeddings with the word vectors of words that are one token; returns how many."""
        table = model.get_input_embeddings().weight
        n = 0
        for word, i in self.index.items():
            for text in (word, f" {word}"):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    table[ids[0]] = self.embed.weight[i]
                    n += 1
        return n


def vision_loss(
    model: Any, head: LookupHead, processor: Processor, config: TinyVLConfig, indices: Sequence[int]
) -> Callable[[], Tensor]:
    """The loss, ready to run, of the scenes with these numbers."""
    words = tuple(head.index)
    images, asked = [], []
    for index in indices:
        image, description, _, _ = scene_examples(
            config.seed, index, size_px=config.size_px, questions_per_scene=1
        )
        images.append(processor.process_image(image))
        rng = Random(f"lookups:{config.seed}:{index}")
        asked.append(lookups(description, config.lookups_per_image, words, rng))
    patches = torch.cat([image.patches_ND for image in images])
    grids = torch.tensor([image.grid_thw for image in images])
    queries_BQW, targets_BQW = head.multi_hot(asked)

    def loss() -> Tensor:
        tokens = model.model.get_image_features(patches, grids, return_dict=True).pooler_output
        logits_BQW = head(torch.stack(list(tokens)), queries_BQW)
        return F.binary_cross_entropy_with_logits(logits_BQW, targets_BQW, reduction="none").sum(-1).mean()

    return loss
