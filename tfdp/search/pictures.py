"""Pictures of a search, drawn by Optuna: ``history.png``, ``parallel.png``, ``importance.png``."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib
import optuna
from optuna.trial import FrozenTrial, TrialState

from tfdp.files import write_durably
from tfdp.log import say

_DPI: Final = 110
_LOG_FROM: Final = 100.0  # axes of the objective are logarithmic if values differ so much


def draw(study: optuna.Study, workdir: Path, objective: str = "objective") -> None:
    """Draws a study; equal studies have equal pictures, byte for byte.

    Says of each picture that is left out why it is. No study leads to an error.

    Args:
        study: with one objective.
        workdir: each picture replaces the earlier one there by one rename.
        objective: its name.
    """
    matplotlib.use("Agg")
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for name, (why_not, picture) in _PICTURES.items():
        path = workdir / name
        reason = why_not(complete)
        if reason is None:
            try:
                with _quiet():
                    _replace(path, picture(study, objective))
                continue
            except Exception as error:  # an unusual study must not end the search
                reason = f"Optuna can't draw it ({type(error).__name__}: {error})"
        path.unlink(missing_ok=True)  # it would show an earlier state
        say(f"{name} is left out: {reason}")


def _history(study: optuna.Study, objective: str) -> Any:
    from optuna.visualization.matplotlib import plot_optimization_history

    axes = plot_optimization_history(study, target_name=objective)
    axes.set_title(f"{objective} of each complete trial, and the best so far")
    if _is_wide(study):
        axes.set_yscale("log")
    axes.figure.set_size_inches(9, 4.5)
    return axes.figure


def _parallel(study: optuna.Study, objective: str) -> Any:
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    if _is_wide(study) and study.direction == optuna.study.StudyDirection.MINIMIZE:
        axes = plot_parallel_coordinate(
            study, target=lambda trial: math.log10(trial.value), target_name=f"log10({objective})"
        )
    else:
        axes = plot_parallel_coordinate(study, target_name=objective)
    figure = axes.figure
    axes.set_title("complete trials: a line each, by its parameters", y=1.03)
    names = [label.get_text() for label in axes.get_xticklabels()]
    axes.set_xticks(range(len(names)), names, rotation=20, horizontalalignment="right")
    figure.set_size_inches(2.5 + 1.7 * len(names), 5)
    lines = axes.collections[0]  # the best is dark; the worst must not be as white as an axis
    lines.set_cmap("viridis" if lines.get_cmap().name.endswith("_r") else "viridis_r")
    for each in figure.axes:
        each.grid(visible=False)
        each.spines[:].set_color("#aaaaaa")
        if each.get_yscale() == "log":
            low, high = each.get_ylim()
            each.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            digits = "125" if high / low > 4 else "123456789"  # what there is room for
            each.yaxis.set_minor_formatter(
                lambda value, _, digits=digits: f"{value:g}" if f"{value:e}"[0] in digits else ""
            )
        for label in each.get_yticklabels(which="both"):  # lines pass behind them
            label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})
    return figure


def _importance(study: optuna.Study, objective: str) -> Any:
    from matplotlib import pyplot

    # PED-ANOVA computes without random numbers. Its last digits depend on the order of sets.
    found = optuna.importance.get_param_importances(study)
    bars = sorted((round(value, 4), name) for name, value in found.items())
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.5 * len(bars)))
    drawn = axes.barh([name for _, name in bars], [value for value, _ in bars])
    axes.bar_label(drawn, [f"{value:.2f}" for value, _ in bars], padding=3)
    axes.set_title(f"which parameters decide whether {objective} is good", loc="left")
    axes.set_xlabel("importance, 1 in all")
    axes.margins(x=0.1)
    return figure


def _is_wide(study: optuna.Study) -> bool:
    """Returns whether the objectives are positive and of different sizes."""
    values = [trial.value for trial in study.trials if trial.state == TrialState.COMPLETE]
    return bool(min(values) > 0 and max(values) / min(values) >= _LOG_FROM)


def _needs_one(complete: list[FrozenTrial]) -> str | None:
    return None if complete else "no trial is complete"


def _needs_parameters(complete: list[FrozenTrial]) -> str | None:
    if len(complete) < 2:
        return f"it compares complete trials, and there is {'one' if complete else 'none'}"
    return None if any(trial.params for trial in complete) else "no trial has parameters"


def _needs_differences(complete: list[FrozenTrial]) -> str | None:
    if reason := _needs_parameters(complete):
        return reason
    if len({name for trial in complete for name in trial.params}) < 2:
        return "it compares parameters, and there is one"
    if len({trial.value for trial in complete}) < 2:
        return "all complete trials have the same objective"
    return None


_Draw = Callable[[optuna.Study, str], Any]
_PICTURES: Final[dict[str, tuple[Callable[[list[FrozenTrial]], str | None], _Draw]]] = {
    "history.png": (_needs_one, _history),
    "parallel.png": (_needs_parameters, _parallel),
    "importance.png": (_needs_differences, _importance),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """In the block, pictures look alike whatever a recipe has set, and nobody warns."""
    from matplotlib import pyplot

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(), pyplot.style.context(["default", "ggplot"]):
            warnings.simplefilter("ignore")
            yield
    finally:
        pyplot.close("all")
        optuna.logging.set_verbosity(verbosity)


def _replace(path: Path, figure: Any) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    hidden = path.with_name(f".{path.name}")
    write_durably(hidden, data.getvalue())
    hidden.rename(path)
