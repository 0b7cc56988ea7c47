"""The vLLM engine: what it hands over, against a stand-in for vLLM; and, where vLLM is installed, what it samples against rollout.sample.

    VLLM_CPU_KVCACHE_SPACE=1 pytest -m slow tests/test_vllm_engine.py     # the tests with the real one

The stand-in records what it is given. It samples what the test says, so the numbers of these tests are read off, not computed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_models
from tests.test_rollout import forbidden_ids, ids_of
from tests.test_rollout import prompts_of as short_prompts_of
from tests.tiny_models import (
    FAMILIES,
    ask,
    byte_tokenizer,
    noise_image,
    plain_model,
    records,
    run_config,
    tiny_policy,
    write_model_folder,
)
from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import ConfigError, InputError, MissingExtraError
from vlm_contextrl.packing import Continuation, PackedRow, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.rollout import Completion, sample
from vlm_contextrl.trainer import train
from vlm_contextrl.vllm_engine import VllmEngine, checkpoint_weights, collapse_placeholders, image_embeds

INSTALLED = importlib.util.find_spec("vllm") is not None
LORA: dict[str, Any] = {"tuning": "lora", "lora": {"rank": 4, "alpha": 8}}


# ---------------------------------------------------------------- a stand-in for vLLM


class FakeLLM:
    """Takes what vllm.LLM takes. `answers` are the ids of the completions that it gives to every prompt."""

    answers: tuple[tuple[int, ...], ...] = ((65, 66),)

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(options["seed"])
        random.seed(options["seed"])
        np.random.seed(options["seed"])
        self.options = options
        self.weights: dict[str, Tensor] = {}
        self.calls: list[str] = []
        head = SimpleNamespace(
            quant_method=SimpleNamespace(process_weights_after_loading=lambda head: self.calls.append("head"))
        )
        language_model = SimpleNamespace(logits_processor=SimpleNamespace(scale=1.0), lm_head=head)
        self.model = SimpleNamespace(get_language_model=lambda: language_model)
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("features"))

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(method)
        self.weights = {name: value.clone() for name, value in kwargs["weights_iterator"]}

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self.model)]

    def reset_prefix_cache(self) -> bool:
        self.calls.append("prefixes")
        return True

    def generate(self, requests: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.requests, self.params = requests, params
        self.scale = self.model.get_language_model().logits_processor.scale
        return [self._output(r, p) for r, p in zip(requests, params, strict=True)]

    def _output(self, request: dict[str, Any], params: Any) -> Any:
        grids = request.get("multi_modal_data", {}).get("image", {}).get("image_grid_thw", [])
        n_tokens = len(request["prompt_token_ids"]) + sum(int(g.prod()) // 4 - 1 for g in grids)
        outputs = [
            SimpleNamespace(
                token_ids=ids, logprobs=[{token: SimpleNamespace(logprob=-0.5 * token)} for token in ids]
            )
            for ids in self.answers[: params.n]
        ]
        return SimpleNamespace(prompt_token_ids=[0] * n_tokens, outputs=outputs)


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `vllm` with an LLM class of its own, whose answers a test may set."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "1")  # what the engine sets is undone with it
    module = SimpleNamespace(LLM=type("LLM", (FakeLLM,), {}), SamplingParams=lambda **o: SimpleNamespace(**o))
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]  # a stand-in
    return module


def engine_of(policy: Policy, folder: Path, **settings: Any) -> VllmEngine:
    model = ModelSettings(path=str(folder), **settings)
    return VllmEngine(model, policy.processor, max_model_len=1024, max_images=2, gpu_memory_share=0.2, seed=0)


def prompts_of(policy: Policy) -> list[EncodedPrompt]:
    """Those of the other engine's tests, and one of more than 128 tokens: vLLM keeps the caches of whole blocks of prompts."""
    long = ask(policy.processor, "Count once more. " * 20, [noise_image(4)])
    return [*short_prompts_of(policy), long]


def drawn(
    engine: VllmEngine, policy: Policy, n: int = 2, temperature: float = 1.0, **options: Any
) -> list[list[Completion]]:
    settings: dict[str, Any] = {"max_new_tokens": 8, "seeds": [5, 6, 7, 8]} | options
    return engine.sample(policy, prompts_of(policy), n, temperature=temperature, **settings)


# ---------------------------------------------------------------- what is handed over


