"""What a model is, by content: a hash over everything that loading reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlm_contextrl.errors import CheckpointError, first_line
from vlm_contextrl.models import may_be_hub_id, resolve

READ_WHEN_LOADING = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def weights_hash(model: str) -> str:
    """sha256 over names and contents of a model's or adapter's files. A hub id is fetched first, as loading would do.

    Raises CheckpointError for a folder without weights and for a hub id that cannot be had.
    """
    folder = _folder(resolve(model))
    files = sorted({path for pattern in READ_WHEN_LOADING for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{model}: no *.safetensors in {folder}; expected a model or adapter folder")
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}:{_content(path)}\n".encode())
    return whole.hexdigest()


def _folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if not may_be_hub_id(path):
        raise CheckpointError(f"{path}: no such model folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(READ_WHEN_LOADING)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{path}: cannot be fetched from the hub: {first_line(error)}") from error


def _content(path: Path) -> str:
    if path.is_symlink() and len(name := path.resolve().name) == 64:
        return name  # the hub's cache names a large file by its sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
