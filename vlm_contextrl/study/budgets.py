"""What every arm may use and what it did use. A comparison of objectives is one of objectives only at equal budgets.

Equal by assertion: the model that the arms start from, the questions, rollout steps with their optimizer updates, rollouts (prompts x
completions), and the tokens that these may take: the longest prompt, the longest completion, and so their product with the rollouts, which
a finished cell is held to. How many tokens of it a policy writes is its own doing and reported as cost, like what an arm adds: a
supervised stage before, selection prompts beside the questions, pairs, tokens that are trained on, time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError

Budget = dict[str, Any]
Record = Mapping[str, Any]


def budget_of(config: RunConfig) -> Budget:
    """What is equal between arms, by the names that an error gives it."""
    rollout, steps = config.rollout, config.steps or 0
    rollouts = steps * rollout.prompts_per_step * rollout.completions_per_prompt
    return {
        "model.path": config.model.path,
        "model.adapter": config.model.adapter,
        "data.questions": str(config.data.questions),
        "steps": steps,
        "updates": steps * _updates_per_step(config),
        "rollouts": rollouts,
        "rollout.completions_per_prompt": rollout.completions_per_prompt,
        "rollout.max_new_tokens": rollout.max_new_tokens,
        "tokens_at_most": rollouts * rollout.max_new_tokens,
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
    }


def check_equal(configs: Mapping[str, RunConfig], baseline: str) -> None:
    """ConfigError that names the first arm whose budget is not the baseline's, and in what."""
    expected = budget_of(configs[baseline])
    for arm, config in configs.items():
        if any(stage.steps is None for stage in config.stages):
            raise ConfigError(f"arm {arm!r}: counts epochs, expected `steps` in every stage")
        for name, value in budget_of(config).items():
            if value != expected[name]:
                raise ConfigError(
                    f"arm {arm!r}: {name} is {value}, expected {expected[name]} as in {baseline!r}: arms are compared at equal budgets"
                )


def total_steps(config: RunConfig) -> int:
    """Steps of all stages."""
    return sum(stage.steps or 0 for stage in config.stages)


def check_spent(name: str, config: RunConfig, metrics: Sequence[Record]) -> None:
    """ConfigError when a finished cell recorded other steps or rollouts than it was to make, or longer completions."""
    steps, rollouts = total_steps(config), sum("reward_mean" in record for record in metrics)
    longest = max((record.get("completion_tokens", 0) for record in metrics), default=0)
    if longest > config.rollout.max_new_tokens:
        raise ConfigError(
            f"{name}: metrics.jsonl holds a step of {longest:g} tokens a completion, expected at most {config.rollout.max_new_tokens} "
            "(rollout.max_new_tokens); remove the cell's folder and start again"
        )
    if [record["step"] for record in metrics] != list(range(1, steps + 1)) or rollouts != config.steps:
        raise ConfigError(
            f"{name}: metrics.jsonl holds {len(metrics)} steps, {rollouts} of them with rollouts, expected {steps} and {config.steps}; "
            "remove the cell's folder and start again"
        )


def cost(config: RunConfig, metrics: Sequence[Record], timings: Sequence[Record]) -> dict[str, float]:
    """train_s: seconds of rollouts and updates; cpu_s: of the process's threads, whatever ran beside it. updates: of the optimizer.
    rollouts, generated_tokens: completions and their tokens. trained_tokens: that were run with gradient. pairs: contrastive instances,
    trained on or asked. peak_mib: largest resident memory of the process.
    """
    rollout, G = config.rollout, config.rollout.completions_per_prompt
    per_step = _updates_per_step(config)
    ratio = sum(getattr(term, "ratio", 0) for term in config.objective)
    asked_per_step = max(1, round(ratio * config.optim.prompts_per_update)) * per_step if ratio else 0
    sampled = [record for record in metrics if "reward_mean" in record]
    pairs = sum((stage.steps or 0) * stage.pairs_per_update for stage in config.before)
    pairs += len(sampled) * (config.stages[-1].pairs_per_update * per_step + asked_per_step)
    tokens = sum(
        m["completion_tokens"] * rollout.prompts_per_step
        + m.get("selection_completion_tokens", 0) * asked_per_step
        for m in sampled
    )
    return {
        "train_s": sum(t["rollout_s"] + t["update_s"] for t in timings),
        "cpu_s": sum(t["cpu_s"] for t in timings),
        "updates": float(len(metrics) - len(sampled) + len(sampled) * per_step),
        "rollouts": float(len(sampled) * (rollout.prompts_per_step + asked_per_step) * G),
        "generated_tokens": tokens * G,
        "trained_tokens": sum(m["trained_tokens"] * (per_step if "reward_mean" in m else 1) for m in metrics),
        "pairs": float(pairs),
        "peak_mib": max((t["host_mib"] for t in timings), default=0.0),
    }


def _updates_per_step(config: RunConfig) -> int:
    return config.rollout.prompts_per_step // config.optim.prompts_per_update
