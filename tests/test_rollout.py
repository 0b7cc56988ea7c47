"""Sampling against transformers' own `generate`, and sampled log-probs against those of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import FAMILIES, SPECIAL_TOKENS, ask, noise_image, plain_model, tiny_policy
from vlm_contextrl import reference, rollout
from vlm_contextrl.packing import Continuation, PackedRow, pack
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.rollout import Completion, sample

NEVER = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|im_start|>",
)


def prompts_of(policy: Policy) -> list[EncodedPrompt]:
    """Lengths that differ, one image, none, two."""
    processor = policy.processor
    return [
        ask(processor, "How many?", [noise_image(1)]),
        ask(processor, "Why?"),
        ask(processor, "Which of the two is the larger one?", [noise_image(2, 84, 28), noise_image(3)]),
    ]


def drawn(policy: Policy, n: int = 4, seed: int = 0, **settings: Any) -> list[list[Completion]]:
    options = {"max_new_tokens": 6, "temperature": 1.0, "seeds": [seed, seed + 10, seed + 20]} | settings
    return sample(policy, prompts_of(policy), n, **options)


def ids_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.ids.tolist() for c in group] for group in groups]


def forbidden_ids(policy: Policy) -> list[int]:
    return [policy.processor.tokenizer.convert_tokens_to_ids(name) for name in NEVER]


def raise_logits(policy: Policy, ids: list[int], by: float) -> None:
    """Add to the logits of some tokens, whatever the prompt: of the sampler, and of a plain forward of the model."""

    def raised(original: Callable[..., Tensor], *args: Any) -> Tensor:
        logits = original(*args)
        logits[..., ids] += by
        return logits

    for owner, name in ((policy, "next_logits"), (policy.base.lm_head, "forward")):
        setattr(owner, name, partial(raised, getattr(owner, name)))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str, qwen_folders: dict[str, Path]) -> None:
    """Token for token, prompts of three lengths in one left-padded batch."""
    policy = tiny_policy(qwen_folders[family], trainable=False)
    model = plain_model(qwen_folders[family]).eval()
    prompts = prompts_of(policy)
    found = sample(policy, prompts, 1, max_new_tokens=8, temperature=0)
    T = max(len(p) for p in prompts)
    pad = policy.processor.tokenizer.pad_token_id
    ids = torch.stack([torch.cat([torch.full((T - len(p),), pad), p.ids_T]) for p in prompts])
    images = [i for p in prompts for i in p.images]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.stack([(torch.arange(T) >= T - len(p)).long() for p in prompts]),
        mm_token_type_ids=(ids == policy.processor.image_token_id).int(),
        pixel_values=torch.cat([i.patches_ND for i in images]),
        image_grid_thw=torch.tensor([i.grid_thw for i in images]),
        suppress_tokens=forbidden_ids(policy),
        eos_token_id=list(policy.processor.end_ids),
        pad_token_id=pad,
        max_new_tokens=8,
        do_sample=False,
    )[:, T:]
    for (completion,), row in zip(found, out, strict=True):
        assert completion.ids.tolist() == row[: len(completion.ids)].tolist()
        assert completion.truncated == (int(completion.ids[-1]) not in policy.processor.end_ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logps_equal_training_logps(
    family: str, temperature: float, qwen_folders: dict[str, Path]
) -> None:
    """What is sampled with a cache and left padding is what the packed forward trains on: 1e-5 per token."""
    policy = tiny_policy(qwen_folders[family])
    prompts, groups = prompts_of(policy), drawn(policy, temperature=temperature)
    rows = [PackedRow(p, tuple(Continuation(c.ids) for c in g)) for p, g in zip(prompts, groups, strict=True)]
    batch = pack(rows, policy.positions, policy.processor.tokenizer.pad_token_id)
    with torch.no_grad():
        logps_L = policy(packed=batch, temperature=temperature)[0]
    sampled_L = torch.cat([c.logps for g in groups for c in g])
    torch.testing.assert_close(sampled_L, logps_L, rtol=0, atol=1e-5)


def test_batch_composition_does_not_change_greedy_results(qwen_folders: dict[str, Path]) -> None:
    """A prompt alone, in another order, or beside longer ones: the same tokens."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    prompts = prompts_of(policy)
    together = ids_of(sample(policy, prompts, 2, max_new_tokens=6, temperature=0))
    backwards = ids_of(sample(policy, prompts[::-1], 2, max_new_tokens=6, temperature=0))[::-1]
    alone = [ids_of(sample(policy, [p], 2, max_new_tokens=6, temperature=0))[0] for p in prompts]
    assert together == backwards == alone
    assert all(first == second for first, second in together)


