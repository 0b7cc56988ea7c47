"""Which encoder makes the features, and what of it settles them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vlm_contextrl.config import Record
from vlm_contextrl.devices import check_device
from vlm_contextrl.errors import CheckpointError, first_line

FEATURES_VERSION = 1  # to be raised when the same settings begin to give other vectors
DRAWN = ("histogram", "pixels")  # computed from the pixels alone


class EncoderSettings(Record):
    """What turns an image into a vector."""

    encoder: Literal["histogram", "pixels", "transformers", "open_clip", "qwen3_vl_embedding"] = Field(
        "histogram",
        description="histogram: colours of the picture and of 4 x 4 cells; pixels: a 16 px thumbnail; transformers: the vision tower of "
        "CLIP, SigLIP, SigLIP2, DINOv2, DINOv3, ...; open_clip (extra `search`); qwen3_vl_embedding: Qwen3-VL-Embedding",
    )
    path: str | None = Field(
        None,
        description="model folder (safetensors) or hub id; open_clip: a folder, hf-hub:ID, or NAME/TAG as open_clip lists them",
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id; default: the newest")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the model")
    device: str = Field("auto", description="auto: a GPU when there is one, else cpu")
    batch_size: int = Field(16, ge=1, description="images per forward pass")
    instruction: str = Field(
        "Represent the user's input.", min_length=1, description="qwen3_vl_embedding: the system prompt"
    )
    trust_remote_code: bool = Field(False, description="allow code that comes with the model")

    @model_validator(mode="after")
    def _consistent(self) -> EncoderSettings:
        if self.encoder in DRAWN and self.path is not None:
            raise ValueError(
                f"path has no effect on the encoder {self.encoder}; set encoder to transformers, or remove path (path=null)"
            )
        if self.encoder not in DRAWN and not self.path:
            raise ValueError(
                f"the encoder {self.encoder} needs a path: a model folder or a hub id (encoder: histogram needs no model)"
            )
        return self

    @property
    def name(self) -> str:
        """The encoder, for provenance."""
        return f"{self.encoder}: {self.path}" if self.path else self.encoder


def identity(settings: EncoderSettings) -> dict[str, Any]:
    """What settles the vectors, as JSON values: the weights by content (a folder) or by commit (a hub id). Device and batch size are left
    out: they change roundings only. Raises CheckpointError for what is plainly no model."""
    told: dict[str, Any] = {"encoder": settings.encoder, "version": FEATURES_VERSION}
    if settings.encoder in DRAWN:
        return told
    told |= {"weights": _weights(settings), "dtype": settings.dtype}
    if settings.encoder == "qwen3_vl_embedding":
        told["instruction"] = settings.instruction
    return told


def chosen_device(device: str) -> str:
    """`auto` resolved. ConfigError for a device that is not here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "device")
    return device


def _weights(settings: EncoderSettings) -> str:
    assert settings.path is not None
    if settings.encoder != "open_clip":
        check_folder(settings.path)
    if Path(settings.path).is_dir():
        return folder_hash(Path(settings.path))
    if settings.encoder == "open_clip":
        return f"{settings.path}@{settings.revision or 'main'}"
    return hub_commit(settings.path, settings.revision, trust_remote_code=settings.trust_remote_code)


def check_folder(path: str) -> None:
    """Refuses what is plainly no model folder; a hub id passes."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith((".", "~")) or len(folder.parts) > 2:
            raise CheckpointError(f"{path}: no such model folder")
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; expected a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{path}: no *.safetensors; expected weights in that format")


def folder_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a model folder's weights and JSON files."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        with file.open("rb") as data:
            digest.update(f"{file.name}:{hashlib.file_digest(data, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()


def hub_commit(path: str, revision: str | None, *, trust_remote_code: bool) -> str:
    """ID@COMMIT of a hub id; CheckpointError when there is no such model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: no readable model configuration ({first_line(error)}); name a model folder or a hub id"
        ) from error
    return f"{path}@{getattr(config, '_commit_hash', None) or revision or 'main'}"
