"""Who the workers are, and keeping them alive. Never imports TensorFlow."""
