"""Images to patches and placeholders, as Qwen's own processor has them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny_models import SPECIAL_TOKENS, ask, byte_tokenizer, noise_image
from vlm_contextrl.answers import score_answer
from vlm_contextrl.errors import CheckpointError, DataError
from vlm_contextrl.pairs import EncodedImage
from vlm_contextrl.processing import Processor, load_processor
from vlm_contextrl.prompts import selection_messages, vqa_messages

QWEN2_5_BOUNDS = {"shortest_edge": 784, "longest_edge": 1_003_520}  # the paper's
SIZES = [(28, 28), (1, 1), (56, 56), (100, 37), (640, 480), (1999, 30), (30, 1999), (1600, 1200), (13, 411)]


def processor(patch_size: int = 14, bounds: dict[str, int] = QWEN2_5_BOUNDS) -> Processor:
    tokenizer = byte_tokenizer()
    image_processor = Qwen2VLImageProcessorPil(patch_size=patch_size, size=dict(bounds))
    return Processor(tokenizer, image_processor, tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def encoded(image: Image.Image, format: str = "PNG", **settings: Any) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return EncodedImage(buffer.getvalue())


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("size", SIZES)
def test_grid_and_patches_equal_qwens(size: tuple[int, int], patch_size: int) -> None:
    """Grid, number of patches and their values are those of the image processor on the same picture."""
    ours = processor(patch_size)
    image = noise_image(1, *size)
    found = ours.process_image(image)
    expected = ours.image_processor(images=[image], return_tensors="pt")
    assert found.grid_thw == tuple(expected["image_grid_thw"][0].tolist())
    assert torch.equal(found.patches_ND, expected["pixel_values"])
    assert len(found.patches_ND) == found.grid_thw[1] * found.grid_thw[2] == 4 * found.n_tokens


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("size", [s for s in SIZES if min(s) >= 16] + [(3000, 1500), (5000, 4000)])
def test_sizes_equal_qwen_vl_utils(size: tuple[int, int], factor: int) -> None:
    """Sides under half a token are left out: there the two disagree (13 x 411 px: 15 visual tokens by
    qwen-vl-utils, 6 by transformers). We follow the model's image processor."""
    try:
        from qwen_vl_utils import vision_process
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        pytest.skip(f"qwen-vl-utils cannot be imported: {error}")
    low, high = QWEN2_5_BOUNDS["shortest_edge"], QWEN2_5_BOUNDS["longest_edge"]
    height, width = vision_process.smart_resize(
        size[1], size[0], factor=factor, min_pixels=low, max_pixels=high
    )
    grid = processor(factor // 2).process_image(noise_image(1, *size)).grid_thw
    assert (grid[1] * factor // 2, grid[2] * factor // 2) == (height, width)


def test_size_by_hand() -> None:
    """100 x 37 px with factor 28: 100/28 = 3.57 -> 4, 37/28 = 1.32 -> 1, so 112 x 28 px, 8 x 2 patches (h 2, w
    8), 4 visual tokens; 112 * 28 = 3136 px is above 784."""
    image = processor().process_image(noise_image(1, 100, 37))
    assert (image.grid_thw, image.n_tokens) == ((1, 2, 8), 4)


def test_upper_bound_by_hand() -> None:
    """600 x 600 px with at most 100 * 784 px: scaled by 600 / 280, floor(280 / 28) = 10 -> 10 x 10 tokens."""
    image = processor(bounds={"shortest_edge": 784, "longest_edge": 78_400}).process_image(
        noise_image(1, 600, 600)
    )
    assert (image.grid_thw, image.n_tokens) == ((1, 20, 20), 100)


def test_extreme_aspect_ratio() -> None:
    """Qwen refuses pictures more than 200 times as long as wide; the message names the row."""
    with pytest.raises(DataError, match=r"^row q7, image 0: .*200.*crop or drop the image$"):
        processor().process_image(noise_image(1, 2010, 10), "row q7, image 0")


# ---------------------------------------------------------------- what is read, and when


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation(orientation: int, format: str) -> None:
    """A picture of 112 x 28 px lying on its side: the grid comes from the header, the patches from the decoded
    picture, and both are turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise_image(1, 112, 28), format, exif=exif)
    found = processor().process_image(data)
    assert found.grid_thw == ((1, 8, 2) if orientation in (6, 8) else (1, 2, 8))
    assert torch.equal(found.patches_ND, processor().process_image(data.decode()).patches_ND)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_patches_wait_until_asked_for(format: str) -> None:
    """A cut body passes while only the header is needed; cutting patches then names the row."""
    whole = encoded(noise_image(1), format)
    cut = EncodedImage(whole.data[: len(whole.data) // 2])
    found = processor().process_image(cut, "row q3, image 1")
    assert found.n_tokens == 4
    with pytest.raises(DataError, match=r"^row q3, image 1: damaged or truncated"):
        _ = found.patches_ND


def test_no_image_at_all() -> None:
    with pytest.raises(DataError, match=r"^row q3, image 1: .*are no image"):
        processor().process_image(EncodedImage(b"not an image"), "row q3, image 1")


def test_key_tells_images_and_settings_apart() -> None:
    """Features are cached under the key: equal exactly for one image under one set of settings."""
    image, other = noise_image(1), noise_image(2)
    key = processor().process_image(image).key
    assert processor().process_image(image.copy()).key == key
    assert processor().process_image(other).key != key
    assert processor(16).process_image(image).key != key
    smaller = {"shortest_edge": 784, "longest_edge": 1568}
    assert processor(bounds=smaller).process_image(image).key != key


def test_key_tells_shapes_apart() -> None:
    """Two flat pictures with the same bytes in another shape."""
    wide, tall = Image.new("RGB", (56, 28)), Image.new("RGB", (28, 56))
    assert processor().process_image(wide).key != processor().process_image(tall).key


# ---------------------------------------------------------------- prompts


def test_prompt_by_hand() -> None:
    """One placeholder becomes as many as the image has visual tokens, everything else stays as the template
    wrote it."""
    ours = processor()
    prompt = ask(ours, "Why?", [noise_image(1, 56, 28)])
    assert ours.tokenizer.decode(prompt.ids_T) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Why?\nAnswer directly."
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_two_images_keep_their_order() -> None:
    """Image A of 2 visual tokens, image B of 6: their runs stand in this order, and so do the images."""
    ours = processor()
    images = [ours.process_image(noise_image(1, 56, 28)), ours.process_image(noise_image(2, 84, 56))]
    prompt = ours.encode(selection_messages("Why?", "so"), images)
    text = ours.tokenizer.decode(prompt.ids_T)
    assert f"Image A:<|vision_start|>{'<|image_pad|>' * 2}<|vision_end|>" in text
    assert f"Image B:<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>" in text
    assert prompt.images == tuple(images)
    assert int((prompt.ids_T == ours.image_token_id).sum()) == 8


def test_prefill_ends_the_prompt() -> None:
    ours = processor()
    prompt = ours.encode(vqa_messages("Why?", 0), [], "The correct option is")
    assert ours.tokenizer.decode(prompt.ids_T).endswith("<|im_start|>assistant\nThe correct option is")


@pytest.mark.parametrize("n_images", [0, 2])
def test_another_number_of_images_than_placeholders(n_images: int) -> None:
    ours = processor()
    images = [ours.process_image(noise_image(i)) for i in range(n_images)]
    with pytest.raises(DataError, match=rf"1 image placeholders, {n_images} images were given"):
        ours.encode(vqa_messages("Why?", 1), images)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>"])
def test_placeholder_spelled_in_a_query(token: str) -> None:
    with pytest.raises(DataError, match="control token"):
        ask(processor(), f"What is {token}?", [noise_image(1)])


def test_placeholder_spelled_past_the_prompt_module() -> None:
    """Messages that were not made by prompts.py are counted as well."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is <|image_pad|>?"}]}]
    with pytest.raises(DataError, match="must not spell '<|image_pad|>'".replace("|", r"\|")):
        processor().encode(messages, [])


