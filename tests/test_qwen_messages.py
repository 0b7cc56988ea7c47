"""Qwen's own message conventions, through qwen-vl-utils, and our resizing against it.

qwen-vl-utils imports torchvision for videos only. Where torchvision is absent, empty stand-ins let its image half run.
"""

from __future__ import annotations

import base64
import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError, MissingExtraError
from vlm_contextrl.processing import Processor, load_processor
from vlm_contextrl.qwen_messages import encode_messages


@pytest.fixture
def vision_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("av", reason="qwen-vl-utils is not installed")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.io", "torchvision.transforms"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torchvision"].io = sys.modules["torchvision.io"]  # type: ignore[attr-defined]
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms"].InterpolationMode = object  # type: ignore[attr-defined]
    return pytest.importorskip("qwen_vl_utils.vision_process")


@pytest.fixture(scope="module")
def processor(tiny_model_folder: Path) -> Processor:
    from transformers import AutoConfig

    return load_processor(
        str(tiny_model_folder), AutoConfig.from_pretrained(tiny_model_folder).image_token_id
    )


# Not at 28 x 3000 px, say: under this bound qwen-vl-utils rounds the short side down to 0; transformers and
# we keep one step.
@pytest.mark.parametrize("size", [(112, 112), (640, 480), (60, 700), (1999, 1001), (31, 17), (4000, 3000)])
def test_our_sizes_are_qwens(vision_process: Any, processor: Processor, size: tuple[int, int]) -> None:
    bounds = processor.image_processor.size
    height, width = vision_process.smart_resize(
        size[1], size[0], factor=28, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
    )
    assert processor.process_image(Image.new("RGB", size)).grid_thw == (1, height // 14, width // 14)


def test_paths_base64_and_bounds_of_a_part_are_honoured(
    vision_process: Any, processor: Processor, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (200, 100), (200, 30, 30))
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data_url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "image", "image": str(tmp_path / "a.png"), "resized_height": 56, "resized_width": 112},
        {"type": "image", "image": data_url, "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 2},
        {"type": "text", "text": "Same?"},
    ]
    prompt = encode_messages(processor, [{"role": "user", "content": content}])
    # 56 x 112 px are 4 x 8 patches; 200 x 100 px under 1568 px^2 become 28 x 56 px, which are 2 x 4 patches.
    assert [image.grid_thw for image in prompt.images] == [(1, 4, 8), (1, 2, 4)]
    assert int((prompt.ids_T == processor.image_token_id).sum()) == 8 + 2
    assert [len(image.patches_ND) for image in prompt.images] == [32, 8]


def test_web_images_and_videos_are_refused(vision_process: Any, processor: Processor) -> None:
    def ask(part: dict[str, str]) -> None:
        encode_messages(processor, [{"role": "user", "content": [part]}])

    with pytest.raises(DataError, match="on the web; download it"):
        ask({"type": "image", "image": "https://example.org/a.png"})
    with pytest.raises(DataError, match="video"):
        ask({"type": "video", "video": "a.mp4"})
    with pytest.raises(DataError, match="cannot be read"):
        ask({"type": "image", "image": "/nonexistent/a.png"})


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, processor: Processor) -> None:
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", None)
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[qwen\]"):
        encode_messages(processor, [{"role": "user", "content": "hello"}])
