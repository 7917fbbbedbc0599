"""``python -m serving.client``: its commands, and what they read and write."""
