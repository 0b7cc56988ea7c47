"""Loading: what is refused and how, and what is trainable afterwards."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import FAMILIES, ask, noise_image, plain_model, tiny_policy
from vlm_contextrl.checkpoints import export
from vlm_contextrl.config import LoraSettings, ModelSettings
from vlm_contextrl.errors import CheckpointError
from vlm_contextrl.models import load_policy, resolve

WEIGHTS = "model.safetensors"


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_model_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def unknown_model_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))


def pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def no_safetensors_at_all(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"<html>404</html>")


def layer_missing(folder: Path) -> None:
    weights = {k: v for k, v in load_file(folder / WEIGHTS).items() if "layers.1." not in k}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def no_pad_token(folder: Path) -> None:
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "pad_token": None}))


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "no config.json; expected a Hugging Face model folder"),
        (broken_config, "no readable model configuration: "),
        (other_model_type, "model type 'llama'; supported are qwen2_5_vl, qwen3_vl"),
        (unknown_model_type, "no readable model configuration: "),
        (pickled_weights, "weights must be safetensors, found pytorch_model.bin"),
        (no_weights, "weights must be safetensors, found no weights"),
        (cut_weights, "weights cannot be read: "),
        (no_safetensors_at_all, "weights cannot be read: "),
        (
            layer_missing,
            "weights are incomplete: 12 tensors are missing, first model.language_model.layers.1.",
        ),
        (other_shape, "weights cannot be read: "),
        (no_pad_token, "the tokenizer has no pad_token; name one in tokenizer_config.json"),
    ],
)
def test_unusable_folder(
    spoil: Callable[[Path], None], message: str, qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    """One line that names the folder and what is wrong with it."""
    folder = tmp_path / "model"
    shutil.copytree(qwen_folders["qwen2_5_vl"], folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{folder}: {message}')}") as caught:
        load_policy(ModelSettings(path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "no-such-folder", "no/such/folder"])
def test_no_folder(path: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(path)}: no such model folder$"):
        load_policy(ModelSettings(path=path))


def test_hub_id_without_network() -> None:
    """owner/name is a hub id; without a network it is one line, not a traceback."""
    with pytest.raises(CheckpointError, match="^no-such-owner/no-such-model: ") as caught:
        load_policy(ModelSettings(path="no-such-owner/no-such-model"))
    assert "\n" not in str(caught.value)


def test_remote_code_is_refused(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """A folder that asks for its own Python file is refused, and the file is not run."""
    assert ModelSettings().trust_remote_code is False
    folder = tmp_path / "model"
    shutil.copytree(qwen_folders["qwen2_5_vl"], folder)
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "my_own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_policy(ModelSettings(path=str(folder)))
    assert str(caught.value) == (
        f"{folder}: config.json names model type 'my_own' and code of its own (code.Config), which is refused; use a model of type "
        "qwen2_5_vl or qwen3_vl, which needs none; if this is one and you trust its code, set trust_remote_code=true where the command "
        "takes the model's settings (train: model.trust_remote_code=true)"
    )
    assert not ran.exists()


def test_embedded_model_has_a_place() -> None:
    assert Path(resolve("tinyvl")).parts[-2:] == ("vlm_contextrl", "tinyvl")
    assert resolve("some/model") == "some/model"


# ---------------------------------------------------------------- what is trained


def trained(policy: Any) -> set[str]:
    return {name for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_tuning_leaves_the_vision_tower(family: str, qwen_folders: dict[str, Path]) -> None:
    """The paper freezes it; `train_vision` trains it too; an untrained policy trains nothing."""
    folder = qwen_folders[family]
    names = trained(tiny_policy(folder, train_vision=False))
    everything = {f"model.{name}" for name, _ in plain_model(folder).named_parameters()}
    assert names == {name for name in everything if ".visual." not in name}
    assert trained(tiny_policy(folder, train_vision=True)) == everything
    assert trained(tiny_policy(folder, trainable=False)) == set()


LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_adapts_the_language_model_only(family: str, qwen_folders: dict[str, Path]) -> None:
    """Two matrices for each of seven linear layers in each of two blocks, none elsewhere."""
    names = trained(tiny_policy(qwen_folders[family], tuning="lora", lora=LoraSettings(rank=4, alpha=8)))
    expected = {
        f"layers.{layer}.{'self_attn' if linear[0] in 'qkvo' else 'mlp'}.{linear}.lora_{part}.default.weight"
        for layer in range(2)
        for linear in LINEAR
        for part in "AB"
    }
    assert {name.partition("language_model.")[2] for name in names} == expected
    assert len(names) == 2 * 7 * 2


VISION = {
    "qwen2_5_vl": {"attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    "qwen3_vl": {"attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"},
}
MERGERS = {
    "qwen2_5_vl": {"merger.mlp.0", "merger.mlp.2"},
    "qwen3_vl": {
        "merger.linear_fc1", "merger.linear_fc2", "deepstack_merger_list.0.linear_fc1", "deepstack_merger_list.0.linear_fc2",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_reaches_the_vision_tower_on_request(family: str, qwen_folders: dict[str, Path]) -> None:
    """All linear layers of the blocks and of the mergers; never the patch embedding or the LM head."""
    lora = LoraSettings(rank=4, alpha=8, vision=True)
    names = trained(tiny_policy(qwen_folders[family], tuning="lora", lora=lora))
    inside = {n.partition("visual.")[2].partition(".lora_")[0] for n in names if ".visual." in n}
    blocks = {f"blocks.{i}.{name}" for i in range(2) for name in VISION[family]}
    assert inside == blocks | MERGERS[family]
    assert not any("patch_embed" in name or "lm_head" in name for name in names)
    assert sum(".visual." not in name for name in names) == 2 * 7 * 2


def write_adapter(folder: Path, model: Path, scale: float = 1.0) -> Path:
    """An adapter whose B matrices are not zero, so that it does something."""
    policy = tiny_policy(model, tuning="lora", lora=LoraSettings(rank=2, alpha=4))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale, generator=torch.Generator().manual_seed(len(name)))
    policy.model.save_pretrained(folder)
    return folder


def first_logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = policy.option_logits(
            [ask(policy.processor, "Why?", [noise_image(1)])], [65, 66]
        )
    return logits


def test_adapter_is_applied_in_every_mode(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """Kept for use and for LoRA training, merged and unfrozen for full training: one and the same model,
    and not the one without the adapter."""
    model = qwen_folders["qwen2_5_vl"]
    adapter = str(write_adapter(tmp_path / "adapter", model))
    without = first_logits(tiny_policy(model, trainable=False))
    merged = tiny_policy(model, trainable=False, adapter=adapter)
    lora = tiny_policy(model, tuning="lora", adapter=adapter)
    full = tiny_policy(model, tuning="full", adapter=adapter, train_vision=False)
    assert float((first_logits(merged) - without).abs().max()) > 1e-2
    for policy in (lora, full):
        torch.testing.assert_close(first_logits(policy), first_logits(merged), rtol=1e-5, atol=1e-5)
    assert trained(merged) == set()
    assert len(trained(lora)) == 2 * 7 * 2
    assert trained(full) == trained(tiny_policy(model, tuning="full", train_vision=False))


def test_an_adapter_brings_the_image_bounds_it_was_trained_with(
    qwen_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = qwen_folders["qwen2_5_vl"]
    trained_with = tiny_policy(model, tuning="lora", max_pixels=3136)
    export(trained_with, tmp_path / "adapter")
    policy = tiny_policy(model, trainable=False, adapter=str(tmp_path / "adapter"))
    sizes = [p.processor.process_image(noise_image(0, 112, 112)).n_tokens for p in (trained_with, policy)]
    assert sizes == [4, 4]
    assert tiny_policy(model).processor.process_image(noise_image(0, 112, 112)).n_tokens == 9


def test_a_small_update_survives_16_bits(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """An update below the last digit of bfloat16 weights still moves the logits: adapters are not merged for use."""
    model = qwen_folders["qwen2_5_vl"]
    write_adapter(tmp_path / "adapter", model, scale=1e-3)
    policy = tiny_policy(model, trainable=False, adapter=str(tmp_path / "adapter"), dtype="bfloat16")
    assert any("lora_A" in name for name, _ in policy.named_parameters())


@pytest.mark.parametrize("spoil", ["missing", "cut"])
def test_unusable_adapter(spoil: str, qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    model, adapter = qwen_folders["qwen2_5_vl"], tmp_path / "adapter"
    if spoil == "cut":
        write_adapter(adapter, model)
        (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    message = "no adapter_config.json" if spoil == "missing" else "adapter cannot be read"
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(adapter))}: {message}") as caught:
        load_policy(ModelSettings(path=str(model), adapter=str(adapter)))
    assert "\n" not in str(caught.value)


def test_an_adapter_with_other_names_is_refused(qwen_folders: dict[str, Path], tmp_path: Path) -> None:
    """As older versions of transformers named the layers: PEFT would only warn, and give the model without an adapter."""
    model, adapter = (
        qwen_folders["qwen2_5_vl"],
        write_adapter(tmp_path / "adapter", qwen_folders["qwen2_5_vl"]),
    )
    file = adapter / "adapter_model.safetensors"
    save_file({k.replace("language_model.layers", "layers"): v for k, v in load_file(file).items()}, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            CheckpointError, match=r"does not fit this model: \d+ tensors have other names, first base_model"
        ):
            load_policy(ModelSettings(path=str(model), adapter=str(adapter)))


def test_bfloat16_weights(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen3_vl"], dtype="bfloat16")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert first_logits(policy).dtype == torch.float32
