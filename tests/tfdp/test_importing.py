from __future__ import annotations

import pytest

from tests.running import run

CODE = """
import sys
from tfdp.importing import import_tensorflow
import_tensorflow()
print(sorted({"keras", "matplotlib", "sklearn", "tensorflow"} & sys.modules.keys()))
import matplotlib.figure, sklearn.linear_model
import keras
try:
    keras.wrappers.SKLearnClassifier(keras.Sequential())
except ImportError as error:
    print("ImportError", "sklearn" in str(error) or "scikit-learn" in str(error))
"""


def test_packages_for_wrappers_are_left_out_and_can_be_imported_later() -> None:
    pytest.importorskip("sklearn")
    output = run(["python", "-c", CODE]).splitlines()
    assert output[-2:] == ["['keras', 'tensorflow']", "ImportError True"]
