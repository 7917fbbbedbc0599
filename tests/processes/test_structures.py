"""Code as users write it, on two workers beside plain Keras; ``make exactness`` runs all of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.exactness.groups import Group
from tests.running import ROOT
from tests.structures.outcomes import Kind, Measured, Results, measure, outcome
from tests.structures.registry import STRUCTURES
from tests.structures.run import NAMES

EXPECTED = {
    "clipping_in_step": Kind.EQUAL,
    "variational_autoencoder_with_noise": Kind.RANDOM,
    "simclr": Kind.WARNED,
}
SHOWN = "learning_to_learn"  # stands for any structure


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Measured]]:
    """What plain Keras found, and two workers, by names."""
    folder = tmp_path_factory.mktemp("structures")
    return [measure(group, list(EXPECTED), folder) for group in (Group(0), Group(2))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXPECTED)
def test_two_workers_beside_plain_keras(name: str, found: list[dict[str, Measured]]) -> None:
    alone, two = (each[name] for each in found)
    assert not alone.error
    ended = outcome(name, two, alone.results[0])
    assert ended.kind is EXPECTED[name], ended


def test_the_page_has_a_row_for_each_structure() -> None:
    rows = [
        line.split("|")[1:4]
        for line in (ROOT / "docs" / "tried.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    made = [(name, STRUCTURES[name]) for name in NAMES]
    assert rows == [[f" `{name}` ", f" {one.source} ", f" {one.asks} "] for name, one in made]


def found_by(*values: float, draws: tuple[float, ...] = ()) -> list[Results]:
    """The results of workers, of which each ends with one weight and has drawn one number."""
    drawn = [{"draws/0": np.array([[draw]])} for draw in draws] or [{}] * len(values)
    return [
        {"weights/00": np.array(value), "history/loss": np.array([3.0, 2.0])} | draw
        for value, draw in zip(values, drawn, strict=True)
    ]


@pytest.mark.parametrize(
    ("measured", "kind", "words"),
    [
        (Measured(found_by(1.0, 1.0), []), Kind.EQUAL, "0e+00"),
        (Measured(found_by(1.0, 1.1), []), Kind.DIFFERS, "**differs**: 1e-01 in weights/00"),
        (Measured(found_by(1.1, 1.1), ["it differs"]), Kind.WARNED, "warned: 1e-01; it differs"),
        (Measured([], [], "refused: no | so"), Kind.REFUSED, "refused: no / so"),
        (Measured([], [], "TypeError: x"), Kind.FAILS, "**fails**: TypeError: x"),
    ],
)
def test_outcomes(measured: Measured, kind: Kind, words: str) -> None:
    ended = outcome(SHOWN, measured, found_by(1.0)[0])
    assert ended.kind is kind
    assert str(ended) == words


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        (found_by(1.0, 1.0, draws=(0.1, 0.2)), Kind.RANDOM),
        (found_by(1.0, 1.0, draws=(0.1, 0.1)), Kind.DIFFERS),
        (found_by(1.0, 1.1, draws=(0.1, 0.2)), Kind.DIFFERS),
        (found_by(1.0, 1.0), Kind.FAILS),
    ],
)
def test_outcomes_of_random_numbers(results: list[Results], kind: Kind) -> None:
    assert outcome("dropout", Measured(results, []), found_by(1.0)[0]).kind is kind
