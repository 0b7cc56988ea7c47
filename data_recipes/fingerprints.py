"""Fingerprints of model folders, for the record of what made a row."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLE_BYTES = 65536


def folder_fingerprint(*folders: Path) -> str:
    """Of names and sizes of files, the settings in them, and bytes at begin, middle and end of the others: weights may be tens of GB."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}:{size}\n".encode())
            if path.suffix == ".json":
                digest.update(path.read_bytes())
                continue
            with path.open("rb") as file:
                for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
    return f"folder-{digest.hexdigest()[:16]}"
