"""Checkpoints of a run: its state as named arrays, writing them while training goes on, reading."""
