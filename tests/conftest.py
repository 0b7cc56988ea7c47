"""What tests share: no network, few threads, small datasets and a tiny random model, made once per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rendered pairs of 56 px."""
    return _rendered(tmp_path_factory, "pairs", 24)


@pytest.fixture(scope="session")
def questions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rendered questions of 56 px."""
    return _rendered(tmp_path_factory, "questions", 24)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL with random weights (about 0.2 M parameters), saved as an ordinary model folder."""
    from vlm_contextrl.data_recipes.tinyvl import TinyVLConfig, build_model, build_tokenizer, corpus, save

    from vlm_contextrl.processing import load_processor

    folder = tmp_path_factory.mktemp("model")
    config = TinyVLConfig(
        vocab_size=400, hidden=64, layers=2, intermediate=96, vision_hidden=32, vision_layers=2, vision_intermediate=64
    )
    tokenizer = build_tokenizer(corpus(config, 50), config.vocab_size)
    ...
    return folder


def _rendered(tmp_path_factory: pytest.TempPathFactory, rows: str, count: int) -> Path:
    from vlm_contextrl.data_recipes.render import RenderConfig, render_pairs, render_questions

    from vlm_contextrl.storage import write_rows

    folder = tmp_path_factory.mktemp("rendered") / rows
    config = RenderConfig(count=count, size_px=56)
    made = render_pairs(config) if rows == "pairs" else render_questions(config)
    write_rows(made, folder, recipe="render", config=config.model_dump())
    return folder
