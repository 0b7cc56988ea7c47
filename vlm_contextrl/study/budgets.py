"""What every arm may use and what it did use. A comparison of objectives is one of objectives only at equal budgets.

Equal by assertion: the model that the arms start from and how they are measured, the questions, rollout steps with their optimizer updates,
rollouts (prompts x completions), and the tokens that these may take: the longest prompt, the longest completion, so its product with the
rollouts, which a finished cell is held to. How many tokens of it a policy writes is its own doing and reported as cost, like what an arm
adds: a supervised stage before, selection prompts beside the questions, pairs, tokens that are trained on, time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError

MEASURED_WITH = ("min_pixels", "max_pixels", "chat_template", "dtype", "autocast")
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
        **{f"model.{name}": getattr(config.model, name) for name in MEASURED_WITH},
        "data.prompt_style": config.data.prompt_style,
        "data.eval_questions": str(config.data.eval_questions),
        "data.eval_pairs": str(config.data.eval_pairs),
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
                    f"arm {arm!r}: {name} is {value}, expected {expected[name]} as in {baseline!r}: arms are compared at equal budgets "
                    "and measured alike"
                )


def total_steps(config: RunConfig) -> int:
    """Steps of all stages."""
    return sum(stage.steps or 0 for stage in config.stages)


def spent_otherwise(config: RunConfig, metrics: Sequence[Record]) -> str | None:
    """What a finished cell did otherwise than its budget says: other steps, other rollouts, longer ones."""
    steps, rollout = total_steps(config), config.rollout
    sampled = [record for record in metrics if "reward_mean" in record]
    if [record["step"] for record in metrics] != list(range(1, steps + 1)) or len(sampled) != config.steps:
        return f"metrics.jsonl holds {len(metrics)} steps, {len(sampled)} of them with rollouts, expected {steps} and {config.steps}"
    for of_whom, prompts in (("", rollout.prompts_per_step), ("selection_", _asked_per_step(config))):
        expected = prompts * rollout.completions_per_prompt
        for record in sampled if prompts else ():
            found, longest = record[f"{of_whom}completions"], record[f"{of_whom}longest_completion"]
            if found != expected:
                return f"step {record['step']} has {found:g} {of_whom}completions, expected {expected}"
            if longest > rollout.max_new_tokens:
                return f"step {record['step']} has a completion of {longest:g} tokens, expected at most {rollout.max_new_tokens}"
    return None


def cost(config: RunConfig, metrics: Sequence[Record], timings: Sequence[Record]) -> dict[str, float]:
    """train_s: seconds of rollouts and updates; cpu_s: of the process's threads, whatever ran beside it. updates: that the optimizer made,
    without those skipped because a loss was not finite. rollouts, generated_tokens: completions and their tokens. trained_tokens: that were
    run with gradient. pairs: that loss terms look at or ask (their reverses, and pairs among the questions, are not counted again).
    peak_mib: largest resident memory of the process.
    """
    per_step, asked_per_step = _updates_per_step(config), _asked_per_step(config)
    sampled = [record for record in metrics if "reward_mean" in record]
    pairs = sum((stage.steps or 0) * stage.pairs_per_update for stage in config.before)
    pairs += len(sampled) * (config.stages[-1].pairs_per_update * per_step + asked_per_step)
    groups = ("", "selection_") if asked_per_step else ("",)
    updates = [(m, per_step if "reward_mean" in m else 1) for m in metrics]
    return {
        "train_s": sum(t["rollout_s"] + t["update_s"] for t in timings),
        "cpu_s": sum(t["cpu_s"] for t in timings),
        "updates": sum((1 - m["skipped_updates"]) * n for m, n in updates),
        "rollouts": sum(m[f"{group}completions"] for m in sampled for group in groups),
        "generated_tokens": sum(
            m[f"{group}completions"] * m[f"{group}completion_tokens"] for m in sampled for group in groups
        ),
        "trained_tokens": sum(m["trained_tokens"] * n for m, n in updates),
        "pairs": float(pairs),
        "peak_mib": max((t["host_mib"] for t in timings), default=0.0),
    }


def _asked_per_step(config: RunConfig) -> int:
    """Selection prompts that are sampled beside the questions of a step."""
    ratio = sum(getattr(term, "ratio", 0) for term in config.objective)
    per_update = max(1, round(ratio * config.optim.prompts_per_update)) if ratio else 0
    return per_update * _updates_per_step(config)


def _updates_per_step(config: RunConfig) -> int:
    return config.rollout.prompts_per_step // config.optim.prompts_per_update
