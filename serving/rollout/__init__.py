"""Moves a model's version labels on running servers: ``python -m serving.rollout --help``."""
