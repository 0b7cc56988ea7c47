"""What tests share: no network, few threads, small datasets and a tiny random model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("tests.app_browser",)

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """Ray's processes would run beside all tests that follow."""
    yield
    if ray := sys.modules.get("ray"):
        ray.shutdown()


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
    """Qwen2.5-VL with few random weights, saved as an ordinary model folder."""
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from vlm_contextrl.data_recipes.tinyvl import TinyVLConfig
    from vlm_contextrl.data_recipes.tinyvl.architecture import build_model, build_tokenizer
    from vlm_contextrl.data_recipes.tinyvl.rows import corpus

    config = TinyVLConfig(
        vocab_size=400,
        hidden=64,
        layers=2,
        intermediate=96,
        vision_hidden=32,
        vision_layers=2,
        vision_intermediate=64,
    )
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(corpus(config, 40), config.vocab_size)
    with torch.random.fork_rng():
        model = build_model(config, tokenizer)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}).save_pretrained(
        folder
    )
    model.save_pretrained(folder)
    return folder


def _rendered(tmp_path_factory: pytest.TempPathFactory, rows: str, count: int) -> Path:
    from vlm_contextrl.data_recipes.render import RenderConfig, render_pairs, render_questions
    from vlm_contextrl.storage import write_rows

    folder = tmp_path_factory.mktemp("rendered") / rows
    config = RenderConfig(count=count, size_px=56)
    made = render_pairs(config) if rows == "pairs" else render_questions(config)
    write_rows(made, folder, recipe="render", config=config.model_dump())
    return folder


@pytest.fixture(scope="session")
def qwen_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a tiny random model with a byte-level tokenizer (tests/tiny_models.py)."""
    from tests.tiny_models import FAMILIES, write_model_folder

    return {f: write_model_folder(f, tmp_path_factory.mktemp(f)) for f in FAMILIES}


@pytest.fixture(scope="session")
def noise_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of five `questions` about 1, 2 or no images of noise and of four `pairs`."""
    from tests.tiny_models import image_pair, question
    from vlm_contextrl.storage import write_rows

    folder = tmp_path_factory.mktemp("noise")
    rows = {
        "questions": [question(n, (n + 1) % 3) for n in range(5)],
        "pairs": [image_pair(n, "8" if n % 2 else None) for n in range(4)],
    }
    for name, made in rows.items():
        write_rows(made, folder / name, recipe="noise", config={})
    return {name: folder / name for name in rows}


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of third-party data that VLM_CONTEXTRL_REALDATA names; without it the test is skipped."""
    named = os.environ.get("VLM_CONTEXTRL_REALDATA", "")
    if not named:
        pytest.skip("VLM_CONTEXTRL_REALDATA names no folder of third-party data")
    folder = Path(named)
    assert folder.is_dir(), f"VLM_CONTEXTRL_REALDATA: no folder {folder}"
    return folder
