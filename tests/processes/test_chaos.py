"""A short run of the chaos test; ``make chaos`` runs it for longer."""

from __future__ import annotations

from pathlib import Path

from tests.processes import chaos
from tests.processes.chaos import Harm, Outcome
from tests.processes.test_train import summary


def test_a_disturbed_run_ends_with_the_weights_of_an_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    harms = [Harm("export", "KILL", victims=(0,), delay_s=0.0)]
    outcomes: list[Outcome] = []
    chaos.harm_a_run(tmp_path / "run", harms, outcomes.append)
    assert [outcome.harm for outcome in outcomes] == harms
    assert "worker 0 was killed by SIGKILL: starting again" in outcomes[0].reason
    assert summary(tmp_path / "run")["weights_sha256"] == summary(undisturbed)["weights_sha256"]
    assert [path.name for path in (tmp_path / "run" / "model").iterdir()] == ["1"]


def test_all_harms_are_drawn_from_the_seed() -> None:
    def drawn(seed: int) -> list[list[Harm]]:
        return list(chaos.draw(chaos.random.Random(seed), rounds=50))

    assert drawn(7) == drawn(7) != drawn(8)
    harms = [harm for harms in drawn(7) for harm in harms]
    assert len(harms) == 50
    assert {harm.moment for harm in harms} == set(chaos.MOMENTS)
    assert {harm.signal for harm in harms} == set(chaos.SIGNALS)
    assert {harm.victims for harm in harms} == {(0,), (1,), (0, 1)}
    together = {harm.signal for harm in harms if len(harm.victims) > 1}
    assert together == set(chaos.SIGNALS), "each signal is sent to all workers at once, too"
