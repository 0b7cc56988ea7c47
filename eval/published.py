"""The paper's accuracies on the twelve benchmarks, to stand beside measured ones.

Source: Context-Aware RL for Agentic and Multimodal LLMs (arXiv 2606.17053), table 2, as its project page gives it
(xupy2003/ContextRL_Website, index.html). The page does not name the harness, the prompts or a judge model, so these numbers come from
another harness: they tell where to expect a result, and no difference to them is tested.
"""

from __future__ import annotations

SOURCE = "arXiv 2606.17053, table 2"
MARK = "published, other harness"
MODELS = {"qwen2_5_vl_7b": "Qwen2.5-VL-7B", "qwen3_vl_8b": "Qwen3-VL-8B"}
METHODS = {
    "qwen2_5_vl_7b": ("base", "GRPO", "PAPO", "ContextRL"),
    "qwen3_vl_8b": ("base", "GRPO", "ContextRL"),
}

# Percent; the columns of METHODS, first those of Qwen2.5-VL-7B. The last row is the table's own "overall".
_TABLE = {
    "mathvista": ((68.2, 72.5, 72.7, 73.6), (75.8, 78.7, 79.8)),
    "mathverse": ((43.9, 45.3, 49.7, 49.1), (56.1, 65.0, 66.4)),
    "mathvision": ((22.8, 25.5, 27.3, 26.8), (46.2, 49.2, 52.0)),
    "mmmu_pro": ((36.6, 41.3, 42.6, 42.8), (41.3, 55.9, 57.5)),
    "mmmu": ((50.7, 53.3, 53.2, 54.6), (66.4, 69.1, 70.1)),
    "vstar": ((70.1, 70.7, 71.7, 73.3), (82.2, 84.8, 85.9)),
    "mmstar": ((62.6, 64.1, 63.4, 65.1), (70.5, 73.5, 74.8)),
    "blink": ((55.3, 56.5, 58.5, 58.9), (64.4, 65.1, 66.6)),
    "scienceqa": ((88.2, 91.0, 92.7, 95.4), (94.4, 95.6, 96.6)),
    "phyx": ((25.4, 48.7, 46.8, 50.0), (45.5, 72.1, 73.4)),
    "olympiadbench": ((1.5, 3.1, 2.2, 4.6), (7.9, 8.1, 9.9)),
    "mme_realworld_lite": ((38.4, 45.1, 45.1, 46.7), (48.7, 51.9, 54.8)),
    "average": ((47.0, 51.4, 52.2, 53.4), (58.3, 64.1, 65.7)),
}


def published(model: str) -> dict[str, dict[str, float]]:
    """{benchmark or "average": {method: share from 0 to 1}} of a key of MODELS."""
    column = list(MODELS).index(model)
    return {
        name: {
            method: round(percent / 100, 3)
            for method, percent in zip(METHODS[model], row[column], strict=True)
        }
        for name, row in _TABLE.items()
    }


def guessed_model(name: str) -> str | None:
    """The key of MODELS that a model's name or folder contains, punctuation left aside; None when it contains none."""
    letters = _letters(name)
    return next((key for key, title in MODELS.items() if _letters(title) in letters), None)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
