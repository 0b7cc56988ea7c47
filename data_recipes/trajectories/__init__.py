"""Pairs of coding-agent trajectories by condition filtering (arXiv 2606.17053): two trajectories that changed the same code for different
issues, shown with their patches masked; the question is which of them made a given change.

    sources     files and rows of SWE-smith, SWE-agent and mini-swe-agent, one after another
    formats     a row or file as a `Trajectory`
    patches     edited files and functions of a patch
    facts       what the filters need to know of one trajectory
    cascade     same repository and commit -> same file -> same function -> related issues, over all trajectories
    masking, budget, shortcuts     what a context shows, what must not give the answer away, and what a bag of words makes of it
    pairing     the pair of two trajectories
    funnel      what each filter left, printed and drawn
"""

from __future__ import annotations

from vlm_contextrl.data_recipes.trajectories.recipe import run
from vlm_contextrl.data_recipes.trajectories.settings import TrajectoriesConfig

__all__ = ["TrajectoriesConfig", "run"]
