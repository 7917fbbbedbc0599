"""Moves a model's labels on running servers; see ``python -m serving.rollout --help``."""
