"""The stack around TF Serving: a light client and an embedded server.

``serving.client`` never imports TensorFlow; ``serving.server`` does, when it starts.
"""
