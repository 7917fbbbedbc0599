"""What can keep a rollout from being done."""

# ruff: noqa: N818 - the names say what happened


class RolloutError(Exception):
    """Base of what ``serving.rollout`` raises on purpose."""


class Refused(RolloutError):
    """What is asked for can't be done to this file; nothing was changed."""


class Failed(RolloutError):
    """A replica did not come along; the message says what state things are in."""
