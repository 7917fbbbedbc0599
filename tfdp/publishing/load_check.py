"""The load check: whether a version, loaded in a fresh process, answers as the live model does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from tfdp.errors import TrainingError
from tfdp.publishing import warmup
from tfdp.whereabouts import marked

LIMIT_S = 600.0  # to import TensorFlow (some 3 s), load the version, and run the requests

Outputs = dict[str, np.ndarray]  # of one request, by the outputs' names


@marked("checking the version to publish")
def check(
    version: Path,
    requests: Sequence[bytes],
    expected: Sequence[Outputs],
    rtol: float,
    is_random: bool = False,
) -> None:
    """Runs a version's warm-up requests and further requests, and compares its outputs.

    Args:
        version: folder of the version.
        requests: serialized PredictionLogs, run after the warm-up requests.
        expected: outputs of the live model, for the warm-up requests first.
        rtol: largest difference allowed, relative to the expected number, plus ``rtol / 10``
            times the tensor's largest number, because small outputs may be differences of large
            numbers.
        is_random: whether a fresh process draws other numbers, so that only shapes and dtypes
            have to be equal.

    Raises:
        TrainingError: if the version can't be loaded, is too slow, or its outputs differ.
    """
    for outputs, expected_outputs in zip(_run(version, requests), expected, strict=True):
        for name, value in expected_outputs.items():
            has_same_type = (outputs[name].shape, outputs[name].dtype) == (value.shape, value.dtype)
            if not (has_same_type if is_random else _are_close(outputs[name], value, rtol)):
                raise TrainingError(
                    f"the exported model answers {name} differently from the live one: "
                    "not published"
                )


def choose_rtol(model: keras.Model) -> float:
    """Returns how much outputs may differ, by the float rounding of the model's dtype."""
    is_rough = model.compute_dtype in ("float16", "bfloat16")
    # GPUs multiply with fewer digits; the fresh process uses none, as this process occupies them.
    return 2e-2 if is_rough or tf.config.list_physical_devices("GPU") else 1e-4


def _run(version: Path, requests: Sequence[bytes]) -> list[Outputs]:
    """Returns the outputs for the warm-up requests, and then for ``requests``."""
    with tempfile.TemporaryDirectory(prefix="tfdp-reload-") as folder:
        files = [version / warmup.PATH, Path(folder, "requests")]
        warmup.write(files[1], requests)
        responses = Path(folder, "responses")
        _in_fresh_process(version, responses, [file for file in files if file.exists()])
        records = tf.data.TFRecordDataset(str(responses)).as_numpy_iterator()
        return [
            {
                name: tf.make_ndarray(value)
                for name, value in predict_pb2.PredictResponse.FromString(record).outputs.items()
            }
            for record in records
        ]


def _in_fresh_process(version: Path, responses: Path, requests: Sequence[Path]) -> None:
    script = str(Path(__file__).with_name("load_check_process.py"))
    # -P: it imports none of the modules beside the script.
    command = [sys.executable, "-P", script, str(os.getpid()), str(version), str(responses)]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            code = subprocess.run(
                [*command, *map(str, requests)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,  # only this process gets Ctrl-C
                timeout=LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"the exported model did not answer within {LIMIT_S:g} s in a fresh process: "
                "not published"
            ) from None
        if code == 0:
            return
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    raise TrainingError(
        "the exported model can't be loaded and run in a fresh process, as TF Serving would: "
        f"not published. It ended with {code}: {''.join(lines[-1:])[:1000]}"
    )


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return kept | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _are_close(actual: np.ndarray, expected: np.ndarray, rtol: float) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if expected.dtype.kind in "OSUbiu":
        return bool(np.array_equal(actual, expected))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    actual, expected = actual.astype(wide), expected.astype(wide)
    largest = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    return np.allclose(actual, expected, rtol=rtol, atol=rtol / 10 * largest, equal_nan=True)
