"""What the server says about a base path without a version to serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.server.errors import StatusError
from serving.server.models.base_paths import check_is_no_tflite_model, why_no_version
from serving.server.models.servables import Servable, specific
from tests.serving.test_servables import Model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models: half with versions, a version without a number, and nothing."""
    for name in ("half/1", "half/2", "unnumbered/latest"):
        folder = tmp_path / "models" / name
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").touch()
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "file").touch()
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("base_path", "reason", "meant"),
    [
        ("half/2", "is a version itself: it has saved_model.pb", "The base path is {models}/half"),
        ("half/2/variables", "is inside of the version", "The base path is {models}/half"),
        (".", "is a folder of models", "The base path is {models}/half"),
        ("unnumbered/latest", "is a version itself", "Move it to {models}/unnumbered/latest/1"),
        ("unnumbered", "{models}/unnumbered/latest has saved_model.pb", "name is a number"),
        ("empty", "{models}/empty has no folder whose name is a number", ""),
        ("file", "{models}/file is a file", ""),
        ("nowhere", "{models}/nowhere does not exist", ""),
    ],
)
def test_the_line_about_a_missing_version_names_the_path_that_is_meant(
    models: Path, base_path: str, reason: str, meant: str
):
    reports: list[str] = []
    servable = Servable("m", models / base_path, Model, reports.append)
    servable.poll()
    servable.poll()
    (line,) = reports
    assert f"no version of model m to serve in {models / base_path} yet; waiting. " in line
    assert reason.format(models=models) in line and "\n" not in line
    assert line.endswith(meant.format(models=models))


def test_versions_that_the_policy_does_not_select_are_named(models: Path):
    reports: list[str] = []
    Servable("m", models / "half", Model, reports.append, specific([7])).poll()
    assert f"{models}/half has 1 or 2, not what is to serve" in reports[0]


def test_a_long_list_is_cut(tmp_path: Path):
    for name in "abcde":
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "saved_model.pb").touch()
    assert why_no_version(tmp_path).endswith(f"{tmp_path}/a or {tmp_path}/b or {tmp_path}/c or …")


def test_a_version_of_tflite_alone_is_refused_and_beside_a_graph_ignored(tmp_path: Path):
    (tmp_path / "model.tflite").touch()
    with pytest.raises(StatusError, match="TFLite models are not served here"):
        check_is_no_tflite_model(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    check_is_no_tflite_model(tmp_path)
