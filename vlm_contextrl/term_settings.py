"""Settings of the terms of a loss, and of the stages of a run. What a term computes stands in objectives/, in the file of its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vlm_contextrl.records import Record

PolicyVariant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class PolicyTerm(Record):
    """Policy gradient on sampled completions (objectives/policy.py)."""

    term: Literal["policy"]
    weight: float = Field(1.0, ge=0)
    variant: PolicyVariant = "grpo"
    clip_low: float | None = Field(
        None, ge=0, lt=1, description="the ratio stays above 1 - clip_low. None: as in the variant's paper"
    )
    clip_high: float | None = Field(
        None, ge=0, description="the ratio stays below 1 + clip_high. None: as in the variant's paper"
    )
    kl_coef: float = Field(0.0, ge=0, description="weight of the k3 estimate of KL(policy || reference)")
    advantage_scale: Literal["group", "batch", "none"] | None = Field(
        None, description="None: the variant's own"
    )
    rewards: dict[str, float] = Field(
        {"accuracy": 0.9, "format": 0.1}, min_length=1, description="built-in name or dotted path -> weight"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PolicyTerm:
        if self.variant == "cispo" and (self.clip_low, self.clip_high) != (None, None):
            raise ValueError(
                "clip_low and clip_high have no effect with variant: cispo, whose ratio is capped; leave them out"
            )
        return self


class SelectionTerm(Record):
    """Context selection on contrastive pairs (objectives/selection_loss.py)."""

    takes_pairs: ClassVar[bool] = True

    term: Literal["selection_loss"]
    weight: float = Field(ge=0, description="lambda of the paper")
    clip: Literal["two_sided", "one_sided", "none"] = Field(
        "two_sided", description="which margins lose their gradient outside the clip"
    )
    clip_value: float = Field(5.0, gt=0, description="c: the margin is clipped to [-c, c] (logits)")
    orders: Literal["random", "both"] = Field(
        "random",
        description="one random option order per pair, drawn anew each time, or the mean margin of both",
    )
    reverse: bool = Field(False, description="add (A', C-, C+) where the confounder's answer is known")
    contexts: int = Field(
        2, ge=2, le=4, description="K: contexts to choose among; those beyond the pair's own are other pairs'"
    )
    pairs_per_update: int = Field(32, ge=1, description="contrastive instances per optimizer update")

    @model_validator(mode="after")
    def _consistent(self) -> SelectionTerm:
        if self.orders == "both" and self.contexts > 2:
            raise ValueError(
                f"orders: both is for two contexts, found contexts: {self.contexts}; set one of them otherwise"
            )
        return self


class SelectionRewardTerm(Record):
    """Selection prompts in the rollouts, sampled and rewarded (objectives/selection_reward.py)."""

    takes_pairs: ClassVar[bool] = True
    needs_policy: ClassVar[bool] = True

    term: Literal["selection_reward"]
    weight: float = Field(1.0, ge=0)
    ratio: float = Field(
        0.25, gt=0, description="selection prompts for every question of an update, beside the questions"
    )
    reverse: bool = Field(
        False, description="where the confounder's answer is known, ask for either answer equally often"
    )


class PerceptionTerm(Record):
    """PAPO: away from what the policy says without seeing (objectives/perception_kl.py)."""

    needs_policy: ClassVar[bool] = True

    term: Literal["perception_kl"]
    weight: float = Field(1.0, ge=0, description="of all three parts together")
    kl_coef: float = Field(0.01, ge=0, description="gamma: of the KL to the policy that sees masked images")
    entropy_coef: float = Field(0.03, ge=0, description="of the entropy given the images")
    masked_entropy_coef: float = Field(0.03, ge=0, description="of the entropy given the masked images")
    masked_gradient: bool = Field(
        False,
        description="let the entropy given the masked images have a gradient, which the public code's does not",
    )
    mask_ratio: float = Field(0.6, gt=0, le=1, description="share of the squares that are blackened")
    square_px: int = Field(14, ge=1, description="side of a square, in pixels of the resized image")


class SupervisedTerm(Record):
    """Cross-entropy on the right letter after selection prompts (objectives/supervised.py)."""

    takes_pairs: ClassVar[bool] = True

    term: Literal["supervised"]
    weight: float = Field(1.0, ge=0)
    reverse: bool = Field(False, description="add (A', C-, C+) where the confounder's answer is known")
    pairs_per_update: int = Field(32, ge=1, description="contrastive instances per optimizer update")


Term = Annotated[
    PolicyTerm | SelectionTerm | SelectionRewardTerm | PerceptionTerm | SupervisedTerm,
    Field(discriminator="term"),
]


class Stage(Record):
    """Part of a run: some steps with one loss. A stage without rollouts makes one optimizer update per step."""

    steps: int | None = Field(None, ge=1, description="steps; or give epochs")
    epochs: float | None = Field(
        None, gt=0, description="passes over the questions, in a stage without rollouts over the pairs"
    )
    learning_rate: float | None = Field(None, gt=0, description="None: optim.learning_rate")
    objective: list[Term] = Field(min_length=1, description="weighted terms of the loss")

    @property
    def policy(self) -> PolicyTerm | None:
        """The term that makes rollouts, if there is one."""
        return next((t for t in self.objective if isinstance(t, PolicyTerm)), None)

    @property
    def takes_pairs(self) -> str | None:
        """Name of the first term that takes pairs."""
        return next((t.term for t in self.objective if getattr(t, "takes_pairs", False)), None)

    @property
    def pairs_per_update(self) -> int:
        """Pairs that the terms of an update look at; the same ones for all."""
        return max(getattr(t, "pairs_per_update", 0) for t in self.objective)

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        check_length(self.steps, self.epochs)
        check_terms(self.objective)
        return self


def check_length(steps: int | None, epochs: float | None) -> None:
    """ValueError unless one of them says how long a stage is."""
    if (steps is None) == (epochs is None):
        raise ValueError("give exactly one of `steps` and `epochs`")


def check_terms(objective: Sequence[Term]) -> None:
    """ValueError when the terms of a stage do not go together."""
    names = [t.term for t in objective]
    if len(set(names)) != len(names):
        raise ValueError("objective names a term twice")
    for term in objective:
        if getattr(term, "needs_policy", False) and "policy" not in names:
            raise ValueError(
                f"objective has a {term.term} term: it needs a policy term beside it, whose rollouts it is about"
            )
    counts = {t.term: t.pairs_per_update for t in objective if hasattr(t, "pairs_per_update")}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"pairs_per_update differs ({found}), expected one number: terms of an update look at the same pairs"
        )
