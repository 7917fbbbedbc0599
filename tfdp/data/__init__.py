"""Sources of examples, their order, and the input pipeline. Independent of models."""
