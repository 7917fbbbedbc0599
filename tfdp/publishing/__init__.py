"""Publishing: a model becomes a version for TF Serving; the steps of ``tfdp.export``."""
