"""The app as a Hugging Face Space: this file at the root of the Space, `vlm-contextrl[app]` in its requirements.txt, settings as variables.

    VLM_CONTEXTRL_PAIRS       dataset folder in the Space's storage (needed)
    VLM_CONTEXTRL_PASSWORD    secret (needed: a Space can be reached by everybody)
    VLM_CONTEXTRL_MODEL, VLM_CONTEXTRL_ADAPTERS (separated by ":"), VLM_CONTEXTRL_RUN, VLM_CONTEXTRL_DECISIONS

Elsewhere `vlm-contextrl app` does the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vlm_contextrl.app.server import serve
from vlm_contextrl.app.settings import AppSettings, find_password
from vlm_contextrl.errors import ContextRLError, InputError

HOST, PORT = "0.0.0.0", 7860  # where a Space is asked


def settings_from(variables: Mapping[str, str]) -> AppSettings:
    """The settings that the variables describe; InputError when one is missing."""
    found = {
        name: variables.get(f"VLM_CONTEXTRL_{name}", "")
        for name in ("PAIRS", "MODEL", "ADAPTERS", "RUN", "DECISIONS")
    }
    if not found["PAIRS"]:
        raise InputError("VLM_CONTEXTRL_PAIRS is not set, expected the dataset folder to show")
    return AppSettings(
        pairs=Path(found["PAIRS"]),
        model=found["MODEL"],
        adapters=tuple(Path(name) for name in found["ADAPTERS"].split(os.pathsep) if name),
        run=Path(found["RUN"]) if found["RUN"] else None,
        decisions=Path(found["DECISIONS"]) if found["DECISIONS"] else None,
        host=HOST,
        port=PORT,
        password=find_password(None),
    )


if __name__ == "__main__":
    try:
        serve(settings_from(os.environ))
    except ContextRLError as error:
        sys.exit(f"error: {error}")
