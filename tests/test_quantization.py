"""QLoRA: which weights are 4 bits, training and resuming, the adapter saved, reloaded and merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_models import FAMILIES, image_pair, records, run_config, tiny_policy
from vlm_contextrl.checkpoints import export
from vlm_contextrl.config import ModelSettings, RunConfig, validate
from vlm_contextrl.errors import ConfigError, MissingExtraError
from vlm_contextrl.models import load_policy, merge_adapter, quantized_modules
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import probe
from vlm_contextrl.trainer import train

pytest.importorskip("bitsandbytes")
NF4 = {"quantization": "nf4", "tuning": "lora", "lora": {"rank": 4, "alpha": 8}}


def margins(policy: Policy) -> list[float]:
    found = probe(policy, [image_pair(n) for n in range(4)])
    return [m for each in found["per_pair"] for m in each["margins"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_is_left_alone(qwen_folders: dict[str, Path], family: str) -> None:
    """Two layers of seven matrices are quantised, the LM head and the tower are not; by choice the tower is, too."""
    policy = tiny_policy(qwen_folders[family], **NF4)
    found = quantized_modules(policy)
    assert len(found) == 14
    assert not [name for name in found if "visual" in name or "lm_head" in name]
    assert all("lora" in name for name, p in policy.named_parameters() if p.requires_grad)
    both = tiny_policy(qwen_folders[family], **NF4, quantize_vision=True)
    assert any("visual" in name for name in quantized_modules(both))


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_resumes_reloads_and_merges(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path, family: str
) -> None:
    config = run_config(qwen_folders[family], noise_rows, model=NF4, log={"save_every": 2})
    train(config, tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train(config, tmp_path / "parts", on_step=stop)
    train(config, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts", "metrics") == records(tmp_path / "whole", "metrics")

    adapter = str(tmp_path / "whole/final")
    base = load_policy(config.model, trainable=False)
    reloaded = load_policy(config.model.model_copy(update={"adapter": adapter}), trainable=False)
    again = load_policy(
        config.model.model_copy(update={"adapter": str(tmp_path / "parts/final")}), trainable=False
    )
    assert margins(reloaded) == margins(again)
    assert margins(reloaded) != margins(base)

    # On unquantised weights the merged model is the model with its adapter.
    plain = {"path": str(qwen_folders[family]), "adapter": adapter}
    beside = load_policy(ModelSettings(**plain, tuning="lora"))
    policy = load_policy(ModelSettings(**plain), trainable=False)
    merge_adapter(policy, torch.float32)
    export(policy, tmp_path / "merged")
    merged = load_policy(ModelSettings(path=str(tmp_path / "merged")), trainable=False)
    assert margins(merged) == pytest.approx(margins(beside), abs=1e-4)


def test_settings_that_contradict_each_other(noise_rows: dict[str, Path]) -> None:
    values = run_config(Path("x"), noise_rows).model_dump()
    for model, message in (
        ({"quantization": "nf4", "tuning": "full"}, "nf4 weights cannot be trained"),
        ({"quantize_vision": True}, "no effect without quantization"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(RunConfig, values | {"model": values["model"] | model}, "x.yaml")


def test_without_bitsandbytes(qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type]  # makes the import fail
    with pytest.raises(MissingExtraError, match=r"vlm-contextrl\[qlora\]"):
        load_policy(ModelSettings(path=str(qwen_folders["qwen2_5_vl"]), **NF4))


def test_evaluation_leaves_stored_weights_as_they_are(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every CPU: bitsandbytes would repack them for good where it finds AVX512-BF16."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False, **NF4)
    weights = [policy.model.get_submodule(name).weight for name in quantized_modules(policy.model)]
    before = [weight.data.clone() for weight in weights]
    margins(policy)
    assert all(torch.equal(weight.data, old) for weight, old in zip(weights, before, strict=True))
