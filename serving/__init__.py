"""The stack around TF Serving: a light client, rollouts, and an embedded server.

``serving.client`` and ``serving.rollout`` never import TensorFlow; ``serving.server`` does.
"""
