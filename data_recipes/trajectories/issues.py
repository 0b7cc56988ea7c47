"""How alike two issues are: the cosine of their tf-idf vectors, or of a text encoder's.

    weight(word in issue) = (1 + log count) * log((1 + N) / (1 + issues with the word)),  N issues

Words are runs of letters of three or more, lower-cased; identifiers are split at underscores and humps, so `max_length` is two words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from vlm_contextrl.errors import DataError, first_line

Similarity = Callable[[str, str], float]  # of the issues of two tasks
_WORD = re.compile(r"[A-Z]{3,}(?![a-z])|[A-Z][a-z]{2,}|[a-z]{3,}")
_ENCODED_TOKENS = 512
_CACHED_VECTORS = 20_000


def words(text: str) -> list[str]:
    """Words of an issue, in order."""
    return [word.lower() for word in _WORD.findall(text)]


def tfidf_similarity(issues: Mapping[str, str]) -> Similarity:
    """By tf-idf over all issues (task -> text)."""
    having: Counter[str] = Counter()
    for text in issues.values():
        having.update(set(words(text)))

    @lru_cache(maxsize=_CACHED_VECTORS)
    def vector(task: str) -> dict[str, float]:
        counted = Counter(words(issues[task]))
        raw = {
            w: (1 + math.log(n)) * math.log((1 + len(issues)) / (1 + having[w])) for w, n in counted.items()
        }
        norm = math.sqrt(sum(value * value for value in raw.values()))
        return {w: value / norm for w, value in raw.items() if value} if norm else {}

    def similarity(first: str, second: str) -> float:
        a, b = sorted((vector(first), vector(second)), key=len)
        return sum(value * b[word] for word, value in a.items() if word in b)

    return similarity


def encoder_similarity(issues: Mapping[str, str], folder: str) -> Similarity:
    """By the mean of a text encoder's last hidden states, over at most 512 tokens of an issue. DataError when the folder is none."""
    model, tokenizer = _encoder(folder)

    @lru_cache(maxsize=_CACHED_VECTORS)
    def vector(task: str) -> Any:
        import torch

        encoded = tokenizer(issues[task], truncation=True, max_length=_ENCODED_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**encoded).last_hidden_state[0].float().mean(0)
        return mean / mean.norm().clamp_min(1e-12)

    return lambda first, second: float(vector(first) @ vector(second))


def _encoder(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"issue_encoder: {folder} cannot be read ({first_line(error)}); expected a folder of a text encoder without code of its own"
        ) from error
    return model.eval(), tokenizer
