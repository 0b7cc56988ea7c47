"""Encoders with weights, tiny and random: what they give is the model's own output; what cannot be loaded is one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_contextrl.data_recipes.features import EncoderSettings, image_features
from vlm_contextrl.data_recipes.features.encoders import load_encoder
from vlm_contextrl.data_recipes.features.settings import identity
from vlm_contextrl.data_recipes.features.towers import open_clip_name
from vlm_contextrl.data_recipes.pipeline import Engine
from vlm_contextrl.errors import CheckpointError, MissingExtraError
from vlm_contextrl.pairs import EncodedImage

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = ("clip_projection", "clip", "siglip2", "dinov2")


def write_tower(name: str, folder: Path) -> Path:
    """A vision tower of transformers with random weights and its image processor."""
    import transformers as t
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    vision = {**SHAPE, "image_size": 32, "patch_size": 8}
    square: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model: Any
    processor: Any
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "clip_projection":
            config = t.CLIPVisionConfig(**vision, projection_dim=24)
            model, processor = t.CLIPVisionModelWithProjection(config), CLIPImageProcessorPil(**square)
        elif name == "clip":
            text = {
                **SHAPE,
                "vocab_size": 50,
                "max_position_embeddings": 8,
                "eos_token_id": 2,
                "bos_token_id": 1,
                "pad_token_id": 0,
            }
            both = t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
            model, processor = t.CLIPModel(both), CLIPImageProcessorPil(**square)
        elif name == "siglip2":
            model = t.Siglip2VisionModel(t.Siglip2VisionConfig(**SHAPE, patch_size=8, num_patches=16))
            processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        else:
            model = t.Dinov2Model(t.Dinov2Config(**{**vision, "patch_size": 8}))
            processor = BitImageProcessorPil(**square)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_tower(name, tmp_path_factory.mktemp(name)) for name in TOWERS}


def noise(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(256, size=(40 + i, 48, 3), dtype=np.uint8)) for i in range(count)]


def settings(path: Path, **further: Any) -> EncoderSettings:
    return EncoderSettings(encoder="transformers", path=str(path), device="cpu", **further)


def direct(name: str, folder: Path, picture: Image.Image) -> torch.Tensor:
    """What the model's own class gives for one picture."""
    import transformers as t

    kinds = {
        "clip_projection": "CLIPVisionModelWithProjection",
        "clip": "CLIPModel",
        "siglip2": "Siglip2VisionModel",
        "dinov2": "Dinov2Model",
    }
    model = getattr(t, kinds[name]).from_pretrained(folder).eval()
    inputs = t.AutoImageProcessor.from_pretrained(folder, backend="pil")(images=picture, return_tensors="pt")
    with torch.no_grad():
        if name == "clip":
            return model.visual_projection(model.vision_model(**inputs).pooler_output)[0]
        out = model(**inputs)
        return (out.image_embeds if name == "clip_projection" else out.pooler_output)[0]


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_its_models_own_vectors(name: str, towers: dict[str, Path]) -> None:
    """Projected for CLIP, pooled for SigLIP2 and DINOv2, whatever the size of the picture and of the batch."""
    pictures = noise(3)
    found = load_encoder(settings(towers[name])).encode(pictures)
    assert found.dtype == np.float32
    for vector, picture in zip(found, pictures, strict=True):
        np.testing.assert_allclose(vector, direct(name, towers[name], picture).numpy(), atol=1e-5)


