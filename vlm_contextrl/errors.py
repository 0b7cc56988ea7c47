"""Errors that a user can act on.

Every message is one line: which file, row or field, what was found, what was expected, what to do. The command line prints it
and exits with status 2. Broken invariants of our own are `assert`s, not members of this family.
"""

from __future__ import annotations


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


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of its class when the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
