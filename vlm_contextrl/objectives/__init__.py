"""Objectives: pure functions from typed tensor records to (loss, metrics). The trainer sums them with
weights."""

from __future__ import annotations

# Name in a config -> module. Advantages are no loss; `policy` is what uses them.
OBJECTIVES: dict[str, str] = {
    "policy": "vlm_contextrl.objectives.policy",
    "selection_loss": "vlm_contextrl.objectives.selection_loss",
    "selection_reward": "vlm_contextrl.objectives.selection_reward",
    "perception_kl": "vlm_contextrl.objectives.perception_kl",
    "supervised": "vlm_contextrl.objectives.supervised",
}
