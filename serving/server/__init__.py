"""A stand-in for TF Serving on laptops and in tests: ``python -m serving.server``."""