def test_decode_leaves_special_tokens_out() -> None:
    ours = processor()
    ids = ours.tokenizer("é 7<|im_end|><|endoftext|>")["input_ids"]
    assert ours.decode(ids) == "é 7"
    assert set(ours.end_ids) == {ours.tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS[:3:2]}


def test_chat_template_arguments() -> None:
    """`model.chat_template` reaches the template."""
    ours = processor()
    ours.tokenizer.chat_template = "{% if loud %}LOUD{% endif %}"
    ours.chat_template_kwargs = {"loud": True}
    assert ours.tokenizer.decode(ours.encode(vqa_messages("Why?", 0), []).ids_T) == "LOUD"


# ---------------------------------------------------------------- loading


def test_load_with_pixel_bounds(qwen_folders: dict[str, Path]) -> None:
    """The folder's bounds hold unless others are given: 12 tokens of 28 px at most, or 1."""
    folder, image = str(qwen_folders["qwen2_5_vl"]), noise_image(1, 640, 480)
    image_token_id = byte_tokenizer().convert_tokens_to_ids("<|image_pad|>")
    assert load_processor(folder, image_token_id).process_image(image).n_tokens == 12
    bounded = load_processor(folder, image_token_id, min_pixels=1, max_pixels=1_000)
    assert bounded.process_image(image).n_tokens == 1


def test_saved_processor_reads_the_same(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = str(qwen_folders["qwen3_vl"])
    first = load_processor(folder, 5, max_pixels=5 * 32 * 32)
    first.save(str(tmp_path))
    second = load_processor(str(tmp_path), 5)
    image = noise_image(1, 200, 100)
    assert second.process_image(image).key == first.process_image(image).key
    assert second.tokenizer.chat_template == first.tokenizer.chat_template


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def broken_image_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_tokenizer, "tokenizer or image processor cannot be read"),
        (broken_image_processor, "tokenizer or image processor cannot be read"),
        (no_template, "no chat template; use an instruction-tuned model"),
    ],
)
def test_spoiled_folder(
    spoil: Callable[[Path], None], message: str, qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    load_processor(str(qwen_folders["qwen2_5_vl"]), 5).save(str(tmp_path))
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_processor(str(tmp_path), 5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "opened"), [("<think>\\n", "<think>"), ("<think>\\n\\n</think>\\n\\n", ""), ("", "")]
)
def test_a_thought_that_the_template_opens_belongs_to_the_completion(
    start: str, opened: str, qwen_folders: dict[str, Path]
) -> None:
    """Cut before </think> it must not read as an answer; an empty closed thought changes nothing."""
    made = load_processor(str(qwen_folders["qwen3_vl"]), 6)
    made.tokenizer.chat_template += (
        "{% if add_generation_prompt %}" + start.replace("\\n", "\n") + "{% endif %}"
    )
    text = made.decode(made.tokenizer("so \\boxed{7}", add_special_tokens=False)["input_ids"])
    assert text == opened + "so \\boxed{7}"
    assert score_answer(text, "7", "numeric") == (not opened)


def test_key_tells_resized_images_apart() -> None:
    made = processor()
    image = noise_image(0, 280, 280)
    keys = {made.process_image(image, resize=resize).key for resize in (True, False)}
    grids = {made.process_image(image, resize=resize).grid_thw for resize in (True, False)}
    assert len(keys) == len(grids)
