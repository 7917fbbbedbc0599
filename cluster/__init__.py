"""The workers of a run: who they are, how they meet, what keeps them alive. No TensorFlow."""
