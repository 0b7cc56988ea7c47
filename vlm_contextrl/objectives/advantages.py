"""Group-relative advantages: how much better a completion is than the others of its prompt.

    A_pg = (r_pg - mean_g r_p) / (s + eps)

    "group"  s = std_g r_p          "batch"  s = std over all rewards          "none"  no division

Source: GRPO, arXiv 2402.03300; "none" is the recommendation of Dr. GRPO, arXiv 2503.20783. The standard
deviation is the unbiased one (divisor G - 1, or P * G - 1), as in TRL and EasyR1; eps = 1e-6 as in EasyR1,
where TRL has 1e-4.

Deviation: a group whose rewards are all the same gets exact zeros. Dividing the rounding error of the mean
by eps would give it advantages of up to 0.1 instead.

Left out: leave-one-out baselines, pass@k, weights per reward (sum the rewards first).

P prompts, G completions per prompt.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, zeros_like

AdvantageScale = Literal["group", "batch", "none"]


def group_advantages(
    rewards_PG: Tensor, scale: AdvantageScale = "group", eps: float = 1e-6
) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantages of shape [P, G] and metrics (0-d, means over the P groups of this call).

    With scale="batch" the deviation is over the rewards given here: gather them over ranks first if it is
    to be the whole step's. A group of one completion has no baseline, hence zeros.
    """
    if scale not in get_args(AdvantageScale):
        raise ValueError(f"advantage scale {scale!r}, expected one of {', '.join(get_args(AdvantageScale))}")
    if rewards_PG.dim() != 2 or rewards_PG.numel() == 0:
        raise ValueError(
            f"rewards of shape {list(rewards_PG.shape)}, expected [prompts, completions per prompt]"
        )
    flat_P1 = rewards_PG.amax(dim=1, keepdim=True) == rewards_PG.amin(dim=1, keepdim=True)
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    several = rewards_PG.shape[1] > 1
    std_P1 = rewards_PG.std(dim=1, keepdim=True) if several else zeros_like(flat_P1, dtype=rewards_PG.dtype)
    if scale == "group":
        scaled_PG = centred_PG / (std_P1 + eps)
    elif scale == "batch":
        scaled_PG = centred_PG / (rewards_PG.std() + eps) if several else centred_PG
    else:
        scaled_PG = centred_PG
    advantages_PG = scaled_PG.masked_fill(flat_P1, 0.0)
    metrics = {
        "reward_mean": rewards_PG.mean(),
        "reward_std_in_group": std_P1.mean(),
        "zero_variance_groups": flat_P1.to(rewards_PG.dtype).mean(),
    }
    return advantages_PG, {name: value.detach() for name, value in metrics.items()}
