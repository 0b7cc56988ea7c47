"""The configuration of a model whose weights need not be there: its config.json, or what is known of the models that the shipped
configurations name.

Sources of the table: config.json of the models on the Hugging Face hub. `AutoConfig` fills in what is not listed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_contextrl.models import read_config, resolve

QWEN2_5_VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 12288, "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 4096, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    },
}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
            "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        "vision_config": QWEN2_5_VISION | {"out_hidden_size": 2048},
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064,
        },
        "vision_config": QWEN2_5_VISION | {"out_hidden_size": 3584},
    },
    "Qwen/Qwen3-VL-8B-Instruct": QWEN3_8B,
    "Qwen/Qwen3-VL-8B-Thinking": QWEN3_8B,
}  # fmt: skip


def model_config(path: str) -> tuple[Any, str]:
    """(configuration, where it comes from) of `tinyvl`, a folder or a hub id.

    Nothing is fetched for a known hub id; another one is looked up. Raises CheckpointError when there is none to read.
    """
    from transformers import AutoConfig

    if path in KNOWN and not Path(path).is_dir():
        values = dict(KNOWN[path])
        return AutoConfig.for_model(values.pop("model_type"), **values), "known shape"
    return read_config(resolve(path)), "config.json"


def empty_model(config: Any) -> Any:
    """The model with parameters that have a shape and no memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)
