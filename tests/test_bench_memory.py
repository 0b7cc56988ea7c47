"""The memory estimate: by hand, against real small models and what autograd keeps; and the measured step."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.tiny_models import FAMILIES, ask, noise_image, random_ids, run_config, tiny_policy
from vlm_contextrl import packed_kernels
from vlm_contextrl.bench.activations import Batch, Precision, decoder_bytes, kernel_on_a_gpu
from vlm_contextrl.bench.machine import SavedBytes
from vlm_contextrl.bench.memory import DEFAULT_MAX_PIXELS, count_weights, estimate, nf4_bytes
from vlm_contextrl.bench.memory_measured import measure_on_gpu, two_steps
from vlm_contextrl.bench.model_shapes import KNOWN, empty_model, model_config
from vlm_contextrl.commands.benching import app
from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import CheckpointError, ConfigError, InputError
from vlm_contextrl.models import quantized_modules, resolve
from vlm_contextrl.packing import Continuation, PackedRow, pack

RUN: dict[str, Any] = {"standalone_mode": False}


def test_nf4_by_hand() -> None:
    """64 * 300 weights: 9600 bytes, 300 blocks of one byte, 2 nested blocks of four, 273 numbers of tables."""
    assert nf4_bytes(64 * 300) == 9600 + 300 + 8 + 4 * 273


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_vision": False},
        {"dtype": "bfloat16", "tuning": "lora", "lora": {"rank": 4, "alpha": 8}},
        {"tuning": "lora", "lora": {"rank": 3, "alpha": 8, "vision": True}},
    ],
)
def test_counts_equal_real_models(
    qwen_folders: dict[str, Path], family: str, settings: dict[str, Any]
) -> None:
    policy = tiny_policy(qwen_folders[family], **settings)
    empty = empty_model(model_config(str(qwen_folders[family]))[0])
    resolved = ModelSettings(
        **({"train_vision": not settings} | {"path": str(qwen_folders[family])} | settings)
    )
    counted = count_weights(empty, resolved)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert counted.trainable == sum(p.numel() for p in trained)
    adapters = sum(p.numel() for name, p in policy.named_parameters() if "lora_" in name)
    assert counted.adapters == adapters
    assert counted.parameters == sum(p.numel() for p in policy.parameters()) - adapters
    stored = sum(p.nbytes for name, p in policy.named_parameters() if "lora_" not in name)
    assert counted.stored_bytes == stored
    assert {p.dtype for p in trained} == {torch.float32}  # 4 bytes for each gradient, 8 for its moments


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_bytes_equal_a_quantised_model(qwen_folders: dict[str, Path], family: str) -> None:
    """To the byte: weights, block maxima, nested maxima, offsets and code tables of every quantised matrix, and the rest as it is."""
    pytest.importorskip("bitsandbytes")
    settings = {"quantization": "nf4", "tuning": "lora", "lora": {"rank": 4, "alpha": 8}}
    policy = tiny_policy(qwen_folders[family], **settings)
    assert quantized_modules(policy)
    stored = 0
    for name, parameter in policy.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if "lora_" not in name:
            stored += parameter.nbytes
        if state is not None:
            tables = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            stored += sum(table.nbytes for table in tables)
    folder = str(qwen_folders[family])
    counted = count_weights(empty_model(model_config(folder)[0]), ModelSettings(path=folder, **settings))
    assert counted.stored_bytes == stored


def test_the_embedded_model_is_counted_as_its_file_has_it() -> None:
    with safe_open(f"{resolve('tinyvl')}/model.safetensors", "pt") as file:
        n_weights = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # not a mapping
    model = empty_model(model_config("tinyvl")[0])
    assert count_weights(model, ModelSettings()).parameters == n_weights


def test_known_shapes_have_the_published_number_of_parameters() -> None:
    """The parameter counts of these repositories."""
    counts = {path: sum(p.numel() for p in empty_model(model_config(path)[0]).parameters()) for path in KNOWN}
    assert counts == {
        "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
        "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
        "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
        "Qwen/Qwen3-VL-8B-Thinking": 8_767_123_696,
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {"tuning": "full"},
        {"tuning": "lora"},
        {"tuning": "full", "autocast": "bf16"},
        {"tuning": "lora", "autocast": "bf16"},
        {"tuning": "lora", "autocast": "bf16", "dtype": "bfloat16"},
        {"tuning": "lora", "dtype": "bfloat16"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(
    qwen_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    settings: dict[str, Any],
    checkpointing: bool,
) -> None:
    """Within 15% without checkpointing. With it autograd keeps the inputs of layers only, and the estimate adds one layer at work."""
    monkeypatch.setattr(packed_kernels, "_uses_sdpa", lambda query: True)  # in 16 bits, too, as on a GPU
    settings = settings | {
        "train_vision": False, "gradient_checkpointing": checkpointing, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    policy = tiny_policy(qwen_folders[family], **settings)
    resolved = ModelSettings(path=str(qwen_folders[family]), **settings)
    prompt = ask(policy.processor, "What is this? " * 10, [noise_image(1, 112, 84)])
    n, length = 4, 20
    row = PackedRow(prompt, tuple(Continuation(random_ids(i, length)) for i in range(n)))
    packed = pack([row], policy.positions, 0)
    policy.encoder_outputs(prompt.images)  # frozen: cached, not part of what is kept
    half = torch.autocast("cpu", torch.bfloat16) if resolved.autocast == "bf16" else nullcontext()
    with half, SavedBytes(policy) as saved:
        logps_L, _ = policy.completion_logps(packed)
    shape, batch, precision = policy.base.config, Batch(len(prompt), n, length), Precision.of(resolved)
    hidden, full = shape.get_text_config().hidden_size, resolved.tuning == "full"
    # Directions of the gradients; a trained head keeps its inputs, too.
    head = precision.residual_bytes * n * length * hidden * (2 if full else 1)
    copies = 2 * count_weights(empty_model(shape), resolved).cast  # a part of its own in the estimate
    assert batch.tokens == row.n_tokens()
    # two_part leaves heads grouped on a CPU and keeps what varlen keeps.
    found = decoder_bytes(shape, batch, precision, resolved, kernel="varlen")
    kept = saved.mib * 2**20 - head - copies
    if checkpointing:
        assert batch.tokens * 2 * hidden * precision.residual_bytes < kept + copies < found + copies
    else:
        assert found == pytest.approx(kept, rel=0.15)
    logps_L.sum().backward()


def test_autocast_keeps_copies_of_trained_weights(qwen_folders: dict[str, Path]) -> None:
    """Of the linear layers of the language model with their biases, of the tower only when it is trained, never of the head; of adapters
    with LoRA; none without autocast or of weights that are 16 bits already."""
    folder = str(qwen_folders["qwen2_5_vl"])
    empty = empty_model(model_config(folder)[0])
    linear = {n: m for n, m in empty.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}

    def cast(**settings: Any) -> int:
        return count_weights(empty, ModelSettings(path=folder, **settings)).cast

    text, tower = (
        sum(p.numel() for n, m in linear.items() if n.startswith("model.visual") == is_tower for p in m.parameters())
        for is_tower in (False, True)
    )  # fmt: skip
    patches = sum(p.numel() for p in empty.model.visual.patch_embed.parameters())
    assert cast(autocast="bf16") == text
    assert cast(autocast="bf16", train_vision=True) == text + tower + patches
    assert cast() == 0
    lora = ModelSettings(path=folder, tuning="lora", autocast="bf16", dtype="bfloat16")
    counted = count_weights(empty, lora)
    assert counted.cast == counted.adapters > 0


def test_batches_within_a_budget() -> None:
    """A group of 9 + 4 * 5 = 29 tokens: two fit into 60, none into 20, where its completions are cut to (20 - 9) // 4 tokens.
    Keys per token of one: (9 + 4 * 14) / 29."""
    group = Batch(10, 4, 5)
    assert group.tokens == 29
    assert group.within(60) == Batch(10, 4, 5, 2)
    assert group.within(20) == Batch(10, 4, 2)
    assert group.keys_per_token == pytest.approx(65 / 29)
    assert group.within(60).keys_per_token == pytest.approx(65 / 29)


def test_estimate_by_hand(qwen_folders: dict[str, Path], noise_rows: dict[str, Path]) -> None:
    """Full tuning of the language model in float32 with a KL term. Images of at most 12 visual tokens and 256 of text; 3 completions of 4.
    Keys and values: 2 layers, 2 * 2 heads of 16 in float32 are 512 bytes per token."""
    folder = qwen_folders["qwen2_5_vl"]
    terms = [{"term": "policy", "kl_coef": 0.01}, {"term": "selection_loss", "weight": 0.1}]
    config = run_config(
        folder,
        noise_rows,
        objective=terms,
        optim={"tokens_per_micro_batch": 2000, "prompts_per_update": 2},
        rollout={"sequences_at_once": 8},
    )
    found = estimate(config)
    assert found["assumed"] == {
        "prompt_tokens": 268,
        "image_tokens": 12,
        "micro_batch_tokens": 7 * 279,
        "longest_group_tokens": 279,
        "prompts_sampled_at_once": 2,
    }
    policy = tiny_policy(folder, train_vision=False)
    total, trained = (
        sum(p.numel() for p in policy.parameters() if p.requires_grad or which == "all")
        for which in ("all", "trained")
    )
    gib = {name: value * 2**30 for name, value in found["parts_gib"].items()}
    assert gib["weights"] == gib["reference model"] == 4 * total
    assert gib["gradients"] == 4 * trained
    assert gib["optimizer moments"] == 8 * trained
    assert gib["cache of keys and values"] == 2 * 3 * 272 * 512
    assert (
        found["peaks_gib"]["usual micro-batch"]
        > sum(gib[name] for name in ("weights", "reference model", "gradients", "optimizer moments")) / 2**30
    )
    assert found["peaks_gib"]["longest group"] < found["peaks_gib"]["usual micro-batch"]
    always = gib["weights"] + gib["reference model"] + 12 * trained
    assert found["peaks_gib"]["optimizer step"] * 2**30 == always + 4 * trained


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl_7b_full", "qwen2_5_vl_7b_qlora", "qwen3_vl_8b_lora", "tiny_grpo"]
)
def test_shipped_configurations_are_estimated(name: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["memory", name, "--json", str(tmp_path / "memory.json")])
    assert done.exception is None, done.exception
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["name"] == name
    assert "peak, rollout" in done.stdout
    if (
        name == "qwen2_5_vl_7b_full"
    ):  # 4 + 4 + 8 + 4 bytes of each trained weight, which no single GPU of 80 GB holds
        assert found["peaks_gib"]["optimizer step"] > 20 * found["trainable"] / 2**30
    if name == "qwen2_5_vl_7b_qlora":  # 6.5e9 weights at 0.52 bytes, the rest (head, embedding, tower) at 2
        assert found["parts_gib"]["weights"] == pytest.approx(
            (6.525e9 * 0.516 + 1.767e9 * 2) / 2**30, rel=0.01
        )


def test_a_model_that_cannot_be_found(noise_rows: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable model configuration"):
        estimate(run_config(tmp_path / "nowhere", noise_rows))


def test_an_image_that_no_prompt_has_room_for(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path]
) -> None:
    """Beside 256 tokens of text; 4 * 4 tokens of 28 pixels a side are asked for."""
    data = {"max_prompt_tokens": 271}
    model = {"min_pixels": 16 * 28 * 28}
    with pytest.raises(
        ConfigError, match="max_prompt_tokens is 271: no room for an image of 16 tokens .* at least 272"
    ):
        estimate(run_config(qwen_folders["qwen2_5_vl"], noise_rows, data=data, model=model))
    larger = run_config(
        qwen_folders["qwen2_5_vl"],
        noise_rows,
        data={"max_prompt_tokens": 272},
        model=model | {"max_pixels": 10**6},
    )
    assert estimate(larger)["assumed"]["image_tokens"] == 16


def test_pixels_of_the_published_models(noise_rows: dict[str, Path]) -> None:
    """12,845,056 / 28^2 and 16,777,216 / 32^2: both 16,384 visual tokens."""
    assert DEFAULT_MAX_PIXELS["qwen2_5_vl"] // 28**2 == DEFAULT_MAX_PIXELS["qwen3_vl"] // 32**2 == 16384
    config = run_config(
        Path("Qwen/Qwen3-VL-8B-Instruct"),
        noise_rows,
        model={"tuning": "lora"},
        data={"max_prompt_tokens": 20_000},
    )
    assert estimate(config)["assumed"]["image_tokens"] == 16384


@pytest.mark.parametrize("wanted", ["auto", "flash", "varlen", "flex", "two_part"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_is_the_one_that_a_gpu_would_take(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, dtype: Any
) -> None:
    monkeypatch.setattr(packed_kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    settings = ModelSettings(tuning="lora", attention=wanted, dtype=dtype)
    chosen = packed_kernels.choose_kernel(wanted, "cuda", getattr(torch, dtype)).name
    assert kernel_on_a_gpu(Precision.of(settings), settings) == chosen


def test_measuring_needs_a_gpu_and_the_estimate_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(
        app, ["memory", "tiny_grpo", "--measure", "--json", str(tmp_path / "memory.json")]
    )
    assert isinstance(done.exception, InputError)
    assert "--measure needs a CUDA device" in str(done.exception)
    assert "peak, rollout" in done.stdout
    assert json.loads((tmp_path / "memory.json").read_text())["measured_gib"] is None


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, qwen_folders: dict[str, Path], noise_rows: dict[str, Path]
) -> None:
    """With stand-ins for the GPU: 3 of 4 GiB in use when an allocation fails."""
    from vlm_contextrl.bench import memory_measured

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=4 * 2**30)
    )
    monkeypatch.setattr(memory_measured, "two_steps", fail)
    with pytest.raises(
        InputError, match=r"^measuring: out of device memory with 3.00 of 4.00 GiB in use.*\Z"
    ):
        measure_on_gpu(run_config(qwen_folders["qwen3_vl"], noise_rows), {})


@pytest.mark.parametrize(
    "settings", [{"tuning": "lora", "lora": {"rank": 2, "alpha": 4}}, {"gradient_checkpointing": True}]
)
def test_the_measured_steps_run(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], settings: dict[str, Any]
) -> None:
    """On a CPU nothing is measured; the steps are those that a GPU would run."""
    config = run_config(
        qwen_folders["qwen3_vl"],
        noise_rows,
        model=settings,
        optim={"prompts_per_update": 2, "tokens_per_micro_batch": 700},
    )
    parts: list[str] = []
    assumed = estimate(config)["assumed"]
    two_steps(config, assumed, torch.device("cpu"), lambda: parts.append("begin"), parts.append)
    assert parts == ["begin", "usual micro-batch", "begin", "optimizer step"] * 2
