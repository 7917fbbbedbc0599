from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from matplotlib import image
from optuna.trial import TrialState

from tests.running import run
from tests.searches import search
from tfdp.search import pictures
from tfdp.search.pictures import draw

NAMES = ["history.png", "importance.png", "parallel.png"]
SCRIPT = """
import pathlib, sys, optuna
from tests.searches import search
from tfdp.search.pictures import draw

optuna.logging.set_verbosity(optuna.logging.WARNING)
draw(search()[0], pathlib.Path(sys.argv[1]), "accuracy")
"""


def test_every_process_draws_the_same_and_says_nothing(tmp_path: Path) -> None:
    drawn = []
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        env = {"PYTHONHASHSEED": name, "PYTHONWARNINGS": "always"}
        assert run(["python", "-c", SCRIPT, str(tmp_path / name)], env=env) == ""
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == NAMES
        drawn.append([(tmp_path / name / each).read_bytes() for each in NAMES])
    assert drawn[0] == drawn[1]
    for each in NAMES:
        pixels = image.imread(tmp_path / "1" / each)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 700
        assert pixels[..., :3].std() > 0.05


def figures(monkeypatch: pytest.MonkeyPatch, study: optuna.Study) -> dict[str, Any]:
    found = {}
    monkeypatch.setattr(pictures, "_replace", lambda path, figure: found.update({path: figure}))
    draw(study, Path(), "accuracy")
    return {path.name: figure for path, figure in found.items()}


def test_pictures_show_what_the_study_has(monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = search()
    drawn = figures(monkeypatch, study)
    history, parallel, importance = (
        drawn[f"{n}.png"] for n in ("history", "parallel", "importance")
    )
    points = history.axes[0].collections[0].get_offsets()
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert [tuple(point) for point in points] == [(t.number, t.value) for t in complete]
    labels = [label.get_text() for label in parallel.axes[0].get_xticklabels()]
    assert sorted(labels[1:]) == ["dropout", "learning_rate", "momentum", "optimizer", "units"]
    is_log = {
        name: axes.get_yscale() == "log"
        for name, axes in zip(labels, [parallel.axes[0], *parallel.axes[2:]], strict=True)
    }
    assert [name for name, each in is_log.items() if each] == ["learning_rate", "units"]
    bars = {
        label.get_text(): bar.get_width()
        for label, bar in zip(
            importance.axes[0].get_yticklabels(), importance.axes[0].patches, strict=True
        )
    }
    assert bars == pytest.approx(optuna.importance.get_param_importances(study), abs=1e-4)


def study_of(*values: float | None, parameters: int = 2, **options: Any) -> optuna.Study:
    study = optuna.create_study(**options)
    for n, value in enumerate(values):
        trial = study.ask()
        for index in range(parameters):
            trial.suggest_float(f"p{index}", 1e-3, 1, log=True)
        study.tell(n, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
    return study


def test_losses_of_many_sizes_have_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    for values, scale in [((1000.0, 3.0, 1.0, 0.5), "log"), ((0.0, 3.0, 500.0, 1.0), "linear")]:
        drawn = figures(monkeypatch, study_of(*values))
        assert drawn["history.png"].axes[0].get_yscale() == scale
        label = drawn["parallel.png"].axes[0].get_xticklabels()[0].get_text()
        assert label == ("log10(accuracy)" if scale == "log" else "accuracy")


NOTHING = [
    "history.png is left out: no trial is complete",
    "parallel.png is left out: it compares complete trials, and there is none",
    "importance.png is left out: it compares complete trials, and there is none",
]
ONE = [line.replace("none", "one") for line in NOTHING[1:]]


@pytest.mark.parametrize(
    ("study", "remarks"),
    [
        (lambda: study_of(), NOTHING),
        (lambda: study_of(None), NOTHING),
        (lambda: study_of(0.5, None), ONE),
        (
            lambda: study_of(0.5, 0.7, parameters=1),
            ["importance.png is left out: it compares parameters, and there is one"],
        ),
        (
            lambda: study_of(0.5, 0.7, parameters=0),
            [
                "parallel.png is left out: no trial has parameters",
                "importance.png is left out: no trial has parameters",
            ],
        ),
        (
            lambda: study_of(0.5, 0.5, 0.5),
            ["importance.png is left out: all complete trials have the same objective"],
        ),
        (lambda: study_of(0.5, 0.6), []),
        (lambda: study_of(1e300, -1e300, 0.0), []),
    ],
)
def test_what_cannot_be_drawn_is_left_out(
    study: Callable[[], optuna.Study],
    remarks: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = study()
    for name in NAMES:
        (tmp_path / name).write_bytes(b"an earlier one")
    capsys.readouterr()
    draw(made, tmp_path, "accuracy")
    assert capsys.readouterr() == ("", "".join(f"tfdp: {remark}\n" for remark in remarks))
    missing = {remark.split()[0] for remark in remarks}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*NAMES} - missing)


def test_an_error_of_optuna_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("odd")

    study = study_of(0.5, 0.6)
    capsys.readouterr()
    monkeypatch.setitem(pictures._PICTURES, "parallel.png", (pictures._needs_one, fail))
    draw(study, tmp_path, "accuracy")
    said = "tfdp: parallel.png is left out: Optuna can't draw it (ValueError: odd)\n"
    assert capsys.readouterr().err == said
