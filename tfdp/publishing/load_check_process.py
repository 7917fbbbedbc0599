"""Loads a version as TF Serving does, and runs requests; a program that load_check.py starts.

``python load_check_process.py PARENT VERSION RESPONSES REQUESTS…`` loads the graph tagged ``serve``
in a session and passes tensors by name, without Keras or tfdp. REQUESTS are TFRecord files of
PredictionLogs with Predict requests, as warm-up requests are. RESPONSES becomes a TFRecord file of
PredictResponses in the same order. The process ends when the process PARENT ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(version: str, responses: str, requests: Sequence[str]) -> None:
    """Runs all requests, and writes the responses."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    predict_requests = [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in tf.data.TFRecordDataset(list(requests)).as_numpy_iterator()
    ]
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], version)
        with tf.io.TFRecordWriter(responses) as writer:
            for request in predict_requests:
                signature = loaded.signature_def[request.model_spec.signature_name]
                outputs = session.run(
                    {name: tensor.name for name, tensor in signature.outputs.items()},
                    {
                        signature.inputs[name].name: tf.make_ndarray(value)
                        for name, value in request.inputs.items()
                    },
                )
                response = predict_pb2.PredictResponse()
                for name, value in outputs.items():
                    response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
                writer.write(response.SerializeToString())


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(sys.argv[1]):  # otherwise the parent has already ended
        # As tfdp.importing does, which this program does not import.
        gc.disable()
        sys.modules.update(dict.fromkeys(("sklearn", "matplotlib")))  # type: ignore[arg-type]
        main(sys.argv[2], sys.argv[3], sys.argv[4:])
