"""The workers of a run: addresses, start, liveness, restarts. Never imports TensorFlow."""
