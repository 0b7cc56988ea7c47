"""`pairs edit` with real diffusers pipelines of random weights: InstructPix2Pix, FLUX.1 Kontext, FLUX.2 Klein, Qwen-Image-Edit-Plus."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny_editors
from tests.tiny_editors import INDEX, WRITER, blank_question
from vlm_contextrl.data_recipes.edit import EditConfig, Editor, EditorSettings, open_editor, run
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import CheckpointError, MissingExtraError
from vlm_contextrl.pairs import EncodedImage, QuestionRow
from vlm_contextrl.storage import read_manifest, read_pairs, write_rows

pytestmark = [
    pytest.mark.slow,  # the first import of diffusers alone takes about 10 s
    # diffusers 0.42 makes arrays of tensors in a way that numpy 2.4 warns of (seen 2026-11; drop with the next diffusers)
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
FAMILIES = {
    "pix2pix": tiny_editors.write_pix2pix,
    "kontext": tiny_editors.write_kontext,
    "klein": tiny_editors.write_klein,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "pix2pix": {"image_guidance_scale": 1.5},
    "kontext": {"height": 64, "width": 64, "max_area": 4096, "_auto_resize": False},
    "klein": {"text_encoder_out_layers": [0, 1, 2], "max_sequence_length": 64},
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: write(folder / name) for name, write in FAMILIES.items()}


def question(n: int) -> QuestionRow:
    """Larger than the 64 px that FLUX.2 wants."""
    picture = Image.new("RGB", (72, 64), (200 + n, 220, 240))
    return blank_question(n, images=(EncodedImage.from_image(picture),))


def tiny(pipelines: dict[str, Path], family: str) -> Editor:
    arguments = ARGUMENTS[family]
    return open_editor(EditorSettings(path=str(pipelines[family]), steps=2, arguments=arguments))


def edit_config(pipelines: dict[str, Path], family: str, **settings: Any) -> EditConfig:
    """Random weights change everything, so the bounds let everything pass."""
    values = {
        "writer": {"function": WRITER},
        "editor": {"path": str(pipelines[family]), "steps": 2, "arguments": ARGUMENTS[family]},
        "bounds": {"changed_fraction_max": 1, "channel_difference_max": 255, "ssim_min": -1},
        "batch_rows": 2,
    }
    return EditConfig.model_validate(values | settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides(pipelines: dict[str, Path], family: str) -> None:
    """One seed, one picture, also after loading again; another seed, another picture."""
    editor = tiny(pipelines, family)
    pictures = [editor.edit(PICTURE, "make it blue", seed) for seed in (1, 1, 2)]
    again = replace(editor).edit(PICTURE, "make it blue", 1)
    assert all(isinstance(picture, Image.Image) and picture.size == (64, 64) for picture in pictures)
    first, same, other = (picture.tobytes() for picture in pictures if isinstance(picture, Image.Image))
    assert first == same == again.tobytes()  # type: ignore[union-attr]
    assert first != other


@pytest.mark.parametrize("family", FAMILIES)
def test_from_questions_to_pairs(pipelines: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Two runs give one dataset; pictures of 72 x 64 px stay as large, whatever the pipeline makes of them."""
    write_rows([question(n) for n in range(4)], tmp_path / "questions", recipe="blank", config={})
    config = edit_config(pipelines, family)
    summaries = [run(config, tmp_path / "questions", tmp_path / name, Engine()) for name in "ab"]
    assert summaries[0]["content_hash"] == summaries[1]["content_hash"]
    assert (summaries[0]["kept"], summaries[0]["rejects"]) == (4, 0)
    pairs = list(read_pairs(tmp_path / "a"))
    assert {pair.context.decode().size for pair in pairs} == {(72, 64)}  # type: ignore[union-attr]
    assert {pair.provenance["editor_revision"][:7] for pair in pairs} == {"folder-"}
    assert pairs[0].provenance["editor_arguments"]["num_inference_steps"] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_original_through_the_autoencoder(pipelines: dict[str, Path], family: str) -> None:
    """Changed, the same each time, and in the size that was asked for."""
    editor = tiny(pipelines, family)
    first, second = (editor.through_autoencoder(PICTURE, (48, 32)) for _ in range(2))
    assert first.size == (48, 32)
    assert first.tobytes() == second.tobytes() != PICTURE.resize((48, 32)).tobytes()


def test_qwen_image_edit_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance, which Qwen does only when there is a negative prompt; its autoencoder is one for videos."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 56 * 56)
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 64 * 64)
    further = {
        "true_cfg_scale": 4.0,
        "negative_prompt": " ",
        "num_inference_steps": 2,
        "height": 64,
        "width": 64,
    }
    editor = Editor(EditorSettings(path="x"), "x", "1", "image", "", further, True)
    editor.__dict__["pipeline"] = tiny_editors.qwen_pipeline()
    pictures = [editor.edit(PICTURE, "make it blue", seed) for seed in (1, 1, 2)]
    first, same, other = (picture.tobytes() for picture in pictures if isinstance(picture, Image.Image))
    assert first == same != other
    without = replace(editor, further=further | {"true_cfg_scale": 1.0})
    without.__dict__["pipeline"] = editor.pipeline
    assert without.edit(PICTURE, "make it blue", 1).tobytes() != first  # type: ignore[union-attr]
    assert editor.through_autoencoder(PICTURE, (48, 32)).size == (48, 32)


