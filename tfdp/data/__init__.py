"""Sources of examples, their order, and the input pipeline. Knows nothing of models."""
