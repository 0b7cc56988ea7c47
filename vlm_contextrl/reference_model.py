"""The starting model, against which the KL term measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_contextrl.config import ModelSettings
from vlm_contextrl.models import load_policy, product_dtype
from vlm_contextrl.policy import Policy
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.sharding import shard


class ReferenceModel:
    """A second model in full fine-tuning. LoRA needs none: its adapter is switched off, or back to the one it started from."""

    def __init__(self, settings: ModelSettings, policy: Policy, ranks: Ranks) -> None:
        self.settings = settings
        self.policy = policy
        if settings.tuning == "full":
            self.policy = load_policy(settings, ranks.device, trainable=False)
            if ranks.world > 1:
                shard(self.policy, ranks, product_dtype(settings))
        elif settings.adapter:
            policy.model.load_adapter(settings.adapter, "reference", is_trainable=False)

    @contextmanager
    def active(self) -> Iterator[Policy]:
        """The reference within the block; the trained model is back after it."""
        if self.settings.tuning == "full":
            yield self.policy
        elif self.settings.adapter:
            self.policy.model.set_adapter("reference", inference_mode=True)
            try:
                yield self.policy
            finally:
                self.policy.model.set_adapter("default")
        else:
            with self.policy.model.disable_adapter():
                yield self.policy
