"""Questions that mean the same, by the cosine of text embeddings: the mean of the last hidden states over a question's tokens.

Questions are taken in the order of the input; each joins the nearest earlier one that stands for others when the cosine reaches the
threshold, else it stands for itself. So no chain of small steps joins questions that are far apart. "Left of" and "right of" are near
each other for many encoders: look at the pairs before the threshold is lowered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.data_recipes.retrieve.settings import ParaphraseSettings
from vlm_contextrl.errors import CheckpointError, first_line


def paraphrases(questions: Sequence[str], settings: ParaphraseSettings) -> dict[str, str]:
    """The question that each stands for, itself included."""
    vectors_ND = text_vectors(questions, settings)
    leaders = np.empty_like(vectors_ND)
    names: list[str] = []
    found: dict[str, str] = {}
    for question, vector in zip(questions, vectors_ND, strict=True):
        cosines = leaders[: len(names)] @ vector
        nearest = int(cosines.argmax()) if names else -1
        if names and cosines[nearest] >= settings.threshold - 1e-6:
            found[question] = names[nearest]
        else:
            leaders[len(names)] = vector
            names.append(question)
            found[question] = question
    return found


def text_vectors(texts: Sequence[str], settings: ParaphraseSettings) -> NDArray[np.float32]:
    """[N, D] unit vectors. Raises CheckpointError when the model cannot be loaded."""
    import torch
    from transformers import AutoTokenizer

    from vlm_contextrl.data_recipes.features.towers import load_model

    model, missing = load_model(
        settings.path,
        revision=settings.revision,
        dtype="float32",
        device="auto",
        trust_remote_code=settings.trust_remote_code,
    )
    if missing := {name for name in missing if not name.startswith("pooler.")}:
        raise CheckpointError(
            f"{settings.path}: weights are incomplete: {len(missing)} are missing, first {min(missing)}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{settings.path}: tokenizer cannot be loaded: {first_line(error)}") from error
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), settings.batch_size):
            batch = tokenizer(
                list(texts[start : start + settings.batch_size]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(model.device)
            hidden_BTD = model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
            found.append(torch.nn.functional.normalize(mean_BD, dim=-1).float().cpu().numpy())
    vectors: NDArray[np.float32] = np.concatenate(found)
    return vectors
