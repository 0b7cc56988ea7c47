"""Checkpoints that resume exactly: trainable weights, optimizer, positions of the data streams.

A checkpoint is built in a hidden folder beside its place, its manifest is written last, and one rename makes it appear. A folder without
a manifest, or with a file of another size, is not a checkpoint. Weights are safetensors; the optimizer state is read by torch with
`weights_only`, so nothing in a checkpoint is executed.

Tensors are stored whole: a checkpoint does not tell how many processes wrote it, and any number can go on from it. Every rank calls these
functions; the first one writes. Reading maps the files, so a rank holds no more than its shards.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm_contextrl.errors import CheckpointError, first_line
from vlm_contextrl.policy import Policy
from vlm_contextrl.sharding import fitting, is_sharded, whole

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    *,
    writes: bool = True,
) -> Path:
    """Write `folder/step_N` for state["step"] = N and remove all but the newest `keep`."""
    place = folder / f"step_{state['step']:06d}"
    weights = _whole({name: p for name, p in model.named_parameters() if p.requires_grad}, writes)
    optimizer_state = _whole(optimizer.state_dict(), writes)
    if not writes:
        return place
    building = folder / f".{place.name}.unfinished"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_file(weights, building / "trainable.safetensors")
    torch.save(optimizer_state, building / "optimizer.pt")
    (building / "state.json").write_text(json.dumps(state, indent=1))
    sizes = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
    (building / MANIFEST).write_text(json.dumps({"step": state["step"], "files": sizes}, indent=1))
    shutil.rmtree(place, ignore_errors=True)
    building.rename(place)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return place


def _whole(node: Any, keep: bool) -> Any:
    """Every tensor in nested dicts and lists as a whole one in host memory; None for ranks that do not keep it."""
    if isinstance(node, Tensor):
        full = whole(node)
        return full.cpu().contiguous() if keep else None
    if isinstance(node, dict):
        return {key: _whole(value, keep) for key, value in node.items()}
    return [_whole(value, keep) for value in node] if isinstance(node, list) else node


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None when there is none at all; one line on stderr for everything newer that is passed over.

    What an interrupted save left is removed. Raises CheckpointError when only broken checkpoints are left.
    """
    for unfinished in sorted(folder.glob(".step_*.unfinished")):
        print(f"{unfinished}: left by an interrupted save, removed", file=sys.stderr)
        shutil.rmtree(unfinished)
    found = sorted(folder.glob("step_*"), reverse=True)
    for place in found:
        if _is_complete(place):
            for broken in found[: found.index(place)]:
                print(f"{broken}: {_BROKEN}; going on from {place.name}", file=sys.stderr)
            return place
    if found:
        raise CheckpointError(f"{found[0]}: {_BROKEN}; remove it or start anew")
    return None


_BROKEN = "unreadable checkpoint (manifest missing or a file is cut)"


def _is_complete(place: Path) -> bool:
    try:
        files = json.loads((place / MANIFEST).read_text())["files"]
        return all((place / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_checkpoint(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer in place; returns the state that was saved."""
    try:
        weights: Any = safe_open(place / "trainable.safetensors", "pt")
        stored = set(weights.keys())
        optimizer_state = torch.load(place / "optimizer.pt", weights_only=True, map_location="cpu", mmap=True)
        state: dict[str, Any] = json.loads((place / "state.json").read_text())
    except Exception as error:  # what a damaged pickle raises depends on its bytes
        reason = "optimizer.pt is damaged" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(f"{place}: unreadable checkpoint: {reason}; remove it or start anew") from error
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trainable.keys() != stored:
        odd = sorted(trainable.keys() ^ stored)
        raise CheckpointError(
            f"{place}: {len(odd)} weights differ from the configured model, first {odd[0]}; was the config changed?"
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            weight = weights.get_tensor(name)
            if parameter.shape != weight.shape:
                raise CheckpointError(
                    f"{place}: {name} is {list(weight.shape)}, the model has {list(parameter.shape)}"
                )
            parameter.copy_(fitting(weight, parameter))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in optimizer_state["state"].items():
        like = parameters[number]
        optimizer_state["state"][number] = {
            name: fitting(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value
            for name, value in values.items()
        }
    optimizer.load_state_dict(optimizer_state)
    return state


def export(policy: Policy, folder: Path, *, writes: bool = True) -> None:
    """Write the trained model (an ordinary Hugging Face folder) or its adapter (a PEFT folder), with tokenizer and image processor."""
    options: dict[str, Any] = {}
    if hasattr(policy.model, "peft_config"):
        options["selected_adapters"] = ["default"]
    if is_sharded(policy):
        options["state_dict"] = _whole(policy.model.state_dict(), writes)
    if not writes:
        return
    building = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    policy.model.save_pretrained(building, **options)
    policy.processor.save(str(building))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
