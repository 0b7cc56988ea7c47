"""The policy: vision features computed once, option logits, checkpointing and chunking that change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    ask,
    gradients,
    image_pair,
    noise_image,
    plain_model,
    random_ids,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import reference
from vlm_contextrl.config import LoraSettings
from vlm_contextrl.packing import Continuation, PackedBatch, PackedRow, pack, share_starts
from vlm_contextrl.policy import FeatureCache, ImageFeatures, Policy
from vlm_contextrl.probe import contexts, selection_prompt
from vlm_contextrl.processing import EncodedPrompt

LORA = LoraSettings(rank=4, alpha=8)


def shared_image_batch(policy: Policy) -> tuple[PackedBatch, list[EncodedPrompt], list[Tensor]]:
    """Two rows about one image, one about two images, one of them the same again: two distinct images, four
    uses."""
    a, b = noise_image(1), noise_image(2, 84, 28)
    prompts = [
        ask(policy.processor, "How many?", [a]),
        ask(policy.processor, "Which colour is it?", [a]),
        ask(policy.processor, "Which is larger?", [b, a]),
    ]
    completions = [random_ids(i, 2 + i) for i in range(3)]
    rows = [PackedRow(p, (Continuation(c),)) for p, c in zip(prompts, completions, strict=True)]
    return pack(rows, policy.positions, policy.processor.tokenizer.pad_token_id), prompts, completions


def logps_of(policy: Policy, batch: PackedBatch, temperature: float = 1.0) -> Tensor:
    logps_L = policy(packed=batch, temperature=temperature)[0]
    assert logps_L is not None
    return logps_L


def grads_of(policy: Policy, batch: PackedBatch) -> dict[str, Tensor]:
    logps_L = logps_of(policy, batch)
    (logps_L * torch.linspace(-1, 1, len(logps_L))).sum().backward()
    return gradients(policy)


def vision_calls(policy: Policy) -> list[int]:
    """Number of images in each run of the vision tower from now on."""
    calls: list[int] = []
    policy.base.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs.get("grid_thw", args[-1]))), with_kwargs=True
    )
    return calls


# ---------------------------------------------------------------- vision features


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_frozen_tower_runs_once_per_image(family: str, tuning: str, qwen_folders: dict[str, Path]) -> None:
    """Two distinct images, then none, whether the forward has gradients or not; a third is added."""
    policy = tiny_policy(qwen_folders[family], tuning=tuning, train_vision=False, lora=LORA)
    calls, (batch, prompts, _) = vision_calls(policy), shared_image_batch(policy)
    grads_of(policy, batch)
    with torch.no_grad():
        logps_of(policy, batch)
        policy.option_logits(prompts, [65, 66])
    assert calls == [1, 1]
    policy.option_logits([*prompts, ask(policy.processor, "Why?", [noise_image(3)])], [65, 66])
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_tower_has_no_graph(family: str, qwen_folders: dict[str, Path]) -> None:
    """With adapters in the language model, the tower runs without gradients and gets none."""
    policy = tiny_policy(qwen_folders[family], tuning="lora", lora=LORA)
    recorded: list[bool] = []
    policy.base.model.visual.register_forward_pre_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    batch, _, _ = shared_image_batch(policy)
    names = grads_of(policy, batch).keys()
    assert recorded == [False, False]
    assert names
    assert all("language_model" in name and "lora_" in name for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_the_tower_get_gradients(family: str, qwen_folders: dict[str, Path]) -> None:
    """B starts at zero, so only B has a gradient at first; every B of the tower must have one."""
    lora = LoraSettings(rank=4, alpha=8, vision=True)
    policy = tiny_policy(qwen_folders[family], tuning="lora", lora=lora)
    grads = grads_of(policy, shared_image_batch(policy)[0])
    of_tower = {name: g for name, g in grads.items() if ".visual." in name and "lora_B" in name}
    assert len(of_tower) == {"qwen2_5_vl": 2 * 5 + 2, "qwen3_vl": 2 * 4 + 4}[family]
    assert all(float(g.abs().max()) > 0 for g in of_tower.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_tower_runs_once_per_batch(family: str, qwen_folders: dict[str, Path]) -> None:
    """Two distinct images, four uses: one run of two; the gradient is that of the repeated computation."""
    policy = tiny_policy(qwen_folders[family])
    calls, (batch, prompts, completions) = vision_calls(policy), shared_image_batch(policy)
    found = grads_of(policy, batch)
    assert calls == [2]

    oracle = Policy(plain_model(qwen_folders[family]), policy.processor)
    logps_L = torch.cat(reference.completion_logps(oracle.base, oracle.processor, prompts, completions, 1.0))
    (logps_L * torch.linspace(-1, 1, len(logps_L))).sum().backward()
    expected = gradients(oracle)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert worst_difference(found, expected) < 1e-5 * largest


def test_features_of_a_trained_tower_are_not_kept(qwen_folders: dict[str, Path]) -> None:
    """Not under no_grad either: the next update changes them."""
    policy = tiny_policy(qwen_folders["qwen3_vl"])
    batch, _, _ = shared_image_batch(policy)
    with torch.no_grad():
        before = logps_of(policy, batch)
        for parameter in policy.base.model.visual.parameters():
            parameter.mul_(1.5)
        after = logps_of(policy, batch)
    assert float((after - before).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_features_do_not_depend_on_the_batch(family: str, qwen_folders: dict[str, Path]) -> None:
    """To the bit, with two threads as well: otherwise a resumed run, whose cache starts empty, would differ."""
    policy = tiny_policy(qwen_folders[family], train_vision=False)
    images = [policy.processor.process_image(noise_image(n, 56 + 28 * (n % 3))) for n in range(6)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for chunk in (6, 4, 1):
            policy._cache = FeatureCache(1)
            for start in range(0, 6, chunk):
                policy.encoder_outputs(images[start : start + chunk])
            found.append([policy._cache.get(image.key) for image in images])
    finally:
        torch.set_num_threads(threads)
    for together, in_fours, alone in zip(*found, strict=True):
        assert together is not None
        for other in (in_fours, alone):
            assert other is not None
            assert torch.equal(together.tokens_NH, other.tokens_NH)
            assert all(torch.equal(a, b) for a, b in zip(together.deepstack, other.deepstack, strict=True))


def features(mib: float) -> ImageFeatures:
    return ImageFeatures(torch.zeros(int(mib * 2**20 / 4)))


def test_cache_evicts_what_was_used_least_recently() -> None:
    """Room for 1 MiB, three features of 0.4 MiB: the third pushes out b, because a was read in between."""
    cache = FeatureCache(1.0)
    cache.put("a", features(0.4))
    cache.put("b", features(0.4))
    assert cache.get("a") is not None
    cache.put("c", features(0.4))
    assert [key for key in "abc" if cache.get(key) is not None] == ["a", "c"]
    assert cache.n_bytes <= cache.max_bytes


def test_cache_counts_a_key_once() -> None:
    cache = FeatureCache(1.0)
    for _ in range(5):
        cache.put("a", features(0.4))
    assert cache.n_bytes == features(0.4).nbytes()


def test_deepstack_counts_as_memory() -> None:
    layer = torch.zeros(2, 3)
    assert ImageFeatures(layer, (layer, layer)).nbytes() == 3 * 6 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_results_do_not_depend_on_the_cache(family: str, qwen_folders: dict[str, Path]) -> None:
    """A cache with room for nothing keeps one entry and changes no number."""
    large = tiny_policy(qwen_folders[family], train_vision=False)
    small = tiny_policy(qwen_folders[family], train_vision=False, feature_cache_mib=1e-6)
    batch, _, _ = shared_image_batch(large)
    calls = vision_calls(small)
    for _ in range(2):
        torch.testing.assert_close(logps_of(small, batch), logps_of(large, batch), rtol=0, atol=1e-5)
    assert len(small._cache._items) == 1
    assert calls == [1, 1, 1]  # the image that stayed is the one put last


def test_cached_features_own_their_memory(qwen_folders: dict[str, Path]) -> None:
    """Not a slice of the batch they were computed in, which would keep the whole batch alive."""
    policy = tiny_policy(qwen_folders["qwen3_vl"], train_vision=False)
    logps_of(policy, shared_image_batch(policy)[0])
    kept = list(policy._cache._items.values())
    assert len(kept) == 2
    for item in kept:
        for tensor in (item.tokens_NH, *item.deepstack):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert policy._cache.n_bytes == sum(item.nbytes() for item in kept)


# ---------------------------------------------------------------- one set of numbers


@pytest.mark.parametrize("settings", [{}, {"tuning": "lora", "lora": LORA}, {"train_vision": False}])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(
    family: str, settings: dict[str, object], qwen_folders: dict[str, Path]
) -> None:
    """Recomputed activations, the same gradient; and they really are recomputed."""
    plain = tiny_policy(qwen_folders[family], **settings)
    checkpointed = tiny_policy(qwen_folders[family], gradient_checkpointing=True, **settings)
    runs: list[int] = []
    mlp = checkpointed.base.model.language_model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    batch, _, _ = shared_image_batch(plain)
    expected, found = grads_of(plain, batch), grads_of(checkpointed, batch)
    assert len(runs) == 2
    assert worst_difference(found, expected) < 1e-6


def test_temperature_and_entropy(qwen_folders: dict[str, Path]) -> None:
    """log softmax(logits / T) at the label, and -sum p log p of the same distribution, from the full logits."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    batch, prompts, completions = shared_image_batch(policy)
    with torch.no_grad():
        logps_L, entropy_L, _ = policy(packed=batch, temperature=0.5)
        model = plain_model(qwen_folders["qwen2_5_vl"])
        inputs = reference.model_inputs(prompts, completions, policy.processor)
        logits_BTV = model(**inputs).logits / 0.5
    at = [(b, len(p) - 1 + t) for b, p in enumerate(prompts) for t in range(len(completions[b]))]
    log_p_LV = torch.stack([logits_BTV[b, t] for b, t in at]).log_softmax(-1)
    expected_L = log_p_LV[torch.arange(len(at)), torch.cat(completions)]
    torch.testing.assert_close(logps_L, expected_L, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy_L, -(log_p_LV.exp() * log_p_LV).sum(-1), rtol=0, atol=1e-5)
    assert not entropy_L.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_option_logits_are_those_of_the_full_forward(family: str, qwen_folders: dict[str, Path]) -> None:
    """Selection prompts of two images and three lengths, each pair in both directions: rows 65 and 66 of the LM head at the last position
    of each, and the gradient of a margin, as in the plain model that sees every prompt whole. The directions share their images."""
    policy = tiny_policy(qwen_folders[family])
    oracle = Policy(plain_model(qwen_folders[family]), policy.processor)
    pairs = [image_pair(n) for n in range(3)]
    shown = [contexts(policy.processor, p) for p in pairs]
    prompts = [selection_prompt(policy.processor, p, images) for p, images in zip(pairs, shown, strict=True)]
    assert len({len(p) for p in prompts}) == 3
    backwards = [p.reversed() for p in pairs]
    prompts += [selection_prompt(policy.processor, p, i) for p, i in zip(backwards, shown, strict=True) if p]
    rows, order = share_starts(prompts, policy.processor.image_token_id)
    assert order == [0, 3, 1, 4, 2, 5]
    assert [len(row.continuations) for row in rows] == [2, 2, 2]
    logits_BO = policy(selection=prompts, option_ids=[65, 66])[2]
    inputs = reference.model_inputs(prompts, [torch.empty(0, dtype=torch.long)] * 6, policy.processor)
    full_BTV = oracle.base(**inputs).logits
    expected_BO = torch.stack([full_BTV[b, len(p) - 1, [65, 66]] for b, p in enumerate(prompts)])
    torch.testing.assert_close(logits_BO, expected_BO, rtol=0, atol=1e-5)
    with torch.no_grad():
        one_row_at_a_time = policy.option_logits(prompts, [65, 66], budget_tokens=1)
    torch.testing.assert_close(one_row_at_a_time, expected_BO, rtol=0, atol=1e-5)
    (logits_BO[:, 0] - logits_BO[:, 1]).sum().backward()
    (expected_BO[:, 0] - expected_BO[:, 1]).sum().backward()
    expected = gradients(oracle)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert worst_difference(gradients(policy), expected) < 1e-5 * largest


