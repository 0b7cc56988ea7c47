"""Errors that a user can act on.

Every message is one line: which file, row or field, what was found, what was expected, what to do. The command line prints it
and exits with status 2. Broken invariants of our own are `assert`s, not members of this family.
"""

from __future__ import annotations

import errno


class ContextRLError(Exception):
    """Root of all errors this package raises on purpose."""


class InputError(ContextRLError, ValueError):
    """Something the user gave cannot be used."""


class ConfigError(InputError):
    """A configuration key or value is wrong."""


class DataError(InputError):
    """A dataset, a row or an image cannot be used."""


class CheckpointError(InputError):
    """A model folder, adapter or checkpoint cannot be read."""


class RewardError(ContextRLError, RuntimeError):
    """A reward function failed; the message carries the row's id."""


class MissingExtraError(ContextRLError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


_FULL_OR_FORBIDDEN = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG,
)  # fmt: skip


def environment_error(error: Exception) -> str:
    """One line for what the machine refuses, wherever it was asked: room on a disk or a GPU, a place that may not be written to. Empty for
    anything else."""
    if isinstance(error, OSError) and error.errno in _FULL_OR_FORBIDDEN:
        return (
            f"{error.filename or 'writing a file'}: {error.strerror}; free space there or name another place"
        )
    name = type(error).__name__
    if name == "SafetensorError" and "os error" in str(error).lower():
        return f"saving weights: {first_line(error)}; free space there or name another place"
    if name == "OutOfMemoryError":  # torch's, which is not imported for this
        return (
            f"out of memory on the device: {first_line(error)} Lower optim.tokens_per_micro_batch or rollout.sequences_at_once, set "
            "model.gradient_checkpointing, or see `vlm-contextrl bench memory`"
        )
    return ""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of its class when the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
