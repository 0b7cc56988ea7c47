"""The bench against TRL, and its floor. No test looks at a time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlm_contextrl.bench import floor
from vlm_contextrl.bench.machine import Machine, SavedBytes, in_turns
from vlm_contextrl.bench.shapes import (
    Shape,
    bench_processor,
    given_completions,
    prompt_of,
    question,
    random_model,
)
from vlm_contextrl.commands.benching import app
from vlm_contextrl.errors import ConfigError, MissingExtraError

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
        "selection_speedup_one_way",
        "whole_step_speedup_c128",
        "max_abs_dlogit",
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
    both = {"train_c32", "train_c128", "selection", "selection_one_way", "whole_step", "whole_step_c128"}
    assert set(result["seconds"]) == set(result["of_floor"]) == both | {"rollout", "processor"}
    assert all("trl" in sides and "ours" in sides for sides in result["of_floor"].values())
    for key, name in (("train_speedup_c32", "train_c32"), ("whole_step_speedup_c128", "whole_step_c128")):
        once = {side: s[0] for side, s in result["seconds"][name].items() if side != "floor"}
        assert result[key] == once["trl"] / once["ours"]
        assert result[f"{key}_default"] == once["trl_default"] / once["ours_checkpointed"]
    assert "train c16" in done.stdout
    assert "TRL tuned over ours" in done.stdout


def test_a_peer_with_other_weights_is_refused() -> None:
    pytest.importorskip("trl")
    from vlm_contextrl.bench.engine import QUICK
    from vlm_contextrl.bench.measures import Bench, ParityError

    bench = Bench(QUICK, torch.device("cpu"), Machine(1, 1))
    spoiled = bench.sides["trl"].model.get_base_model().model.language_model.layers[0].mlp.up_proj
    with torch.no_grad():
        spoiled.base_layer.weight[0] += 0.1
    with pytest.raises(ParityError, match="c32: trl and ours compute different things"):
        bench.train("c32", 1)
    assert "train_c32" not in bench.result["seconds"]


def test_a_wrong_gradient_of_one_adapter_is_refused() -> None:
    """15% off, in the adapter whose gradient is the smallest of all."""
    pytest.importorskip("trl")
    from vlm_contextrl.bench.engine import QUICK
    from vlm_contextrl.bench.measures import Bench, ParityError, gradients, group_loss

    bench = Bench(QUICK, torch.device("cpu"), Machine(1, 1))
    prompt = prompt_of(question(QUICK, bench.processor, 0), bench.processor)

    def logps(side: Any) -> torch.Tensor:
        found: torch.Tensor = side.logps(prompt, given_completions(QUICK))
        return found

    bench.parity("c32", logps, group_loss, "gap")
    assert 0 < bench.result["gap"] < 1e-4
    group_loss(logps(bench.sides["ours"])).backward()
    sizes = {name: float(g.abs().max()) for name, g in gradients(bench.sides["ours"].model).items()}
    name = min(sizes, key=sizes.__getitem__)
    dict(bench.sides["trl"].model.named_parameters())[name].register_hook(lambda gradient: 1.15 * gradient)
    with pytest.raises(ParityError, match=f"the gradient of {name} by 0.15 of its largest entry"):
        bench.parity("c32", logps, group_loss, "gap")


def test_gradients_are_compared_one_by_one() -> None:
    """Values differ by 1e-4. The gradient of b may differ by 0.002, a thousandth of its largest entry, whatever that of a is."""
    from vlm_contextrl.bench.measures import ParityError, agree

    values = torch.zeros(3)
    ours = {"a": torch.tensor([4000.0, 1.0]), "b": torch.tensor([2.0])}
    assert agree((values, ours), (values + 1e-4, ours), "x", 1e-3) == pytest.approx(1e-4)
    for peer in (
        ours | {"b": torch.tensor([2.004])},
        {"a": ours["a"]},
        ours | {"b": torch.tensor([torch.nan])},
    ):
        with pytest.raises(ParityError):
            agree((values, peer), (values, ours), "x", 1e-3)
    agree((values, ours | {"b": torch.tensor([2.001])}), (values, ours), "x", 1e-3)
    with pytest.raises(ParityError, match="values differ by 0.01"):
        agree((values + 0.01, ours), (values, ours), "x", 1e-3)


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


@pytest.mark.parametrize("missing", ["not there", "broken"])
def test_without_trl(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    from typer.testing import CliRunner

    monkeypatch.delitem(sys.modules, "vlm_contextrl.trl", raising=False)
    if missing == "broken":  # as TRL's lazy imports fail
        broken = LazyTrl("trl")
        broken.__spec__ = ModuleSpec("trl", None)
        monkeypatch.setitem(sys.modules, "trl", broken)
    else:
        monkeypatch.setitem(sys.modules, "trl", None)  # type: ignore[arg-type]  # makes the import fail
    done = CliRunner().invoke(app, ["engine", "--quick"])
    assert isinstance(done.exception, MissingExtraError)
    expected = "no operator" if missing == "broken" else "pip install 'vlm-contextrl[trl]'"
    assert expected in str(done.exception)


class LazyTrl(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "GRPOTrainer":
            raise RuntimeError("no operator")
        raise AttributeError(name)


def test_another_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from vlm_contextrl.bench import peer

    peer.check_trl()
    monkeypatch.setattr(peer, "version", lambda name: "1.17.2")
    with pytest.raises(ConfigError, match=r"^trl 1.17.2 is installed.*pip install 'trl==1.16"):
        peer.check_trl()


def test_the_first_round_warms_up_and_a_call_may_time_itself() -> None:
    called: list[str] = []
    seconds = in_turns(
        {"a": lambda: called.append("a"), "b": lambda: 5.0, "c": lambda: 5.0},
        2,
        torch.device("cpu"),
        done=lambda: called.append("done"),
        time_themselves=("b",),
    )
    assert called == ["a", "done"] * 3
    assert seconds["b"] == [5.0, 5.0]
    assert len(seconds["a"]) == 2
    assert max(seconds["c"]) < 5


def test_saved_bytes_by_hand() -> None:
    """x * x keeps x once (4 numbers of 4 bytes); a product with a parameter keeps the other factor (4 numbers) and no parameter."""
    layer = torch.nn.Linear(4, 2, bias=False)
    x = torch.ones(1, 4, requires_grad=True)
    with SavedBytes(layer) as saved:
        y = x * x
        layer(y)
    assert saved.mib * 2**20 == 32


def test_speedup_by_hand() -> None:
    """Ratios per round 4, 2 and 9: the median is 4, whatever the best rounds are."""
    from vlm_contextrl.bench.measures import Bench

    bench = Bench.__new__(Bench)
    bench.result = {"seconds": {"x": {"trl": [8.0, 2.0, 9.0], "ours": [2.0, 1.0, 1.0], "floor": 0.5}}}
    bench.speedup("x", "key")
    assert bench.result["key"] == 4.0


# ---------------------------------------------------------------- floor


def test_floor_of_training_by_hand() -> None:
    """d = 4, so q = 8 and k = v = 4 wide: a layer has 8 * (8 + 8 + 4 + 4) + 3 * 8 * 16 = 576 weights, two have N = 1152.
    Tokens: 6 + 3 * 1 = 9, the last of each completion left out; (query, key) pairs: 21 + 3 * (6 + 1) = 42.
    Linear 2 * 1152 * 9 * 2 = 41472; attention 4 * 2 * 8 * 42 * 3 = 8064; head 2 * 8 * 10 * 6 * 2 = 1920.
    Vision: 4 tokens of 16 patches, one window. A block has 4 * 16 + 3 * 32 = 160 weights, the embedding 1176 * 4 = 4704, the merger
    16 * 16 + 16 * 8 = 384:
    2 * 16 * (2 * 160 + 4704) + 2 * 4 * 384 = 163840; attention 4 * 16 * (16 + 16) * 4 = 8192."""
    assert floor.linear_parameters(SMALL) == 1152
    assert floor.vision(SMALL) == floor.Work(163_840 + 8_192)
    assert floor.training(SMALL, seen=True) == floor.Work(41_472 + 8_064 + 1_920)
    assert floor.training(SMALL) == floor.Work(41_472 + 8_064 + 1_920 + 163_840 + 8_192)


def test_windows_of_the_tower_have_64_patches() -> None:
    """112 pixels are 64 patches, 224 are 256: with full attention in one block of two, 4 * T * (T + 64) * 4."""
    for image_px, patches in ((112, 64), (224, 256)):
        shape = replace(SMALL, image_px=image_px)
        linear = 2 * patches * (2 * 160 + 4704) + 2 * (patches // 4) * 384
        assert floor.vision(shape).flops - linear == 16 * patches * (patches + 64)


def test_floor_of_a_rollout_by_hand() -> None:
    """The prompt gives the first token; one more is decoded for each of three rows, and reads 6 tokens of the prompt and itself.
    Bytes at 4 each: weights 4 * (1152 + 80) = 4928 once, keys and values 4 * 2 * 2 * 4 = 64 per token, times 6 + 3.
    FLOPs: vision 172032; prompt 2 * 1152 * 6 + 4 * 2 * 8 * 21 + 2 * 8 * 10; completions 2 * 1152 * 3 + 4 * 2 * 8 * 21 + 2 * 8 * 10 * 3.
    Two prompts at once take twice the FLOPs and the same weights."""
    prefill, decoding = floor.rollout(SMALL, 4)
    assert prefill == floor.Work(172_032 + 13_824 + 1_344 + 160)
    assert decoding == floor.Work(6_912 + 1_344 + 480, 4928 + 64 * 9)
    assert floor.rollout(SMALL, 4, 2) == [prefill.times(2), floor.Work(2 * 8_736, 4928 + 2 * 64 * 9)]


def test_floor_of_a_pair_and_its_seconds() -> None:
    """20 tokens shared, 3 and 4 own: pairs 210 + 60 + 6 + 80 + 10 = 366; head 2 * 8 * 2 * 2 * 2 = 128.
    At 100 FLOP/s and 10 bytes/s, 50 FLOPs with 20 bytes take 2 s, the larger; 300 FLOPs after them take 3 s."""
    decoder = 2 * 1152 * 27 * 2 + 4 * 2 * 8 * 366 * 3
    assert floor.selection(SMALL, 20, [3, 4]) == floor.Work(2 * 172_032 + decoder + 128)
    assert floor.image_processing(10, 20, 4) == floor.Work(0, 600 + 4 * 16 * 1176)
    assert floor.seconds([floor.Work(50, 20), floor.Work(300)], Machine(100, 10)) == 5


def test_rho() -> None:
    """8 * 332 / 556 and 8 * 428 / 1324, as in the facts on the engine."""
    assert Shape().rho == pytest.approx(4.777, abs=1e-3)
    assert Shape(completion_tokens=128).rho == pytest.approx(2.586, abs=1e-3)