def test_placeholders_collapse_to_one_per_image() -> None:
    """Images of 3 and 2 visual tokens side by side, where only their numbers of tokens tell them apart."""
    image = lambda n: SimpleNamespace(n_tokens=n)  # noqa: E731
    prompt: Any = SimpleNamespace(
        ids_T=torch.tensor([1, 9, 9, 9, 9, 9, 2, 9, 3]), images=(image(3), image(2), image(1))
    )
    assert collapse_placeholders(prompt, 9) == [1, 9, 9, 2, 9, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_go_as_the_tower_gives_them(
    family: str, qwen_folders: dict[str, Path], fake_vllm: Any
) -> None:
    """Two images of 2 x 6 and 4 x 4 patches; against the tower of an untouched model, deepstack side by side."""
    policy = tiny_policy(qwen_folders[family], trainable=False)
    engine = engine_of(policy, qwen_folders[family])
    engine.sync(policy)
    drawn(engine, policy)
    one, text, two, _ = engine._llm.requests
    assert "multi_modal_data" not in text
    assert len(one["multi_modal_data"]["image"]["image_grid_thw"]) == 1
    data = two["multi_modal_data"]["image"]
    prompt = prompts_of(policy)[2]
    patches = torch.cat([i.patches_ND for i in prompt.images])
    with torch.no_grad():
        out = plain_model(qwen_folders[family]).model.get_image_features(
            patches, data["image_grid_thw"], return_dict=True
        )
    parts = [torch.cat(list(out.pooler_output))]
    parts += [torch.cat(list(layer)) for layer in getattr(out, "deepstack_features", None) or []]
    assert len(parts) == (2 if family == "qwen3_vl" else 1)
    torch.testing.assert_close(data["image_embeds"], torch.cat(parts, -1), rtol=0, atol=1e-5)
    images = 2 if family == "qwen3_vl" else 0  # 0: no tower is made, which would cost Qwen3-VL its deepstack
    assert engine._llm.options["limit_mm_per_prompt"] == {"image": images, "video": 0}


def test_features_of_a_trained_tower_follow_its_weights(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen3_vl"])
    prompt = prompts_of(policy)[0]
    with torch.no_grad():
        before = image_embeds(policy, prompt)[0]
        perturb(policy, "model.visual.")
        assert not torch.equal(image_embeds(policy, prompt)[0], before)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_a_full_policy_are_handed_over_as_they_are(
    family: str, qwen_folders: dict[str, Path], fake_vllm: Any
) -> None:
    """Names and values of an untouched model, the vision tower left out. Cached prompts and features of the old weights go."""
    policy = tiny_policy(qwen_folders[family])
    engine = engine_of(policy, qwen_folders[family])
    engine.sync(policy)
    assert_same_weights(engine._llm.weights, language_weights(plain_model(qwen_folders[family])))
    assert engine._llm.calls == ["reload_weights", "head", "prefixes", "features"]
    with torch.no_grad():
        policy.base.lm_head.weight[3] += 1
    engine.sync(policy)
    assert torch.equal(engine._llm.weights["lm_head.weight"], policy.base.lm_head.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_merged_on_the_way(family: str, qwen_folders: dict[str, Path], fake_vllm: Any) -> None:
    """W + B A alpha / rank, worked out from the adapter's own tensors for one matrix, and by PEFT's merge for all of them."""
    policy = tiny_policy(qwen_folders[family], **LORA)
    perturb(policy, "lora_B")
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    engine = engine_of(policy, qwen_folders[family], **LORA)
    engine.sync(policy)
    name = "model.language_model.layers.1.mlp.up_proj"
    layer = policy.base.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    by_hand = (layer.base_layer.weight + b @ a * 8 / 4).detach()
    assert not torch.allclose(by_hand, layer.base_layer.weight, atol=0.01)
    torch.testing.assert_close(engine._llm.weights[f"{name}.weight"], by_hand, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())
    handed_over = engine._llm.weights
    policy.model.merge_adapter()
    merged = {name.replace(".base_layer.", "."): p for name, p in language_weights(policy.base).items()}
    assert_same_weights(handed_over, {n: p for n, p in merged.items() if ".lora_" not in n}, atol=1e-6)
    # As while the other engine samples: an adapter that is part of the weights is not added twice.
    engine.sync(policy)
    assert_same_weights(engine._llm.weights, handed_over, atol=1e-6)


def test_weights_are_rounded_to_the_precision_of_products(
    qwen_folders: dict[str, Path], fake_vllm: Any
) -> None:
    """Float32 weights under autocast go as bfloat16, like features; float32 without it stays."""
    folder = qwen_folders["qwen2_5_vl"]
    policy = tiny_policy(folder, autocast="bf16")
    engine = engine_of(policy, folder, autocast="bf16")
    engine.sync(policy)
    drawn(engine, policy)
    expected = plain_model(folder).lm_head.weight.to(torch.bfloat16)
    assert torch.equal(engine._llm.weights["lm_head.weight"], expected)
    assert {w.dtype for w in engine._llm.weights.values()} == {torch.bfloat16}
    assert engine._llm.requests[0]["multi_modal_data"]["image"]["image_embeds"].dtype == torch.bfloat16
    assert engine._llm.options["dtype"] == "bfloat16"
    assert engine_of(policy, folder)._llm.options["dtype"] == "float32"


# ---------------------------------------------------------------- how it samples


def test_sampling_parameters(qwen_folders: dict[str, Path], fake_vllm: Any) -> None:
    """Temperature 0.5 is a scale of 2; seeds 5, 6, ... of two completions each become 10, 12, ..., so that 5 and 6 never share one."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    fake_vllm.LLM.answers = ((65, 66), (67, 258))
    engine = engine_of(policy, qwen_folders["qwen2_5_vl"])
    engine.sync(policy)
    drawn(engine, policy, temperature=0.5)
    llm = engine._llm
    assert llm.scale == 2.0
    assert [p.seed for p in llm.params] == [10, 12, 14, 16]
    assert {(p.n, p.temperature, p.max_tokens, p.logprobs) for p in llm.params} == {(2, 1.0, 8, 0)}
    assert set(llm.params[0].logit_bias) == set(forbidden_ids(policy))
    assert set(llm.params[0].stop_token_ids) == set(policy.processor.end_ids)
    groups = drawn(engine, policy, n=3, temperature=0)
    assert llm.scale == 1.0
    assert {(p.n, p.temperature) for p in llm.params} == {(1, 0.0)}
    assert ids_of(groups) == [[[65, 66]] * 3] * 4


def test_completions_end_with_the_end_token_or_are_truncated(
    qwen_folders: dict[str, Path], fake_vllm: Any
) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    end = policy.processor.tokenizer.eos_token_id
    fake_vllm.LLM.answers = ((65, end), (65, 66, 67))
    engine = engine_of(policy, qwen_folders["qwen2_5_vl"])
    engine.sync(policy)
    for ended, cut in drawn(engine, policy):
        assert (ended.ids.tolist(), ended.truncated) == ([65, end], False)
        assert (cut.ids.tolist(), cut.truncated) == ([65, 66, 67], True)
        assert cut.logps.tolist() == [-32.5, -33.0, -33.5]
        assert (cut.ids.dtype, cut.logps.dtype) == (torch.long, torch.float32)


def test_one_process_without_usage_reports(qwen_folders: dict[str, Path], fake_vllm: Any) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    os.environ.pop("VLLM_NO_USAGE_STATS")
    engine_of(policy, qwen_folders["qwen2_5_vl"])
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_the_engine_leaves_random_numbers_alone(qwen_folders: dict[str, Path], fake_vllm: Any) -> None:
    """vLLM seeds torch, random and numpy; what follows in the run is as without it."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)

    def numbers(start: bool) -> tuple[float, float, float]:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if start:
            engine_of(policy, qwen_folders["qwen2_5_vl"])
        return float(torch.rand(1)), random.random(), float(np.random.rand())

    assert numbers(True) == numbers(False)


# ---------------------------------------------------------------- what is refused


def test_without_vllm(qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # type: ignore[arg-type]  # makes the import fail
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlm-contextrl\[vllm\]'"):
        engine_of(policy, qwen_folders["qwen2_5_vl"])


def test_weights_in_4_bits_are_refused(noise_rows: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="vllm cannot take weights in 4 bits"):
        run_config(
            Path("x"), noise_rows, model={"quantization": "nf4", "tuning": "lora"}, rollout={"engine": "vllm"}
        )


def test_the_trainer_samples_with_it(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path, fake_vllm: Any
) -> None:
    """`rollout.engine: vllm`: weights are handed over before each of two rollouts, and prompts fit the length that the engine was given."""
    fake_vllm.LLM.answers = ((65, 66), (67,), (68, 69, 70))
    engines: list[FakeLLM] = []
    original = FakeLLM.__init__

    def kept(self: FakeLLM, **options: Any) -> None:
        original(self, **options)
        engines.append(self)

    with patch.object(FakeLLM, "__init__", kept):
        config = run_config(qwen_folders["qwen2_5_vl"], noise_rows, steps=2, rollout={"engine": "vllm"})
        train(config, tmp_path / "run")
    (engine,) = engines
    assert engine.calls.count("reload_weights") == 2
    assert engine.options["max_model_len"] == config.data.max_prompt_tokens + 4
    texts = [byte_tokenizer().decode(ids) for ids in fake_vllm.LLM.answers]
    assert [each["completions"] for each in records(tmp_path / "run", "samples")] == [texts] * 4


def test_several_processes_are_refused(
    qwen_folders: dict[str, Path], fake_vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"vllm samples in one process, found 2"):
        engine_of(policy, qwen_folders["qwen2_5_vl"])


def test_vllm_that_does_not_start(qwen_folders: dict[str, Path], fake_vllm: Any) -> None:
    def start(**options: Any) -> None:
        raise ValueError("Free memory on device is less than desired\nmore lines")

    fake_vllm.LLM = start
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    with pytest.raises(
        InputError, match=r"vLLM does not start: Free memory .*rollout.vllm_memory_share"
    ) as caught:
        engine_of(policy, qwen_folders["qwen2_5_vl"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}],
    ids=["dora", "bias", "whole modules"],
)
def test_adapters_that_are_no_sum_are_refused(options: dict[str, Any], qwen_folders: dict[str, Path]) -> None:
    from peft import LoraConfig, get_peft_model

    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", **options)
    policy.model = get_peft_model(policy.model, config)
    with pytest.raises(InputError, match=r"vLLM takes an adapter only where it adds to a matrix"):
        list(checkpoint_weights(policy, torch.float32))


def perturb(policy: Policy, part: str) -> None:
    """Add noise to all parameters whose name holds `part`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.base.named_parameters():
            if part in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def language_weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith("model.visual.")}


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol)


# ---------------------------------------------------------------- the real one

real = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="needs the extra vllm"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]


def _real(test: Any) -> Any:
    for mark in real:
        test = mark(test)
    return test


@pytest.fixture(scope="module", params=FAMILIES)
def vllm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads of 32: vLLM's attention takes no smaller ones. Qwen2.5-VL's LM head is the embedding."""

    def wider(family: str, tokenizer: Any) -> Any:
        config = narrow(family, tokenizer)
        text = config.text_config
        text.head_dim, text.num_attention_heads, text.num_key_value_heads = 32, 2, 1
        text.rope_parameters["mrope_section"] = [4, 6, 6]
        config.tie_word_embeddings = text.tie_word_embeddings = family == "qwen2_5_vl"
        return config

    narrow = tiny_models.tiny_config
    with patch.object(tiny_models, "tiny_config", wider):
        return write_model_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def real_engine(vllm_folder: Path) -> Iterator[VllmEngine]:
    policy = tiny_policy(vllm_folder, trainable=False)
    engine = engine_of(policy, vllm_folder)
    yield engine
    engine.close()


def greedy(engine: VllmEngine, policy: Policy) -> tuple[list[list[Completion]], list[float]]:
    """vLLM's greedy completions, and all their log-probs."""
    groups = drawn(engine, policy, temperature=0, max_new_tokens=12)
    return groups, torch.cat([c.logps for group in groups for c in group]).tolist()


def assert_samples_alike(engine: VllmEngine, policy: Policy) -> tuple[list[list[Completion]], list[float]]:
    """Greedy completions of both engines are the same ids, their log-probs within 1e-4 nats (float32)."""
    ours = sample(policy, prompts_of(policy), 2, max_new_tokens=12, temperature=0)
    theirs, logps = greedy(engine, policy)
    assert ids_of(theirs) == ids_of(ours)
    for a, b in zip((c for g in ours for c in g), (c for g in theirs for c in g), strict=True):
        torch.testing.assert_close(a.logps, b.logps, rtol=0, atol=1e-4)
        assert a.truncated == b.truncated
    return theirs, logps


@_real
def test_real_greedy_equals_rollout_after_every_sync(vllm_folder: Path, real_engine: VllmEngine) -> None:
    """From the start, after all weights changed (the tower's, too), and with an adapter that is changed again. Every change is
    seen in the log-probs, and only once it was handed over."""
    policy = tiny_policy(vllm_folder)
    real_engine.sync(policy)
    seen = [assert_samples_alike(real_engine, policy)[1]]
    perturb(policy, "language_model")
    assert greedy(real_engine, policy)[1] == pytest.approx(seen[0], abs=1e-5)
    real_engine.sync(policy)
    seen.append(assert_samples_alike(real_engine, policy)[1])
    perturb(policy, "visual")  # no hand-over: the features carry it
    seen.append(assert_samples_alike(real_engine, policy)[1])
    policy = tiny_policy(vllm_folder, **LORA)
    for _ in range(2):
        perturb(policy, "lora_B")
        real_engine.sync(policy)
        seen.append(assert_samples_alike(real_engine, policy)[1])
    assert all(a != pytest.approx(b, abs=1e-3) for a, b in itertools.pairwise(seen))


@_real
def test_real_log_probs_are_the_policys_at_any_temperature(
    vllm_folder: Path, real_engine: VllmEngine
) -> None:
    """Of sampled tokens, against the training forward at the same temperature; seeds repeat, others differ."""
    policy = tiny_policy(vllm_folder, trainable=False)
    real_engine.sync(policy)
    for temperature in (1.0, 0.6):
        groups = drawn(real_engine, policy, n=4, temperature=temperature)
        assert ids_of(drawn(real_engine, policy, n=4, temperature=temperature)) == ids_of(groups)
        assert ids_of(
            drawn(real_engine, policy, n=4, temperature=temperature, seeds=[9, 10, 11, 12])
        ) != ids_of(groups)
        assert all(len({tuple(c.ids.tolist()) for c in group}) == 4 for group in groups)
        for prompt, group in zip(prompts_of(policy), groups, strict=True):
            row = PackedRow(prompt, tuple(Continuation(c.ids) for c in group))
            with torch.no_grad():
                logps_L = policy(packed=pack([row], policy.positions, 256), temperature=temperature)[0]
            torch.testing.assert_close(torch.cat([c.logps for c in group]), logps_L, rtol=0, atol=1e-4)


@_real
def test_real_frequencies_follow_the_temperature(vllm_folder: Path, real_engine: VllmEngine) -> None:
    """First tokens of 2,000 completions against the policy's own probabilities: within five standard errors."""
    policy = tiny_policy(vllm_folder, trainable=False)
    real_engine.sync(policy)
    n, prompt = 2000, ask(policy.processor, "How many?", [noise_image(1)])
    (group,) = real_engine.sample(policy, [prompt], n, max_new_tokens=1, temperature=2.0, seeds=[3])
    counts_V = torch.bincount(torch.tensor([int(c.ids[0]) for c in group]), minlength=256)
    rows = [PackedRow(prompt, tuple(Continuation(torch.tensor([v])) for v in range(256)))]  # all bytes
    with torch.no_grad():
        p_V = policy(packed=pack(rows, policy.positions, 256), temperature=2.0)[0].exp()
    error_V = (p_V * (1 - p_V) / n).sqrt()
    assert int((counts_V > 0).sum()) > 5
    assert bool(((counts_V[:256] / n - p_V).abs() < 5 * error_V + 1e-3).all())


@_real
def test_real_placeholders_are_never_sampled(vllm_folder: Path, real_engine: VllmEngine) -> None:
    """The head is made to prefer a forbidden token to every byte that it would have written; the log-probs stay
    those of the unrestricted policy."""
    policy = tiny_policy(vllm_folder)
    usual = [
        t for g in sample(policy, prompts_of(policy), 1, max_new_tokens=4, temperature=0) for t in g[0].ids
    ]
    forbidden = forbidden_ids(policy)
    with torch.no_grad():
        for token, byte in zip(forbidden, usual, strict=False):
            policy.base.lm_head.weight[token] = 10 * policy.base.lm_head.weight[byte]
    real_engine.sync(policy)
    groups = assert_samples_alike(real_engine, policy)[0] + drawn(real_engine, policy, n=8)
    sampled = [c for group in groups for c in group]
    assert not {int(t) for c in sampled for t in c.ids} & set(forbidden)
    assert min(float(c.logps.min()) for c in sampled) < -10


@_real
def test_real_ends_and_cuts(vllm_folder: Path, real_engine: VllmEngine) -> None:
    """With a head whose end token is as likely as the likeliest byte, some completions end early and some are cut."""
    policy = tiny_policy(vllm_folder)
    first = sample(policy, prompts_of(policy), 1, max_new_tokens=1, temperature=0)
    end = policy.processor.tokenizer.eos_token_id
    with torch.no_grad():
        policy.base.lm_head.weight[end] = policy.base.lm_head.weight[int(first[0][0].ids[0])]
    real_engine.sync(policy)
    flat = [c for g in drawn(real_engine, policy, n=16) for c in g]
    assert {c.truncated for c in flat} == {True, False}
    for c in flat:
        assert c.truncated == (int(c.ids[-1]) not in policy.processor.end_ids)
        assert not any(t in policy.processor.end_ids for t in c.ids[:-1].tolist())
        assert len(c.logps) == len(c.ids) == 8 or not c.truncated