def test_same_seed_same_completions(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen3_vl"], trainable=False)
    first = ids_of(drawn(policy, seed=1))
    assert ids_of(drawn(policy, seed=1)) == first
    assert ids_of(drawn(policy, seed=2)) != first


def test_frequencies_follow_the_temperature(qwen_folders: dict[str, Path]) -> None:
    """The first tokens of 2,000 completions against the policy's own probabilities of single bytes: each
    frequency within five standard errors."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    n, prompt = 2000, prompts_of(policy)[1]
    (group,) = sample(policy, [prompt], n, max_new_tokens=1, temperature=0.5, seeds=[0])
    counts_V = torch.bincount(
        torch.tensor([int(c.ids[0]) for c in group]), minlength=256 + len(SPECIAL_TOKENS)
    )
    rows = [PackedRow(prompt, tuple(Continuation(torch.tensor([v])) for v in range(256)))]  # all bytes
    with torch.no_grad():
        logps_L = policy(packed=pack(rows, policy.positions, 256), temperature=0.5)[0]
    p_V = logps_L.exp()
    error_V = (p_V * (1 - p_V) / n).sqrt()
    assert bool(((counts_V[:256] / n - p_V).abs() < 5 * error_V + 1e-3).all())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_placeholders_are_never_sampled(temperature: float, qwen_folders: dict[str, Path]) -> None:
    """Even when the model all but insists. The log-probs stay those of the unrestricted policy: a byte is then
    as unlikely as training will find it (20 nats below)."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    raise_logits(policy, forbidden_ids(policy), 20.0)
    groups = drawn(policy, temperature=temperature)
    tokens = {token for g in groups for c in g for token in c.ids.tolist()}
    assert tokens.isdisjoint(forbidden_ids(policy))
    assert all(float(c.logps.max()) < -10 for g in groups for c in g)


def test_completions_end_with_the_end_token(qwen_folders: dict[str, Path]) -> None:
    """With the end token as likely as all bytes together, some end early and some are cut; both are told apart
    and nothing follows an end token."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    end = policy.processor.tokenizer.eos_token_id
    raise_logits(policy, [end], math.log(256))
    flat = [c for g in drawn(policy, n=8) for c in g]
    assert {c.truncated for c in flat} == {True, False}
    for c in flat:
        assert len(c.ids) == len(c.logps) <= 6
        assert c.truncated == (int(c.ids[-1]) not in policy.processor.end_ids)
        assert not any(t in policy.processor.end_ids for t in c.ids[:-1].tolist())
        assert not c.truncated or len(c.ids) == 6


def test_ends_of_some_do_not_change_the_others(qwen_folders: dict[str, Path]) -> None:
    """Sequences that ended leave the batch; the log-probs of the others are those of the plain forward."""
    policy = tiny_policy(qwen_folders["qwen3_vl"])
    raise_logits(policy, [policy.processor.tokenizer.eos_token_id], math.log(256))
    prompts, groups = prompts_of(policy), drawn(policy, n=8)
    flat = [(prompt, c) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    assert len({len(c.ids) for _, c in flat}) > 2
    with torch.no_grad():
        expected = reference.completion_logps(
            policy.base, policy.processor, [p for p, _ in flat], [c.ids for _, c in flat], 1.0
        )
    for (_, completion), logps in zip(flat, expected, strict=True):
        torch.testing.assert_close(completion.logps, logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_change_nothing(
    family: str, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is full after every two tokens gives what one for all six gives, while sequences end."""
    policy = tiny_policy(qwen_folders[family], trainable=False)
    raise_logits(policy, [policy.processor.tokenizer.eos_token_id], math.log(60))
    expected = ids_of(drawn(policy, n=8))
    made: list[int] = []
    original = rollout._Stage.__init__

    def counted(self: Any, *args: Any) -> None:
        made.append(len(args[2]))
        original(self, *args)

    monkeypatch.setattr(rollout._Stage, "__init__", counted)
    monkeypatch.setattr(rollout, "STAGE_TOKENS", 2)
    assert ids_of(drawn(policy, n=8)) == expected
    assert made[0] == 24
    assert len(made) >= 3
    assert made[-1] < 24


def test_prompts_beside_it_do_not_change_what_is_sampled(qwen_folders: dict[str, Path]) -> None:
    """Each prompt draws from its own seed: alone, together and in another order it gets the same completions."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    prompts, settings = prompts_of(policy), {"max_new_tokens": 6, "temperature": 1.0}
    together = ids_of(sample(policy, prompts, 4, seeds=[1, 2, 3], **settings))
    backwards = ids_of(sample(policy, prompts[::-1], 4, seeds=[3, 2, 1], **settings))[::-1]
    alone = [ids_of(sample(policy, [p], 4, seeds=[i], **settings))[0] for i, p in enumerate(prompts, 1)]
    assert together == backwards == alone
    assert len({tuple(c) for c in together[0]}) > 1


@pytest.mark.parametrize(("prompt_tokens", "sequences"), [(10**6, 100), (10**6, 4), (1, 100), (10**6, 9)])
def test_batches_change_nothing(prompt_tokens: int, sequences: int, qwen_folders: dict[str, Path]) -> None:
    """All prompts at once, one at a time for the sake of the cache or of the prefill, or two and one."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    settings = {"max_new_tokens": 4, "temperature": 1.0, "seeds": [1, 2, 3]}
    engine = rollout.OwnEngine(prompt_tokens, sequences)
    expected = sample(policy, prompts_of(policy), 4, **settings)
    assert ids_of(engine.sample(policy, prompts_of(policy), 4, **settings)) == ids_of(expected)


def test_every_prompt_needs_a_seed(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    with pytest.raises(ValueError, match="3 prompts and 1 seeds"):
        drawn(policy, seeds=[0])


def test_drawing_by_hand() -> None:
    """Probabilities 1/8, 1/8, 1/4, 1/2 with the third forbidden: 0.75 of the mass is left, so 0 .. 1/6 is the first, up to 1/3 the second,
    the rest the fourth; the log-probability is of the whole distribution."""
    logits = torch.tensor([0.125, 0.125, 0.25, 0.5]).log().expand(5, -1)
    forbidden = torch.tensor([False, False, True, False])
    chances = torch.tensor([0.0, 0.16, 0.17, 0.34, 1 - 2**-53], dtype=torch.float64)
    tokens, logps = rollout._draw(logits, forbidden, 1.0, chances)
    assert tokens.tolist() == [0, 0, 1, 3, 3]
    torch.testing.assert_close(logps.exp(), torch.tensor([0.125, 0.125, 0.125, 0.5, 0.5]))


def test_without_a_cuda_graph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be recorded is run as it is, from the same cache, on the stream from before; one line says so, once."""

    def fail(stream: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    streams: list[Any] = []
    outside = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(rollout, "_graphs_work", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: outside)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    for name in ("CUDAGraph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "stream", fail)
    layer = SimpleNamespace(cumulative_length=torch.tensor(3))

    def forward() -> Tensor:
        return torch.zeros(1)

    for _ in range(2):
        assert rollout._capture(forward, SimpleNamespace(layers=[layer])) is forward
    assert int(layer.cumulative_length) == 3
    assert streams == [outside]
    assert capsys.readouterr().err == (
        "rollout: no CUDA graph (operation not permitted); decoding goes on without\n"
    )


def test_images_run_once_per_group(qwen_folders: dict[str, Path]) -> None:
    """Eight completions of one prompt cost one image in the vision tower, and none the second time."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], train_vision=False)
    seen: list[int] = []
    policy.base.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("grid_thw", args[-1]))), with_kwargs=True
    )
    prompt = prompts_of(policy)[0]
    for _ in range(2):
        sample(policy, [prompt], 8, max_new_tokens=2, temperature=1.0, seeds=[0])
    assert seen == [1]