def test_features_are_unit_vectors_and_follow_the_weights(towers: dict[str, Path], tmp_path: Path) -> None:
    """Copies with equal weights share the cache; one changed weight makes another encoder of it."""
    images = [EncodedImage.from_image(picture) for picture in noise(3)]
    first = image_features(images, settings(towers["dinov2"]), tmp_path / "cache", Engine(), "test")
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    copy = tmp_path / "copy"
    shutil.copytree(towers["dinov2"], copy)
    assert identity(settings(copy)) == identity(settings(towers["dinov2"]))
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["embeddings.cls_token"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    second = image_features(images, settings(copy), tmp_path / "cache", Engine(), "test")
    assert not np.allclose(first, second)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_pooler_without_weights_is_not_used(tmp_path: Path) -> None:
    """A ViT saved without pooler: AutoModel draws one at random, so the class token is taken."""
    from transformers import AutoImageProcessor, ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = ViTModel(ViTConfig(**SHAPE, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    (picture,) = noise(1)
    found = load_encoder(settings(tmp_path)).encode([picture])
    inputs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=picture, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state[0, 0]
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_half_precision_stays_near(towers: dict[str, Path]) -> None:
    full, half = (
        load_encoder(settings(towers["dinov2"], dtype=dtype)).encode(noise(2))
        for dtype in ("float32", "bfloat16")
    )
    cosines = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert (cosines > 0.99).all()


def test_qwen3_vl_embedding_is_the_last_token_of_the_prompt(qwen_folders: dict[str, Path]) -> None:
    """Against a forward that is written out: system instruction, image, generation prompt; hidden state of the last token."""
    from transformers import Qwen3VLModel

    from vlm_contextrl.processing import load_processor

    folder = qwen_folders["qwen3_vl"]
    chosen = EncoderSettings(
        encoder="qwen3_vl_embedding", path=str(folder), device="cpu", instruction="Look."
    )
    pictures = noise(2)
    found = load_encoder(chosen).encode(pictures)
    model: Any = Qwen3VLModel.from_pretrained(folder).eval()
    processor = load_processor(
        str(folder), model.config.image_token_id, min_pixels=4 * 32 * 32, max_pixels=1800 * 32 * 32
    )
    for vector, picture in zip(found, pictures, strict=True):
        image = processor.process_image(picture)
        text = (
            "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * image.n_tokens
            + "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
        )
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        grid = torch.tensor([image.grid_thw])
        with torch.no_grad():
            hidden = model(
                input_ids=ids,
                pixel_values=image.patches_ND,
                image_grid_thw=grid,
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
            ).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0, -1].numpy(), atol=1e-4)
    other = load_encoder(chosen.model_copy(update={"instruction": "Compare."})).encode(pictures)
    assert not np.allclose(found, other)


def test_qwen3_vl_embedding_refuses_another_model(towers: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="model type 'dinov2', expected 'qwen3_vl'"):
        load_encoder(EncoderSettings(encoder="qwen3_vl_embedding", path=str(towers["dinov2"])))


class StandIn(ModuleType):
    """What the encoder asks of open_clip."""

    asked: tuple[Any, ...] = ()

    def create_model_and_transforms(
        self, name: str, pretrained: str | None, device: str
    ) -> tuple[Any, None, Any]:
        StandIn.asked = (name, pretrained)
        model = torch.nn.Module()
        model.encode_image = lambda batch: batch.mean((2, 3))  # type: ignore[method-assign, assignment]
        return model, None, lambda picture: torch.full((3, 2, 2), float(picture.width))


def test_open_clip_is_asked_for_model_and_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", StandIn("open_clip"))
    encoder = load_encoder(
        EncoderSettings(encoder="open_clip", path="ViT-B-32/laion2b_s34b_b79k", device="cpu")
    )
    assert encoder.encode([Image.new("RGB", (7, 3))]).tolist() == [[7, 7, 7]]
    assert StandIn.asked == ("ViT-B-32", "laion2b_s34b_b79k")


def test_open_clip_names(tmp_path: Path) -> None:
    assert open_clip_name("hf-hub:org/model") == ("hf-hub:org/model", None)
    with pytest.raises(CheckpointError, match="expected a folder, hf-hub:ID, or NAME/TAG"):
        open_clip_name("ViT-B-32")
    with pytest.raises(CheckpointError, match="no open_clip_config.json"):
        open_clip_name(str(tmp_path))
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).touch()
    assert open_clip_name(str(tmp_path)) == (f"local-dir:{tmp_path}", None)


def test_open_clip_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[search\]"):
        load_encoder(EncoderSettings(encoder="open_clip", path="hf-hub:org/model"))


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def drop_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layer.1" not in k},
        folder / "model.safetensors",
        {"format": "pt"},
    )


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json; expected a Hugging Face model folder"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"no \*.safetensors; expected weights in that format",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"0" * 64), "model cannot be loaded: "),
        (drop_weights, r"weights are incomplete: \d+ tensors are missing, first encoder.layer.1"),
        (
            lambda f: edit_config(f, model_type="nobody", auto_map={"AutoConfig": "c.C"}),
            "brings its own code, which is refused",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "image processor cannot be loaded: "),
        (shutil.rmtree, "no such model folder"),
    ],
    ids=["no config", "pickle", "no weights", "weights missing", "remote code", "no processor", "no folder"],
)
def test_what_cannot_be_loaded_is_one_line(
    harm: Any, told: str, towers: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(towers["dinov2"], folder)
    harm(folder)
    with pytest.raises(CheckpointError, match=told) as caught:
        load_encoder(settings(folder))
    assert "\n" not in str(caught.value)


def test_no_model_is_told_before_any_work(tmp_path: Path) -> None:
    for path, told in (("nothing/is/here", "no such model folder"), (str(tmp_path), "no config.json")):
        with pytest.raises(CheckpointError, match=told):
            identity(settings(Path(path)))
    with pytest.raises(CheckpointError, match="nobody/nothing: no readable model configuration"):
        identity(EncoderSettings(encoder="transformers", path="nobody/nothing"))


def test_models_that_give_no_vector_per_image_are_refused(
    qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A text model is known by its input, a vision-language model by the lists that it gives."""
    from transformers import BertConfig, BertModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    BertModel(BertConfig(**SHAPE, vocab_size=50)).save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError,
        match="a BertModel takes input_ids; expected a vision tower such as CLIP's or DINOv2's",
    ):
        load_encoder(settings(tmp_path))
    with pytest.raises(
        CheckpointError, match="a Qwen3VLModel gives no vector per image; expected a vision tower"
    ):
        load_encoder(settings(qwen_folders["qwen3_vl"])).encode(noise(1))
