"""The bench against TRL, its floor, and the estimate of memory. No test looks at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.tiny_models import FAMILIES, ask, noise_image, random_ids, run_config, tiny_policy
from vlm_contextrl.bench import floor
from vlm_contextrl.bench.activations import Batch, Precision, decoder_bytes, kernel_repeats_keys
from vlm_contextrl.bench.clock import SavedBytes, in_turns
from vlm_contextrl.bench.memory import count_weights, estimate, nf4_bytes
from vlm_contextrl.bench.memory_measured import one_step
from vlm_contextrl.bench.model_shapes import KNOWN, empty_model, model_config
from vlm_contextrl.bench.parity import ParityError, agree
from vlm_contextrl.bench.shapes import Shape, bench_processor, prompt_of, question, random_model
from vlm_contextrl.commands.benching import app
from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import CheckpointError, MissingExtraError
from vlm_contextrl.models import quantized_modules, resolve
from vlm_contextrl.packing import Continuation, PackedRow, pack

SMALL = Shape(
    hidden=8, layers=2, heads=2, kv_heads=1, intermediate=16, vocab=10, vision_hidden=4, vision_layers=2, vision_heads=1,
    vision_intermediate=8, image_px=56, prompt_tokens=6, completions=3, completion_tokens=2,
)  # fmt: skip
KEYS = (
    "train_speedup_c32",
    "train_speedup_c128",
    "saved_memory_ratio",
    "whole_step_speedup",
    "selection_speedup",
    "max_abs_dlogp",
)
RUN: dict[str, Any] = {"standalone_mode": False}


# ---------------------------------------------------------------- side by side with TRL


@pytest.mark.slow
def test_quick_bench_writes_every_key(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from typer.testing import CliRunner

    done = CliRunner().invoke(
        app, ["engine", "--quick", "--json", str(tmp_path / "bench.json")], env={"COLUMNS": "100"}
    )
    assert done.exception is None, done.exception
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {key + suffix for key in KEYS for suffix in ("", "_default")} <= result.keys()
    assert {
        "rollout_speedup",
        "processor_speedup",
        "rho_c32",
        "rho_c128",
        "hardware",
        "versions",
        "rounds",
    } <= result.keys()
    assert result["max_abs_dlogp"] < 1e-4
    # 4 completions of 4 or 16 tokens to a prompt of 48: 4 * 52 / 64 and 4 * 64 / 112.
    assert result["rho_c32"] == pytest.approx(3.25)
    assert result["rho_c128"] == pytest.approx(16 / 7)
    measures = {"train_c32", "train_c128", "rollout", "processor", "selection", "whole_step"}
    assert set(result["seconds"]) == set(result["of_floor"]) == measures
    assert all("trl" in sides and "ours" in sides for sides in result["of_floor"].values())
    assert "train_c128" in done.stdout
    assert "TRL tuned" in done.stdout


def test_a_peer_with_other_weights_is_refused() -> None:
    pytest.importorskip("trl")
    from vlm_contextrl.bench.engine import QUICK
    from vlm_contextrl.bench.measures import Bench

    bench = Bench(QUICK, torch.device("cpu"), rounds=1)
    spoiled = bench.sides["trl"].model.get_base_model().model.language_model.layers[0].mlp.up_proj
    with torch.no_grad():
        spoiled.base_layer.weight[0] += 0.1
    with pytest.raises(ParityError, match="c32: trl and ours compute different things"):
        bench.train("c32", QUICK, bench.sides)
    assert "train_c32" not in bench.result["seconds"]


def test_gradients_are_compared_as_well() -> None:
    """Values differ by 1e-4; a gradient differs by 2, a half of the largest."""
    values = torch.zeros(3)
    ours = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0])}
    assert agree((values, ours), (values + 1e-4, ours), "x", 1e-3) == pytest.approx(1e-4)
    for peer in (
        ours | {"b": torch.tensor([4.0])},
        {"a": ours["a"]},
        ours | {"b": torch.tensor([torch.nan])},
    ):
        with pytest.raises(ParityError):
            agree((values, peer), (values, ours), "x", 1e-3)


def test_the_peer_sees_the_prompt_and_the_patches_that_we_see() -> None:
    pytest.importorskip("trl")
    from vlm_contextrl.bench.peer_step import prompt_text, still_image_processor

    shape = Shape(image_px=84, prompt_tokens=48)
    processor = bench_processor(shape)
    row = question(shape, processor, 3)
    content = [
        {"type": "image", "image": row.images[0].decode()},
        {"type": "text", "text": prompt_text(row)},
    ]
    found = still_image_processor(processor).apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ours = prompt_of(row, processor)
    assert len(ours) == 48
    assert torch.equal(found["input_ids"][0], ours.ids_T)
    assert torch.equal(found["pixel_values"], ours.images[0].patches_ND)


def test_a_step_of_the_peer_is_one_update_with_selection_once(tmp_path: Path) -> None:
    """Two groups of 4 completions of 4 tokens are sampled together and trained one after the other."""
    pytest.importorskip("trl")
    from vlm_contextrl.bench.engine import QUICK
    from vlm_contextrl.bench.peer import Peer
    from vlm_contextrl.bench.peer_step import peer_step

    processor = bench_processor(QUICK)
    peer = Peer(random_model(QUICK, processor), processor, tuned=True)
    seen: list[dict[str, Any]] = []

    def selection(model: Any) -> torch.Tensor:
        adapters = [p for p in model.parameters() if p.requires_grad]
        seen.append({"adapter": adapters[1].detach().clone(), "had_gradient": adapters[1].grad is not None})
        return sum((p.sum() for p in adapters), torch.zeros(()))

    step = peer_step(peer, [question(QUICK, processor, n) for n in range(2)], 4, 4, selection, str(tmp_path))
    assert step() > 0
    assert step() > 0
    assert len(seen) == 2
    assert all(each["had_gradient"] for each in seen)
    assert not torch.equal(seen[0]["adapter"], seen[1]["adapter"])


def test_without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setitem(sys.modules, "trl", None)  # type: ignore[arg-type]  # makes the import fail
    done = CliRunner().invoke(app, ["engine", "--quick"])
    assert isinstance(done.exception, MissingExtraError)
    assert "pip install 'vlm-contextrl[trl]'" in str(done.exception)


def test_the_first_round_warms_up_and_own_seconds_count() -> None:
    called: list[str] = []
    seconds = in_turns(
        {"a": lambda: called.append("a"), "b": lambda: 5.0},
        2,
        torch.device("cpu"),
        lambda: called.append("done"),
    )
    assert called == ["a", "done"] * 3
    assert seconds["b"] == [5.0, 5.0]
    assert len(seconds["a"]) == 2


def test_saved_bytes_by_hand() -> None:
    """x * x keeps x once (4 numbers of 4 bytes); a product with a parameter keeps the other factor (4 numbers) and no parameter."""
    layer = torch.nn.Linear(4, 2, bias=False)
    x = torch.ones(1, 4, requires_grad=True)
    with SavedBytes(layer) as saved:
        y = x * x
        layer(y)
    assert saved.mib * 2**20 == 32


# ---------------------------------------------------------------- floor


def test_floor_of_training_by_hand() -> None:
    """d = 4, so q = 8 and k = v = 4 wide: a layer has 8 * (8 + 8 + 4 + 4) + 3 * 8 * 16 = 576 weights, two have N = 1152.
    Tokens: 6 + 3 * 2 = 12; (query, key) pairs: 21 + 3 * (12 + 3) = 66.
    Linear 2 * 1152 * 12 * 2 = 55296; attention 4 * 2 * 8 * 66 * 3 = 12672; head 2 * 8 * 10 * 6 * 2 = 1920.
    Vision: 4 tokens of 16 patches. A block has 4 * 16 + 3 * 32 = 160 weights, the embedding 1176 * 4 = 4704, the merger
    16 * 16 + 16 * 8 = 384:
    2 * 16 * (2 * 160 + 4704) + 2 * 4 * 384 = 163840; attention 4 * 16 * (16 + 64) * 4 = 20480."""
    assert floor.linear_parameters(SMALL) == 1152
    assert floor.vision(SMALL) == floor.Work(163_840 + 20_480)
    assert floor.training(SMALL, seen=True) == floor.Work(55_296 + 12_672 + 1_920)
    assert floor.training(SMALL) == floor.Work(55_296 + 12_672 + 1_920 + 163_840 + 20_480)


def test_floor_of_a_rollout_by_hand() -> None:
    """Bytes at 4 each: weights 4 * (1152 + 80) = 4928 per token, twice; keys and values 4 * 2 * 2 * 4 = 64 per token, times 2 * 6 + 3 * 3.
    FLOPs: vision 184320; prompt 2 * 1152 * 6 + 4 * 2 * 8 * 21 + 2 * 8 * 10; completions 2 * 1152 * 6 + 4 * 2 * 8 * 45 + 2 * 8 * 10 * 6."""
    work = floor.rollout(SMALL, 4)
    assert work.n_bytes == 2 * 4928 + 64 * 21
    assert work.flops == 184_320 + (13_824 + 1_344 + 160) + (13_824 + 2_880 + 960)


def test_floor_of_a_pair_and_its_seconds() -> None:
    """20 tokens shared, 3 and 4 own: pairs 210 + 60 + 6 + 80 + 10 = 366; head 2 * 8 * 2 * 2 * 2 = 128.
    At 100 FLOP/s and 10 bytes/s, 50 FLOPs and 20 bytes take 2.5 s."""
    decoder = 2 * 1152 * 27 * 2 + 4 * 2 * 8 * 366 * 3
    assert floor.selection(SMALL, 20, [3, 4]) == floor.Work(2 * 184_320 + decoder + 128)
    assert floor.image_processing(10, 20, 4) == floor.Work(0, 600 + 4 * 16 * 1176)
    assert floor.Machine(100, 10).floor_s(floor.Work(50, 20)) == 2.5


def test_rho() -> None:
    """8 * 332 / 556 and 8 * 428 / 1324, as in the facts on the engine."""
    assert Shape().rho == pytest.approx(4.777, abs=1e-3)
    assert Shape(completion_tokens=128).rho == pytest.approx(2.586, abs=1e-3)


# ---------------------------------------------------------------- memory


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
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_activations_are_what_autograd_keeps(
    qwen_folders: dict[str, Path], family: str, checkpointing: bool, tuning: str
) -> None:
    """Within 15% without checkpointing. With it autograd keeps the inputs of layers only, and the estimate adds one layer at work."""
    settings = {
        "tuning": tuning, "train_vision": False, "gradient_checkpointing": checkpointing, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    policy = tiny_policy(qwen_folders[family], **settings)
    prompt = ask(policy.processor, "What is this? " * 10, [noise_image(1, 112, 84)])
    n, length = 4, 20
    row = PackedRow(prompt, tuple(Continuation(random_ids(i, length)) for i in range(n)))
    packed = pack([row], policy.positions, 0)
    policy.encoder_outputs(prompt.images)  # frozen: cached, not part of what is kept
    with SavedBytes(policy) as saved:
        logps_L, _ = policy.completion_logps(packed)
    hidden = 4 * n * length * policy.base.config.get_text_config().hidden_size
    head = hidden * (
        2 if tuning == "full" else 1
    )  # directions of the gradients; a trained head keeps its inputs, too
    resolved = ModelSettings(path=str(qwen_folders[family]), **settings)
    shape, batch, precision = policy.base.config, Batch(len(prompt), n, length), Precision.of(resolved)
    assert batch.tokens == row.n_tokens()
    found = decoder_bytes(shape, batch, precision, resolved, repeats_keys=False)  # a CPU
    kept = saved.mib * 2**20 - head
    if checkpointing:
        inputs = batch.tokens * 2 * shape.get_text_config().hidden_size * 4
        assert inputs < kept < found
    else:
        assert found == pytest.approx(kept, rel=0.15)
    logps_L.sum().backward()


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
        found["peaks_gib"]["training"]
        > sum(gib[name] for name in ("weights", "reference model", "gradients", "optimizer moments")) / 2**30
    )
    assert found["peaks_gib"]["longest group"] < found["peaks_gib"]["training"]


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
    ):  # 4 + 4 + 8 bytes of each trained weight, which no single GPU of 80 GB holds
        assert found["peaks_gib"]["training"] > 16 * found["trainable"] / 2**30
    if name == "qwen2_5_vl_7b_qlora":  # 6.5e9 weights at 0.52 bytes, the rest (head, embedding, tower) at 2
        assert found["parts_gib"]["weights"] == pytest.approx(
            (6.525e9 * 0.516 + 1.767e9 * 2) / 2**30, rel=0.01
        )


def test_a_model_that_cannot_be_found(noise_rows: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable model configuration"):
        estimate(run_config(tmp_path / "nowhere", noise_rows))


def test_float32_repeats_keys_on_a_gpu() -> None:
    settings = ModelSettings()
    assert kernel_repeats_keys(Precision.of(settings), settings)
    half = ModelSettings(tuning="lora", dtype="bfloat16")
    assert not kernel_repeats_keys(Precision.of(half), half)


@pytest.mark.parametrize(
    "settings", [{"tuning": "lora", "lora": {"rank": 2, "alpha": 4}}, {"gradient_checkpointing": True}]
)
def test_the_measured_step_runs(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], settings: dict[str, Any]
) -> None:
    """On a CPU nothing is measured; the step is the one that a GPU would run."""
    config = run_config(
        qwen_folders["qwen3_vl"],
        noise_rows,
        model=settings,
        optim={"prompts_per_update": 2, "tokens_per_micro_batch": 700},
    )
    one_step(config, estimate(config)["assumed"], torch.device("cpu"))
