"""Measurements of the engine: side by side with TRL, against the floor of the hardware, and the memory of a run."""
