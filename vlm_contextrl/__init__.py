"""Reinforcement learning of vision-language models with context selection (ContextRL, arXiv 2606.17053)."""

__version__ = "0.1.0"
