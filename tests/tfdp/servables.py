"""Published versions, loaded as TF Serving does: a session, tensors by name, no Keras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2


class Servable:
    """A loaded version."""

    def __init__(self, session: Any, signatures: Mapping[str, Any]) -> None:
        self._session = session
        self.signatures = signatures

    def ask(self, signature: str = "serving_default", **inputs: Any) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature."""
        chosen = self.signatures[signature]
        fetch = {name: tensor.name for name, tensor in chosen.outputs.items()}
        assert inputs.keys() == set(chosen.inputs)
        feed = {chosen.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run(fetch, feed)  # type: ignore[no-any-return]

    def inputs(self, signature: str = "serving_default") -> dict[str, tuple[int, list[int]]]:
        """Returns the dtype (its number in protos) and shape of each input."""
        return {
            name: (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim])
            for name, tensor in self.signatures[signature].inputs.items()
        }


@contextmanager
def loaded(version: Path) -> Iterator[Servable]:
    """Loads a version until the block ends."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    try:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        yield Servable(session, dict(meta_graph.signature_def))
    finally:
        session.close()


def warmup_requests(version: Path) -> list[Any]:
    """Returns a version's warm-up requests, which are Predict requests."""
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    if not path.exists():
        return []
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert all(log.WhichOneof("log_type") == "predict_log" for log in logs)
    return [log.predict_log.request for log in logs]
