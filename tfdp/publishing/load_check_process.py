"""Loads a version as TF Serving does, and queries it; load_check.py starts it as a process.

``python load_check_process.py PARENT VERSION ANSWERS QUESTIONS…`` uses a session of the graph that
is tagged ``serve``, tensors by name, no Keras and nothing of tfdp. Questions are TFRecord files of
PredictionLogs with Predict requests, such as warm-up requests. Answers are a TFRecord file of
PredictResponses in the same order. It ends when the process PARENT does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(version: str, answers: str, questions: Sequence[str]) -> None:
    """Answers all questions."""
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    # TensorFlow imports Keras, and Keras scikit-learn if it is there: half a second for nothing.
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    requests = [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in tf.data.TFRecordDataset(list(questions)).as_numpy_iterator()
    ]
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], version)
        with tf.io.TFRecordWriter(answers) as writer:
            for request in requests:
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
    if os.getppid() == int(sys.argv[1]):  # or it has ended already
        main(sys.argv[2], sys.argv[3], sys.argv[4:])
