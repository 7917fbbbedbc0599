"""Errors of a rollout."""

# ruff: noqa: N818 - short names without "Error"


class RolloutError(Exception):
    """Base class of the errors that ``serving.rollout`` raises."""


class Refused(RolloutError):
    """The command can't be applied to this file; nothing was changed."""


class Failed(RolloutError):
    """A replica failed; the message describes the state that was reached."""
