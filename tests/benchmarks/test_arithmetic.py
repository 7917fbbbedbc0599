"""The arithmetic of the benchmarks, against definitions and simulations."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from benchmarks import measuring, network, ring
from benchmarks.ring import MeasuredStep, RingCost
from tfdp.step import all_reduce
from tfdp.step.gradients import GradientAllReduce

RNG = np.random.default_rng(0)


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was twice as slow for both.
    assert measuring.ratios([1.0, 2.0], [2.0, 4.0]) == measuring.Spread(0.5, 0.5, 0.5)


def test_step_time_leaves_out_the_epochs_that_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_s = iter([50.0, 100.0, 101.0, 104.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(ends_s))
    times = measuring.EpochTimes()
    for epoch in range(4):
        times.record(epoch, {})
    assert times.step_s(steps_per_epoch=10) == pytest.approx((104 - 100) / 2 / 10)


def test_reports_are_found_among_other_output(capfd: pytest.CaptureFixture[str]) -> None:
    measuring.report(step_s=0.5)
    measuring.report(rank=1)
    output = "[worker 0] " + capfd.readouterr().out.replace("\n", "", 1) + "more\n"
    assert measuring.reports_in(output) == [{"step_s": 0.5}, {"rank": 1}]


def simulated_s(workers: int, size: float, message_s: float, s_per_byte: float) -> float:
    """Returns seconds of an all-reduce in which workers pass on the piece they received last."""
    # Of each worker and piece, the workers whose addends are in the sum.
    sums = [{piece: {worker} for piece in range(workers)} for worker in range(workers)]
    turn_s = message_s + size / workers * s_per_byte
    turn = 0
    while not all(len(addends) == workers for own in sums for addends in own.values()):
        sent_pieces = [(worker - turn) % workers for worker in range(workers)]
        messages = [set(sums[worker][sent_pieces[worker]]) for worker in range(workers)]
        for worker in range(workers):
            sums[(worker + 1) % workers][sent_pieces[worker]] |= messages[worker]
        turn += 1
    return turn * turn_s


PACKS = {2: 4, 3: 4, 4: 3, 8: 2, 16: 2}  # of 8 MB, each of sqrt(8 MB workers 256 KiB)


def simulated_8mb_s(workers: int, message_s: float, s_per_byte: float) -> float:
    """Returns seconds of simulated all-reduces of 8 MB, pack by pack."""
    packs = PACKS[workers]
    return packs * simulated_s(workers, 8e6 / packs, message_s, s_per_byte)


def test_the_model_has_the_pack_sizes_of_training() -> None:
    assert ring.BYTES_PER_HOP == all_reduce.BYTES_PER_HOP
    model = keras.Sequential([keras.layers.Input((1999,)), keras.layers.Dense(1000)])  # 8 MB
    for workers, packs in PACKS.items():
        pack_bytes = GradientAllReduce().with_pack_size(model, workers).bytes_per_pack
        assert pack_bytes is not None
        assert -(-8_000_000 // pack_bytes) == packs


@pytest.mark.parametrize("workers", PACKS)
def test_the_model_agrees_with_a_simulated_ring(workers: int) -> None:
    reduce_s = RingCost(1e-4, 8e-9).reduce_s(workers, 8e6)
    assert reduce_s == pytest.approx(simulated_8mb_s(workers, 1e-4, 8e-9))


def test_one_worker_only_computes_and_overlap_hides_at_most_the_all_reduce() -> None:
    links = RingCost(1e-4, 8e-9)
    assert links.reduce_s(1, 8e6) == 0
    reduce_s = links.reduce_s(4, 8e6)
    assert ring.step_s(0.1, reduce_s, overlap=0.5) == pytest.approx(0.05 + reduce_s)
    assert ring.step_s(1.0, reduce_s, overlap=0.5) == 1.0


def test_a_fit_on_small_rings_predicts_a_larger_one() -> None:
    steps = []
    for workers, size, packs, turns in ((2, 8e6, 4, 1.0), (4, 8e6, 3, 2.0), (2, 1e5, 1, 1.0)):
        reduce_s = turns * packs * simulated_s(workers, size / packs, 2e-4, 8e-9)
        steps.append(MeasuredStep(workers, size, turns, 0.05, 0.05 + reduce_s))
    cost = ring.fit(steps)
    assert dataclasses.astuple(cost) == pytest.approx((2e-4, 8e-9), rel=1e-6)
    assert cost.reduce_s(8, 8e6) == pytest.approx(simulated_8mb_s(8, 2e-4, 8e-9))


def test_a_fit_never_gives_a_negative_time() -> None:
    # Less than proportional to bytes per worker: the best line has messages of negative time.
    measured = ((2, 1e5, 0.001), (4, 1e5, 0.0012), (2, 4e5, 0.006))
    steps = [MeasuredStep(workers, size, 1.0, 0.0, step_s) for workers, size, step_s in measured]
    cost = ring.fit(steps)
    assert cost.message_s == 0
    assert cost.s_per_byte > 0


def test_steps_that_do_not_separate_messages_from_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="two sizes or two numbers of workers"):
        ring.fit([MeasuredStep(2, 1e6, 1.0, 0.1, step_s) for step_s in (0.2, 0.21)])


def test_the_prediction_for_gpus_agrees_with_a_calculation_by_hand() -> None:
    # 102.4 MB at 8 Gbit/s usable take 2 * 7/8 * 102.4 ms, 14 messages for each of 7 packs (of 14.7
    # MB) 980 us. The backward pass takes 66.7 ms; in the first seventh of it nothing travels.
    step_s, efficiency = ring.predict_gpus(ring.Assumptions(), 10, 8)
    assert step_s == pytest.approx(0.1 + 0.1792 + 0.00098 - 6 / 7 * 0.0666667)
    assert efficiency == pytest.approx(0.1 / step_s)


def test_the_slower_of_links_and_processors_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on two cores that need 0.5 ms a message and 4 ms a megabyte, on links of ``LINKS``."""
    monkeypatch.setattr(network.os, "cpu_count", lambda: 2)

    def step_s(workers: int, mbit_per_s: float) -> float:
        compute_s = 0.05 + 0.002 * max(1, workers // 2)  # a wait, then a core in turns
        if workers == 1:
            return compute_s
        processors_s = max(1, workers // 2) * simulated_8mb_s(workers, 5e-4, 4e-9)
        return compute_s + max(processors_s, simulated_8mb_s(workers, 0.0, 8e-6 / mbit_per_s))

    links = {
        name: {
            "points": [
                {"workers": workers, "bytes": 8e6, "step_s": [step_s(workers, mbit_per_s)]}
                for workers in (1, 2, 4, 8)
            ]
        }
        for name, (mbit_per_s, delay_ms) in network.LINKS.items()
        if not delay_ms
    }
    processors = network.fit_and_predict(links)
    assert processors == pytest.approx({"message_s": 5e-4, "s_per_byte": 4e-9})
    points = [point for link in links.values() for point in link["points"]]
    uses = ["given", "fitted", "fitted", "foretold", "given", "foretold", "foretold", "foretold"]
    assert [point["use"] for point in points] == uses
    for point in points:
        assert point["model_s"] == pytest.approx(point["step_s"][0])
