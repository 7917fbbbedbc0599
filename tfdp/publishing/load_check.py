"""Whether a version that was written answers as the live model does, asked in a fresh process."""

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

LIMIT_S = 600.0  # for importing TensorFlow (some 3 s), loading, and answering

Answers = dict[str, np.ndarray]  # of one question, by the outputs' names


def check(
    version: Path, questions: Sequence[bytes], expected: Sequence[Answers], rtol: float
) -> None:
    """Asks a version its warm-up requests and more, and compares.

    Args:
        version: its folder.
        questions: serialized PredictionLogs, to be asked after the warm-up requests.
        expected: what the live model answers, to the warm-up requests first.
        rtol: how much answers may differ, relative to what is expected; a tenth of it relative to
            the largest number of a tensor, since small ones are differences of large ones.

    Raises:
        TrainingError: if it can't be loaded, does not answer in time, or answers differently.
    """
    for answers, wanted in zip(_ask(version, questions), expected, strict=True):
        for name, value in wanted.items():
            if not _are_alike(answers[name], value, rtol):
                raise TrainingError(
                    f"the exported model answers {name} differently from the live one: "
                    "not published"
                )


def rtol_of(model: keras.Model) -> float:
    """How much answers may differ: by float rounding, of what the model computes in."""
    is_rough = model.compute_dtype in ("float16", "bfloat16")
    # GPUs multiply with fewer digits; the fresh process leaves them to this one.
    return 2e-2 if is_rough or tf.config.list_physical_devices("GPU") else 1e-4


def _ask(version: Path, questions: Sequence[bytes]) -> list[Answers]:
    with tempfile.TemporaryDirectory(prefix="tfdp-reload-") as folder:
        files = [version / warmup.PATH, Path(folder, "questions")]
        warmup.write(files[1], questions)
        answers = Path(folder, "answers")
        _in_fresh_process(version, answers, [file for file in files if file.exists()])
        records = tf.data.TFRecordDataset(str(answers)).as_numpy_iterator()
        return [
            {
                name: tf.make_ndarray(value)
                for name, value in predict_pb2.PredictResponse.FromString(record).outputs.items()
            }
            for record in records
        ]


def _in_fresh_process(version: Path, answers: Path, questions: Sequence[Path]) -> None:
    script = str(Path(__file__).with_name("load_check_process.py"))
    # -P: what lies beside the script is not for its imports.
    command = [sys.executable, "-P", script, str(os.getpid()), str(version), str(answers)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            code = subprocess.run(
                [*command, *map(str, questions)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process to hear
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
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    raise TrainingError(
        "the exported model can't be loaded and asked in a fresh process, as TF Serving would: "
        f"not published. It ended with {code}: {''.join(lines[-1:])[:1000]}"
    )


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return kept | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _are_alike(answer: np.ndarray, expected: np.ndarray, rtol: float) -> bool:
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return False
    if expected.dtype.kind in "OSUbiu":
        return bool(np.array_equal(answer, expected))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    ours, theirs = answer.astype(wide), expected.astype(wide)
    largest = np.max(np.abs(theirs), initial=1.0, where=np.isfinite(theirs))
    return np.allclose(ours, theirs, rtol=rtol, atol=rtol / 10 * largest, equal_nan=True)