def test_qwen_image_edit_plus_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is published, with a processor that is there with torchvision only."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module
    from transformers.utils.import_utils import is_torchvision_available

    folder = tiny_editors.write_qwen(tmp_path / "qwen")
    arguments = {"true_cfg_scale": 4.0, "height": 64, "width": 64}
    settings = EditorSettings(path=str(folder), steps=2, arguments=arguments)
    if not is_torchvision_available():
        with pytest.raises(MissingExtraError, match="its Qwen2VLProcessor needs torchvision"):
            open_editor(settings)
        return
    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 56 * 56)
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 64 * 64)
    edited = open_editor(settings).edit(PICTURE, "make it blue", 1)
    assert isinstance(edited, Image.Image)
    assert edited.size == (64, 64)


def test_a_masked_edit(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """The same weights as an inpainting pipeline: where the mask is black, two edits differ less than where it is white."""
    folder = shutil.copytree(pipelines["kontext"], tmp_path / "inpaint")
    index = json.loads((pipelines["kontext"] / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "FluxKontextInpaintPipeline"})
    )
    arguments = ARGUMENTS["kontext"] | {"strength": 1.0}
    editor = open_editor(EditorSettings(path=str(folder), steps=2, arguments=arguments))
    assert editor.mask_argument == "mask_image"
    a, b = (np.asarray(editor.edit(PICTURE, "paint", seed, box=(0, 0, 1, 0.5)), int) for seed in (1, 2))
    changed, kept = abs(a - b)[:28], abs(a - b)[36:]
    assert kept.mean() < changed.mean() / 10


def test_a_killed_run_goes_on_with_a_real_pipeline(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """As with the painter: what was finished stays, what was not is made again, and the dataset is that of an unbroken run."""
    write_rows([question(n) for n in range(10)], tmp_path / "questions", recipe="blank", config={})
    config = edit_config(pipelines, "pix2pix")
    unbroken = run(config, tmp_path / "questions", tmp_path / "unbroken", Engine())
    finished, calls = tiny_editors.edit_with_a_kill(config, tmp_path / "questions", tmp_path / "killed")
    assert calls == 10 - 2 * finished
    assert read_manifest(tmp_path / "killed").content_hash == unbroken["content_hash"]


def test_both_sides_through_the_autoencoder(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """The original of a pair is then what the autoencoder makes of the question's picture."""
    write_rows([question(0)], tmp_path / "questions", recipe="blank", config={})
    config = edit_config(pipelines, "pix2pix", reencode=True)
    run(config, tmp_path / "questions", tmp_path / "out", Engine())
    (pair,) = read_pairs(tmp_path / "out")
    original = pair.context if pair.provenance["edited"] == "confounder" else pair.confounder
    picture = question(0).images[0].decode()
    expected = tiny(pipelines, "pix2pix").through_autoencoder(picture, picture.size)
    assert original.decode().tobytes() == expected.tobytes() != picture.tobytes()  # type: ignore[union-attr]
    assert pair.provenance["reencoded"] is True


def test_pickled_weights_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A text encoder with a pytorch_model.bin and no safetensors."""
    import torch

    folder = shutil.copytree(pipelines["pix2pix"], tmp_path / "pickled")
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({}, folder / "text_encoder" / "pytorch_model.bin")
    editor = open_editor(EditorSettings(path=str(folder)))
    with pytest.raises(CheckpointError, match="pickled: cannot be loaded: .*safetensors"):
        editor.edit(PICTURE, "paint", 0)


def test_a_pipeline_with_code_of_its_own_when_allowed(tmp_path: Path) -> None:
    """The painter blackens what the mask allows: a quarter of 64 x 64 px."""
    folder = tiny_editors.write_painter(tmp_path / "painter")
    editor = open_editor(EditorSettings(path=str(folder), trust_remote_code=True))
    assert (editor.mask_argument, editor.has_autoencoder) == ("mask_image", False)
    edited = editor.edit(Image.new("RGB", (64, 64), "white"), "paint", 0, box=(0, 0, 0.5, 0.5))
    assert isinstance(edited, Image.Image)
    assert sorted(edited.getcolors() or ()) == [(1024, (0, 0, 0)), (3072, (255, 255, 255))]


@pytest.mark.parametrize(
    ("class_name", "guidance", "takes_mask"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "image_guidance_scale", False),
        ("QwenImageEditPipeline", "true_cfg_scale", False),
        ("QwenImageEditPlusPipeline", "true_cfg_scale", False),
        ("QwenImageEditInpaintPipeline", "true_cfg_scale", True),
        ("FluxKontextPipeline", "guidance_scale", False),
        ("FluxKontextInpaintPipeline", "guidance_scale", True),
        ("Flux2Pipeline", "guidance_scale", False),
        ("Flux2KleinPipeline", "guidance_scale", False),
        ("Flux2KleinInpaintPipeline", "guidance_scale", True),
    ],
)
def test_the_signatures_of_diffusers(
    tmp_path: Path, class_name: str, guidance: str, takes_mask: bool
) -> None:
    """What an upgrade of diffusers must not change unseen."""
    (tmp_path / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": class_name}))
    editor = open_editor(EditorSettings(path=str(tmp_path), steps=3, arguments={guidance: 2.0}))
    assert editor.image_argument == "image"
    assert bool(editor.mask_argument) == takes_mask
    assert {"num_inference_steps": 3, guidance: 2.0}.items() <= editor.further.items()
