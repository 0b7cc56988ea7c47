"""Full fine-tuning over several processes: weights, gradients and optimizer states in shards (FSDP2, torch.distributed.fsdp.fully_shard).

Each decoder layer is gathered for its forward and backward pass; what is outside the layers (embeddings, LM head, a trained vision tower)
is gathered from a forward to the end of its backward pass. A frozen vision tower is not sharded. Sampling and passes without gradients
run in `gathered`, where every rank holds all weights and none waits for another.

Gathered weights have the precision of matrix products, so with `autocast: bf16` norms and the residual stream are bfloat16, too; in one
process they are float32. In float32 both compute the same (tests/test_distributed.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.ranks import Ranks


def shard(policy: Policy, ranks: Ranks, product_dtype: torch.dtype) -> None:
    """Shard in place. Gradients are summed over ranks, in float32; gathered weights have the precision of matrix products."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    precision = MixedPrecisionPolicy(
        param_dtype=product_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    layers: list[nn.Module] = list(policy.base.model.language_model.layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    tower = policy.base.model.visual
    replicated = set() if policy.vision_is_trained else set(tower.parameters())
    fully_shard(
        policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False, ignored_params=replicated
    )
    for module in _sharded(policy):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has nothing else
    policy()  # an empty forward, by which the layers learn that the policy is their root
    for module in _sharded(policy):
        module.reshard()  # `parameters()` are shards from here on, which is what the optimizer must hold


@contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """All weights on every rank within the block. Nothing happens for a policy that is not sharded.

    FSDP's hooks have nothing to do there and are off: they would wait for each other's streams, which a CUDA graph cannot record.
    """
    modules: list[Any] = _sharded(policy)
    hooks = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module.unshard()
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, (before, after) in zip(modules, hooks, strict=True):
            module._forward_pre_hooks, module._forward_hooks = before, after
            module.reshard()


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


def _sharded(policy: Policy) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def idle_loss(policy: Policy) -> Tensor:
    """0, by a pass through every layer, for a rank that has no micro-batch while another does."""
    pad = policy.processor.tokenizer.pad_token_id
    logits_BO = policy(selection=[EncodedPrompt(torch.tensor([pad, pad]))], option_ids=[0, 1])[2]
    assert logits_BO is not None
    loss: Tensor = 0 * logits_BO.sum()
    return loss


def untouched_vision(policy: Policy) -> Tensor | float:
    """0, with a gradient of 0 for a sharded vision tower: a rank whose micro-batch has no image must not leave it out."""
    if not (is_sharded(policy) and policy.vision_is_trained):
        return 0.0
    return 0 * torch.stack([p.sum() for p in policy.base.model.visual.parameters()]).sum()


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their norm over all ranks is at most `max_norm`; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, of a shard or of an ordinary one. All ranks must ask for it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()


def fitting(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor in the way that another is stored: this rank's shard of it, or itself."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
