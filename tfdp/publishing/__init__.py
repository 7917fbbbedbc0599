"""How a model becomes a version that TF Serving picks up: what ``tfdp.export`` is made of."""
