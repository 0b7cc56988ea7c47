"""Fingerprints of model folders, for the record of what made a row."""

from __future__ import annotations

import hashlib
from pathlib import Path


def folder_fingerprint(*folders: Path) -> str:
    """Of names and sizes of all files and of the settings in them; weights are not read, they may be tens of GB."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}:{file.stat().st_size}\n".encode())
            if file.suffix == ".json":
                digest.update(file.read_bytes())
    return f"folder-{digest.hexdigest()[:16]}"
