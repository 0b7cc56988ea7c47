"""Checkpoints that resume exactly: trainable weights, optimizer, positions of the data streams.

A checkpoint is built in a hidden folder beside its place, its manifest is written last, and one rename makes it appear. A folder without
a manifest, or with a file of another size, is not a checkpoint. Weights are safetensors; the optimizer state is read by torch with
`weights_only`, so nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlm_contextrl.errors import CheckpointError, first_line
from vlm_contextrl.policy import Policy

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step_N` for state["step"] = N and remove all but the newest `keep`."""
    place = folder / f"step_{state['step']:06d}"
    building = folder / f".{place.name}.unfinished"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(weights, building / "trainable.safetensors")
    torch.save(optimizer.state_dict(), building / "optimizer.pt")
    (building / "state.json").write_text(json.dumps(state, indent=1))
    sizes = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
    (building / MANIFEST).write_text(json.dumps({"step": state["step"], "files": sizes}, indent=1))
    shutil.rmtree(place, ignore_errors=True)
    building.rename(place)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return place


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None when there is none at all. Raises CheckpointError when only broken ones are left."""
    found = sorted(folder.glob("step_*"), reverse=True)
    for place in found:
        if _is_complete(place):
            return place
    if found:
        raise CheckpointError(
            f"{found[0]}: unreadable checkpoint (manifest missing or a file is cut); remove it or start anew"
        )
    return None


def _is_complete(place: Path) -> bool:
    try:
        files = json.loads((place / MANIFEST).read_text())["files"]
        return all((place / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_checkpoint(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer in place; returns the state that was saved."""
    try:
        weights = load_file(place / "trainable.safetensors")
        optimizer_state = torch.load(place / "optimizer.pt", weights_only=True, map_location="cpu")
        state: dict[str, Any] = json.loads((place / "state.json").read_text())
    except Exception as error:  # what a damaged pickle raises depends on its bytes
        reason = "optimizer.pt is damaged" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(f"{place}: unreadable checkpoint: {reason}; remove it or start anew") from error
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trainable.keys() != weights.keys():
        odd = sorted(trainable.keys() ^ weights.keys())
        raise CheckpointError(
            f"{place}: {len(odd)} weights differ from the configured model, first {odd[0]}; was the config changed?"
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            if parameter.shape != weights[name].shape:
                raise CheckpointError(
                    f"{place}: {name} is {list(weights[name].shape)}, the model has {list(parameter.shape)}"
                )
            parameter.copy_(weights[name])
    optimizer.load_state_dict(optimizer_state)
    return state


def export(policy: Policy, folder: Path) -> None:
    """Write the trained model (an ordinary Hugging Face folder) or its adapter (a PEFT folder), with tokenizer and image processor."""
    building = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    adapters = {"selected_adapters": ["default"]} if hasattr(policy.model, "peft_config") else {}
    policy.model.save_pretrained(building, **adapters)
    policy.processor.save(str(building))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
