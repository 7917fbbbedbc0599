"""Keeps the workers of a Slurm job alive."""
