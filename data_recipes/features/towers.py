"""Encoders with weights: vision towers of transformers, open_clip, and Qwen3-VL-Embedding.

transformers        What a model offers decides, not its name: `get_image_features` (CLIP, SigLIP, SigLIP2 as a whole), image embeddings
                    (CLIP's tower with projection), the pooled output when the checkpoint has weights for it (DINOv2, DINOv3, SigLIP's
                    tower), else the class token. Pictures are prepared by the folder's own processor, without torchvision, so that
                    vectors do not depend on whether it is installed.
qwen3_vl_embedding  The last hidden state of Qwen3VLModel at the last token of system instruction, image and generation prompt
                    (github.com/QwenLM/Qwen3-VL-Embedding). One image per pass, so nothing is padded.

Left out: weights that are no safetensors, and code that comes with a model unless `trust_remote_code` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from vlm_contextrl.data_recipes.features.encoders import Vectors
from vlm_contextrl.data_recipes.features.settings import EncoderSettings, check_folder, chosen_device
from vlm_contextrl.errors import CheckpointError, MissingExtraError, first_line

# Qwen3-VL-Embedding's own bounds.
QWEN_MIN_PIXELS, QWEN_MAX_PIXELS = 4 * 32 * 32, 1800 * 32 * 32
_EXPECTED = "expected a vision tower such as CLIP's or DINOv2's"
_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


def load_model(
    path: str, *, revision: str | None, dtype: str, device: str, trust_remote_code: bool
) -> tuple[Any, set[str]]:
    """A model without its head, for evaluation, and the names of the weights that the checkpoint lacks. Raises CheckpointError."""
    import transformers

    check_folder(path)
    if len(list(Path(path).glob("*.safetensors"))) == 1:  # a bar over the weights of one file is noise
        transformers.utils.logging.disable_progress_bar()
    arguments = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **arguments)
        named = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, named) if named.endswith("WithProjection") else transformers.AutoModel
        model, loading = kind.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    except _LOADING_ERRORS as error:
        raise CheckpointError(f"{path}: model cannot be loaded: {_advice(error)}") from error
    return model.to(chosen_device(device)).eval().requires_grad_(False), set(loading["missing_keys"])


def _advice(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it brings its own code, which is refused; set encoder.trust_remote_code=true if you trust it"
    return first_line(error)


def _complete(path: str, missing: set[str]) -> None:
    if missing:  # transformers would draw them at random
        raise CheckpointError(
            f"{path}: weights are incomplete: {len(missing)} tensors are missing, first {min(missing)}"
        )


class TransformersEncoder:
    """A vision tower with its image processor."""

    def __init__(self, settings: EncoderSettings) -> None:
        from transformers import AutoImageProcessor

        assert settings.path is not None
        self._path = settings.path
        self._model, missing = load_model(
            settings.path,
            revision=settings.revision,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        if not hasattr(self._model, "get_image_features") and self._model.main_input_name != "pixel_values":
            kind, taken = type(self._model).__name__, self._model.main_input_name
            raise CheckpointError(f"{settings.path}: a {kind} takes {taken}; {_EXPECTED}")
        self._pooled = not missing  # a pooler that is drawn at random says nothing
        _complete(settings.path, {name for name in missing if not name.startswith("pooler.")})
        try:
            self._processor = AutoImageProcessor.from_pretrained(
                settings.path,
                revision=settings.revision,
                trust_remote_code=settings.trust_remote_code,
                backend="pil",
            )
        except _LOADING_ERRORS as error:
            raise CheckpointError(
                f"{settings.path}: image processor cannot be loaded: {_advice(error)}"
            ) from error

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, D]."""
        prepared = self._processor(images=list(pictures), return_tensors="pt").to(self._model.device)
        inputs = {
            name: value.to(self._model.dtype) if value.is_floating_point() else value
            for name, value in prepared.items()
        }
        vectors_BD = self._vectors(inputs)
        if not isinstance(vectors_BD, Tensor) or vectors_BD.shape[:-1] != (len(pictures),):
            raise CheckpointError(
                f"{self._path}: a {type(self._model).__name__} gives no vector per image; {_EXPECTED}"
            )
        return vectors_BD.float().cpu().numpy()

    def _vectors(self, inputs: dict[str, Tensor]) -> object:
        if hasattr(self._model, "get_image_features"):
            found = self._model.get_image_features(**inputs)
            return found if isinstance(found, Tensor) else found.pooler_output
        found = self._model(**inputs)
        if getattr(found, "image_embeds", None) is not None:
            return found.image_embeds
        if self._pooled and getattr(found, "pooler_output", None) is not None:
            return found.pooler_output.flatten(1)
        return found.last_hidden_state[:, 0]


