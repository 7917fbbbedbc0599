from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.running import run
from tfdp.errors import BadInput, Refused
from tfdp.publishing.gates import Gates
from tfdp.publishing.models_config import ServedVersions, read_served_versions
from tfdp.publishing.settings import PublishSettings

SERVED = Path("models/digits/3")


def gates(**flags: Any) -> Gates:
    return PublishSettings(**flags).gates


@pytest.mark.parametrize(
    ("flags", "metrics", "served"),
    [
        ({"require_min": ("accuracy:0.97",)}, {"accuracy": 0.97}, None),
        ({"require_max": ("loss:0.3", "mae:1e-2")}, {"loss": 0.3, "mae": 0.0}, None),
        ({"require_min": ("a:b:1",)}, {"a:b": 1.0}, None),
        ({"not_worse_than_current": 0.01}, {"accuracy": 0.89}, {"accuracy": 0.9}),
        ({"not_worse_than_current": 0.0}, {"accuracy": 0.9}, {"accuracy": 0.9}),
        # The loss counts only if there is no other metric.
        ({"not_worse_than_current": 0.01}, {"auc_1": 0.9, "loss": 9}, {"auc_1": 0.9, "loss": 1}),
        ({"not_worse_than_current": 0.01}, {"odd": 9, "loss": 1}, {"odd": 1, "loss": 1}),
        ({"not_worse_than_current": 0.1}, {"f1_score": 0.9}, {"f1_score": 0.95}),
        ({"not_worse_than_current": 0.1}, {"head_mae": 1.05}, {"head_mae": 1.0, "more": 0}),
        # The metrics of other gates are those that are compared.
        (
            {"require_max": ("odd:9",), "not_worse_than_current": 0.5},
            {"odd": 1.5, "accuracy": 0.1},
            {"odd": 1.0, "accuracy": 0.9},
        ),
    ],
)
def test_good_metrics_pass(
    flags: dict[str, Any], metrics: dict[str, float], served: dict[str, float] | None
) -> None:
    assert gates(**flags)
    gates(**flags).check_names(metrics)
    gates(**flags).check(metrics, None if served is None else SERVED, served)


@pytest.mark.parametrize(
    ("flags", "metrics", "served", "message"),
    [
        ({"require_min": ("accuracy:0.97",)}, {"accuracy": 0.9699}, None, "is 0.9699, below"),
        ({"require_min": ("accuracy:0.97",)}, {"accuracy": float("nan")}, None, "is nan, below"),
        ({"require_max": ("loss:0.3",)}, {"loss": float("nan")}, None, "is nan, above"),
        ({"not_worse_than_current": 0.01}, {"accuracy": 0.88}, {"accuracy": 0.9}, "worse by more"),
        ({"not_worse_than_current": 0.01}, {"loss": 1.02}, {"loss": 1.0}, "worse by more"),
        ({"not_worse_than_current": 1.0}, {"loss": float("nan")}, {"loss": 1.0}, "worse by more"),
        (
            {"not_worse_than_current": 1.0},
            {"loss": 1.0},
            None,
            "digits/3, .* has no record of loss",
        ),
        (
            {"not_worse_than_current": 1.0},
            {"odd": 1.0},
            {"odd": 1.0},
            "whose better direction is known",
        ),
        # Lower is better, but the name does not show it.
        (
            {"not_worse_than_current": 0.1},
            {"brier_score": 0.9},
            {"brier_score": 0.1},
            "whose better direction is known",
        ),
        (
            {"require_max": ("odd:9",), "not_worse_than_current": 0.5},
            {"odd": 1.6},
            {"odd": 1.0},
            "odd is 1.6 and that of .*digits/3, which is served now, is 1",
        ),
    ],
)
def test_other_metrics_are_refused(
    flags: dict[str, Any], metrics: dict[str, float], served: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(Refused, match=f"^not published: .*{message}"):
        gates(**flags).check(metrics, SERVED, served)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"require_min": ("accuracy",)}, "--require_min=accuracy: it has to be NAME:VALUE"),
        ({"require_min": (":1",)}, "it has to be NAME:VALUE"),
        ({"require_max": ("loss:low",)}, "--require_max=loss:low: it has to be NAME:VALUE"),
        ({"require_max": ("loss:nan",)}, "it has to be NAME:VALUE"),
        ({"require_min": ("a:2",), "require_max": ("a:1",)}, "no value meets both"),
        ({"not_worse_than_current": -0.1}, "--not_worse_than_current is -0.1: it has to be 0 or"),
        ({"keep_versions": 0}, "--keep_versions is 0: it has to be 1 or more"),
        ({"warmup_batch_sizes": (1, 0)}, "--warmup_batch_sizes is 1,0: they have to be 1 or more"),
    ],
)
def test_wrong_values_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        PublishSettings(**flags)


