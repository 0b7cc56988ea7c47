"""Sampling with vLLM, in the process that trains: the same completions as rollout.sample, from paged caches and continuous batches.

vLLM holds a second copy of the language model, in the precision of matrix products. `sync` hands it the policy's weights tensor by tensor
under their names in a Hugging Face checkpoint; an adapter is added to each matrix on the way and the policy stays as it is. Its vision
tower is never used: prompts go with the features that the policy computed or has in its cache, so a trained tower needs no hand-over.

Log-probabilities are those of the unrestricted policy at the sampling temperature: vLLM's `raw_logprobs` come before the bias that forbids
vision tokens, and the temperature is applied as a scale of the logits before both. They are vLLM's own; its kernels round otherwise than
ours (`rollout_gap` of the metrics says by how much).

Left out: several GPUs, weights in 4 bits (config.py refuses them), sleeping while the policy trains.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.errors import ConfigError, InputError, MissingExtraError, first_line
from vlm_contextrl.models import product_dtype, read_config, resolve
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt, Processor
from vlm_contextrl.rollout import Completion, forbidden_tokens

VISION = "model.visual."
NEVER = -1e4  # added to a logit; the probability is then 0 in float32


class VllmEngine:
    """A vLLM engine that samples for one policy. `sync` comes before the first `sample` and after every change of the weights."""

    def __init__(
        self,
        settings: ModelSettings,
        processor: Processor,
        *,
        max_model_len: int,
        max_images: int,
        gpu_memory_share: float,
        seed: int,
    ) -> None:
        """max_model_len: tokens of the longest prompt and completion together. max_images: in one prompt. gpu_memory_share: of the device's
        memory, for vLLM's weights and cache, beside what the policy takes (without a GPU: of the host's).

        Raises MissingExtraError without vLLM, ConfigError in one of several processes, InputError when vLLM does not start.
        """
        if torch.distributed.is_initialized() and (world := torch.distributed.get_world_size()) > 1:
            raise ConfigError(
                f"rollout.engine: vllm samples in one process, found {world}; set rollout.engine to transformers"
            )
        self.processor = processor
        self.max_model_len = max_model_len
        self.dtype = product_dtype(settings)
        self._synced = False
        llm_class, self._sampling_params = _import_vllm()
        path, on_gpu = resolve(settings.path), torch.cuda.is_available()
        try:
            with _random_state_kept():
                self._llm: Any = llm_class(
                    model=path,
                    revision=settings.revision,
                    tokenizer_revision=settings.revision,
                    trust_remote_code=settings.trust_remote_code,
                    dtype=str(self.dtype).removeprefix("torch."),
                    load_format="dummy",  # the policy's weights follow
                    max_model_len=max_model_len,
                    gpu_memory_utilization=gpu_memory_share,
                    seed=seed,
                    generation_config="vllm",  # not the folder's: it would change what is sampled
                    logprobs_mode="raw_logprobs",
                    enable_mm_embeds=True,
                    limit_mm_per_prompt={"image": _image_limit(path, settings, max_images), "video": 0},
                    skip_mm_profiling=True,  # no tower runs
                    mm_processor_cache_gb=0,  # the policy keeps features itself
                    enforce_eager=not on_gpu,
                    # A prompt in parts rewinds its generator, which a CPU's cannot do (vLLM 0.32).
                    enable_chunked_prefill=on_gpu,
                )
        except (OSError, RuntimeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise InputError(
                f"{settings.path}: vLLM does not start: {first_line(error)}; change rollout.vllm_memory_share, "
                "or set rollout.engine to transformers"
            ) from error

    def sync(self, policy: Policy) -> None:
        """Hand over the policy's current weights, adapters merged on the way; the policy is left unchanged. What was cached is dropped."""
        weights = checkpoint_weights(policy, self.dtype)
        # Adapters are multiplied in their own precision.
        with torch.autocast(policy.device.type, enabled=False):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.apply_model(_renew_tied_head)
        dropped = self._llm.reset_prefix_cache()
        assert dropped, "no request is running, so every cached prompt of the old weights can go"
        # The workers have dropped their features; without this the scheduler would count on them.
        self._llm.llm_engine.reset_encoder_cache()
        self._synced = True

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: Sequence[EncodedPrompt],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[list[Completion]]:
        """G = n completions for each of P prompts, one seed per prompt. Temperature 0 is greedy.

        The same seeds give the same completions, as far as vLLM's kernels do not depend on what else is in the batch.
        """
        assert self._synced, "sync comes first: the engine starts from random weights"
        assert len(seeds) == len(prompts)
        assert all(len(p) + max_new_tokens <= self.max_model_len for p in prompts)
        forbidden_V = forbidden_tokens(policy, policy.base.lm_head.weight.shape[0])
        bias = dict.fromkeys(forbidden_V.nonzero()[:, 0].tolist(), NEVER)
        params = [
            self._sampling_params(
                n=n if temperature else 1,  # vLLM refuses to repeat a greedy completion
                # vLLM seeds the completions of a prompt with seed, seed + 1, ...: no two of a step may meet.
                seed=seed * n % 2**62,
                temperature=1.0 if temperature else 0.0,
                max_tokens=max_new_tokens,
                stop_token_ids=list(self.processor.end_ids),
                logit_bias=bias,
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        requests = [self._request(policy, prompt) for prompt in prompts]
        scale = 1.0 / (temperature or 1.0)
        self._llm.apply_model(lambda model: _scale_logits(model, scale))
        # vLLM chooses its own precision: the trainer's autocast must not reach into it.
        with torch.autocast(policy.device.type, enabled=False):
            outputs = self._llm.generate(requests, params, use_tqdm=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            assert len(output.prompt_token_ids) == len(prompt), (
                "vLLM expands placeholders otherwise than we do"
            )
        groups = [[self._completion(sampled) for sampled in output.outputs] for output in outputs]
        return groups if temperature else [group * n for group in groups]

    def close(self) -> None:
        """Free the engine's memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        del self._llm
        cleanup_dist_env_and_memory()

    def _request(self, policy: Policy, prompt: EncodedPrompt) -> dict[str, Any]:
        """A prompt as vLLM takes it: one placeholder per image, and the features that it stands for."""
        request: dict[str, Any] = {
            "prompt_token_ids": collapse_placeholders(prompt, self.processor.image_token_id)
        }
        if prompt.images:
            features = [f.to("cpu", self.dtype) for f in image_embeds(policy, prompt)]
            grids = torch.tensor([image.grid_thw for image in prompt.images])
            request["multi_modal_data"] = {
                "image": {"image_embeds": torch.cat(features), "image_grid_thw": grids}
            }
        return request

    def _completion(self, sampled: Any) -> Completion:
        ids = torch.tensor(list(sampled.token_ids), dtype=torch.long)
        logps = [at[token].logprob for at, token in zip(sampled.logprobs, sampled.token_ids, strict=True)]
        return Completion(ids, torch.tensor(logps), int(ids[-1]) not in self.processor.end_ids)


def collapse_placeholders(prompt: EncodedPrompt, image_token_id: int) -> list[int]:
    """The prompt's ids with one placeholder per image in place of as many as the image has visual tokens."""
    ids: list[int] = prompt.ids_T.tolist()
    images = iter(prompt.images)
    collapsed, at = [], 0
    while at < len(ids):
        collapsed.append(ids[at])
        at += next(images).n_tokens if ids[at] == image_token_id else 1
    return collapsed


def image_embeds(policy: Policy, prompt: EncodedPrompt) -> list[Tensor]:
    """Features of the prompt's images [N, H], one tensor per image; for Qwen3-VL [N, H * (1 + deepstack layers)], as vLLM's tower
    would give them."""
    encoded = policy.encoder_outputs(prompt.images)
    assert encoded is not None
    out = encoded["image"]
    deepstack = getattr(out, "deepstack_features", None) or []
    return [
        torch.cat([tokens_NH, *layers], -1)
        for tokens_NH, *layers in zip(out.pooler_output, *deepstack, strict=True)
    ]


def checkpoint_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of the language model's weights as a checkpoint of the plain model would have them, each made when asked for.

    Adapters are added in their own precision; the sum is rounded once, to `dtype`. Raises InputError for an adapter that is not a sum of
    matrices.
    """
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {name: m for name, m in policy.base.named_modules() if isinstance(m, LoraLayer)}
    for name, parameter in policy.base.named_parameters():
        if name.startswith(VISION):
            continue
        if re.search(r"\.(modules_to_save|lora_magnitude_vector|lora_B\..*\.bias)\b", name):
            raise InputError(
                f"{name}: vLLM takes an adapter only where it adds to a matrix; merge this one (vlm-contextrl merge), or "
                "set rollout.engine to transformers"
            )
        if ".lora_" in name:
            continue
        with torch.no_grad():
            value = parameter.detach()
            owner, wrapped, leaf = name.rpartition(".base_layer.")
            if wrapped and leaf == "weight":
                value = sum(_updates(adapted[owner]), start=value)
        yield (f"{owner}.{leaf}" if wrapped else name), value.to(dtype)


def _updates(layer: Any) -> list[Tensor]:
    """What the active adapters add to their matrix; nothing where they are part of it already."""
    if layer.disable_adapters:
        return []
    apart = [a for a in layer.active_adapters if a in layer.scaling and a not in layer.merged_adapters]
    return [layer.get_delta_weight(adapter) for adapter in apart]


def _renew_tied_head(model: Any) -> None:
    """A head that shares the embedding gets no weights of its own in a reload. On a CPU it works on a packed copy, which would stay as it
    was (seen with vLLM 0.32); elsewhere this does nothing."""
    head = model.get_language_model().lm_head
    head.quant_method.process_weights_after_loading(head)


def _scale_logits(model: Any, scale: float) -> None:
    """Multiply the logits before anything reads them; vLLM divides by its own temperature only after it took the log-probabilities."""
    model.get_language_model().logits_processor.scale = scale


def _image_limit(path: str, settings: ModelSettings, max_images: int) -> int:
    """0 is features only, and vLLM makes no vision tower. Without a tower it also leaves out deepstack (0.32, 0.33), so Qwen3-VL gets one
    of random weights that never runs."""
    config = read_config(
        path, revision=settings.revision or "main", trust_remote_code=settings.trust_remote_code
    )
    return max_images if getattr(config.vision_config, "deepstack_visual_indexes", None) else 0


def _import_vllm() -> tuple[Any, Any]:
    """(vllm.LLM, vllm.SamplingParams)."""
    # Read when vLLM is imported or started. One process: weights are handed over as tensors of this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM, SamplingParams
    except (ImportError, OSError) as error:  # OSError: a library that one of its packages needs is missing
        raise MissingExtraError(
            f"rollout.engine is vllm, which cannot be imported ({first_line(error)}): pip install 'vlm-contextrl[vllm]'"
        ) from error
    return LLM, SamplingParams


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds every generator of the process when it starts; a run must not depend on the engine in that way."""
    plain, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)