class OpenClipEncoder:
    """A model of open_clip, which needs torchvision."""

    def __init__(self, settings: EncoderSettings) -> None:
        try:
            open_clip: Any = import_module("open_clip")
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
            raise MissingExtraError(
                f"encoder open_clip: {first_line(error)}; pip install 'vlm-contextrl[search]' and the torchvision of your torch"
            ) from error
        assert settings.path is not None
        name, tag = open_clip_name(settings.path)
        self._device, self._dtype = chosen_device(settings.device), getattr(torch, settings.dtype)
        try:
            model, _, self._prepare = open_clip.create_model_and_transforms(
                name, pretrained=tag, device=self._device
            )
        except _LOADING_ERRORS as error:
            raise CheckpointError(
                f"{settings.path}: open_clip cannot load it: {first_line(error)}"
            ) from error
        self._model = model.to(self._dtype).eval()

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, D]."""
        batch = torch.stack([self._prepare(picture) for picture in pictures]).to(self._device, self._dtype)
        vectors: Vectors = self._model.encode_image(batch).float().cpu().numpy()
        return vectors


def open_clip_name(path: str) -> tuple[str, str | None]:
    """(model, tag) as open_clip wants them of a folder, hf-hub:ID or NAME/TAG; CheckpointError for anything else."""
    if Path(path).is_dir():
        for name in ("open_clip_config.json", "open_clip_model.safetensors"):
            if not (Path(path) / name).is_file():
                raise CheckpointError(
                    f"{path}: no {name}; expected a folder that open_clip wrote, with safetensors"
                )
        return f"local-dir:{path}", None
    if path.startswith("hf-hub:"):
        return path, None
    name, slash, tag = path.partition("/")
    if not (name and slash and tag):
        raise CheckpointError(
            f"{path}: expected a folder, hf-hub:ID, or NAME/TAG such as ViT-B-32/laion2b_s34b_b79k"
        )
    return name, tag


class Qwen3VLEmbeddingEncoder:
    """Last-token pooling over Qwen3VLModel."""

    def __init__(self, settings: EncoderSettings) -> None:
        from vlm_contextrl.processing import load_processor

        assert settings.path is not None
        self._model, missing = load_model(
            settings.path,
            revision=settings.revision,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        if self._model.config.model_type != "qwen3_vl":
            raise CheckpointError(
                f"{settings.path}: model type {self._model.config.model_type!r}, expected 'qwen3_vl'"
            )
        _complete(settings.path, missing)
        self._processor = load_processor(
            settings.path,
            self._model.config.image_token_id,
            min_pixels=QWEN_MIN_PIXELS,
            max_pixels=QWEN_MAX_PIXELS,
            trust_remote_code=settings.trust_remote_code,
        )
        self._messages = [
            {"role": "system", "content": [{"type": "text", "text": settings.instruction}]},
            {"role": "user", "content": [{"type": "image"}]},
        ]

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, D]."""
        return np.stack([self._encode(picture) for picture in pictures])

    def _encode(self, picture: Image.Image) -> Vectors:
        image = self._processor.process_image(picture)
        ids_1T = self._processor.encode(self._messages, [image]).ids_T[None].to(self._model.device)
        out = self._model(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            mm_token_type_ids=(ids_1T == self._model.config.image_token_id).int(),
            pixel_values=image.patches_ND.to(self._model.device, self._model.dtype),
            image_grid_thw=torch.tensor([image.grid_thw], device=self._model.device),
            use_cache=False,
        )
        vector: Vectors = out.last_hidden_state[0, -1].float().cpu().numpy()
        return vector