@pytest.mark.parametrize(
    "flags", [{"require_min": ("b:1",)}, {"require_max": ("b:1",)}, {"not_worse_than_current": 1.0}]
)
def test_gates_on_metrics_of_no_evaluation_are_refused(flags: dict[str, Any]) -> None:
    checked = gates(**flags)
    with pytest.raises(BadInput, match=r"evaluations give nothing|there are none"):
        checked.check_names([])
    if checked.not_worse_by is None:
        with pytest.raises(BadInput, match="evaluations give a, c"):
            checked.check_names(["c", "a"])


def config(**options: Any) -> str:
    """A models.config for the models digits and other, as TF Serving's message prints it."""
    made = model_server_config_pb2.ModelServerConfig()
    for name in ("other", "digits"):
        one = made.model_config_list.config.add(name=name, base_path=f"/models/{name}")
        one.model_platform = "tensorflow"
    for label, version in options.get("labels", {}).items():
        one.version_labels[label] = version
    one.model_version_policy.specific.versions.extend(options.get("specific", []))
    if "latest" in options:
        one.model_version_policy.latest.num_versions = options["latest"]
    text: str = text_format.MessageToString(made)
    return text


@pytest.mark.parametrize(
    ("options", "required", "current"),
    [
        ({}, {9}, 9),
        ({"labels": {"stable": 2, "canary": 5}}, {2, 5, 9}, 2),
        ({"labels": {"stable": 4}}, {4, 9}, 9),  # does not exist
        ({"specific": [2, 5]}, {2, 5, 9}, 5),
        ({"latest": 3}, {5, 7, 9}, 9),
    ],
)
def test_served_versions_are_read_from_models_config(
    options: dict[str, Any], required: set[int], current: int, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    (tmp_path / "models.config").write_text(config(**options))
    for path in (None, tmp_path / "models.config"):
        served = read_served_versions(path, folder)
        assert served.required([1, 2, 5, 7, 9]) == required
        assert served.current([1, 2, 5, 7, 9]) == current
    assert read_served_versions(None, tmp_path / "another").required([1, 2]) == {2}
    assert read_served_versions(None, folder / "below") == ServedVersions()
    assert read_served_versions(None, folder).current([]) is None


def test_models_of_the_same_name_all_keep_their_labelled_versions(tmp_path: Path) -> None:
    made = model_server_config_pb2.ModelServerConfig()
    for name, version in (("digits", 2), ("letters", 5)):
        one = made.model_config_list.config.add(name=name, base_path=f"/models/{name}/model")
        one.version_labels["stable"] = version
    (tmp_path / "models.config").write_text(text_format.MessageToString(made))
    served = read_served_versions(None, tmp_path / "model")
    assert served.required([1, 2, 5, 7]) == {2, 5, 7}
    assert served.current([1, 2, 7]) == 2


def test_a_models_config_written_by_the_rollout_is_read(tmp_path: Path) -> None:
    flags = ["--model=digits", f"--models_config={tmp_path / 'models.config'}", "--targets="]
    run(["python", "-m", "serving.rollout", "promote", "2", *flags, "--base_path=/models/digits"])
    served = read_served_versions(None, tmp_path / "digits")
    assert served.required([1, 2, 3, 4]) == {2, 4}
    assert served.current([1, 2, 3, 4]) == 2


def test_a_models_config_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--models_config=.*x\.config can't be read: No such file"):
        read_served_versions(tmp_path / "x.config", tmp_path / "digits")
    (tmp_path / "models.config").write_text("model_config_list { config { nam")
    with pytest.raises(BadInput, match=r"models\.config is not a models.config of TF Serving"):
        read_served_versions(None, tmp_path / "digits")