def test_trained_tokens_by_hand(qwen_folders: dict[str, Path]) -> None:
    """Three rows of a prompt and 2, 3, 4 more tokens, each row without the last one, which predicts nothing; the padding of the
    shorter rows and what runs without gradient do not count. Two prompts with a common start are run as one row."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    batch, prompts, _ = shared_image_batch(policy)
    with torch.no_grad():
        logps_of(policy, batch)
    assert policy.trained_tokens == 0
    logps_of(policy, batch)
    assert policy.trained_tokens == sum(len(p) - 1 for p in prompts) + 2 + 3 + 4
    policy.trained_tokens = 0
    policy.option_logits([prompts[0], prompts[0]], [65, 66])
    assert len(prompts[0]) <= policy.trained_tokens < 2 * len(prompts[0])


def test_padding_by_hand(qwen_folders: dict[str, Path]) -> None:
    """Two text prompts of 3 and 2 tokens, padded on the left; positions stay with their tokens."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    prompts = [EncodedPrompt(torch.tensor([1, 2, 3])), EncodedPrompt(torch.tensor([4, 5]))]
    pad = policy.processor.tokenizer.pad_token_id
    ids, positions = policy.pad(prompts)
    assert ids.tolist() == [[1, 2, 3], [pad, 4, 5]]
    assert positions[2].tolist() == [[0, 1, 2], [0, 0, 1]]


def test_one_forward_for_both_questions(qwen_folders: dict[str, Path]) -> None:
    """A wrapper such as DDP sees one call that gives log-probs and option logits."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"])
    batch, prompts, _ = shared_image_batch(policy)
    logps_L, entropy_L, logits_BO = policy(packed=batch, selection=prompts, option_ids=[65, 66])
    assert (len(logps_L), len(entropy_L), logits_BO.shape) == (9, 9, (3, 2))
    assert policy(selection=prompts, option_ids=[65, 66])[:2] == (None, None)
