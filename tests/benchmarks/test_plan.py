"""The plan for many GPUs, against simulations, calculations by hand and measured steps."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from benchmarks import plan, ring
from benchmarks.ring import Assumptions
from tests.running import ROOT

NO_OVERLAP = Assumptions(overlap=0.0)
GIVEN = ["plan", "--parameters=25.6e6", "--link_gbit=25", "--step_s=0.1"]


def exposed_s(assumed: Assumptions, gbit_per_s: float, gpus: int) -> float:
    return ring.predict_gpus(assumed, gbit_per_s, gpus)[0] - assumed.compute_s


def simulated_s(assumed: Assumptions, gbit_per_s: float, gpus: int) -> float:
    """Seconds of one pack: every GPU passes on each piece when it has arrived and the link is free.

    The pieces of the network's links are as wide as all network cards of a node together.
    """
    piece_bits = 8 * assumed.gradient_bytes / gpus
    network = (assumed.message_s, piece_bits / (gbit_per_s * 1e9))
    inside = (assumed.node_message_s, piece_bits / (assumed.node_gbit_per_s * 1e9))
    per_node = assumed.gpus_per_node
    links = [
        network if i // per_node != (i + 1) % gpus // per_node else inside for i in range(gpus)
    ]
    arrived_s, free_s = [0.0] * gpus, [0.0] * gpus
    for _ in range(2 * (gpus - 1)):
        next_s = [0.0] * gpus
        for sender, (message_s, sending_s) in enumerate(links):
            free_s[sender] = max(arrived_s[sender], free_s[sender]) + sending_s
            next_s[(sender + 1) % gpus] = free_s[sender] + message_s
        arrived_s = next_s
    return max(arrived_s)


NODES = [(8, 1), (8, 2), (3, 2), (8, 8), (16, 8), (24, 8), (20, 8), (9, 3), (64, 4)]


@pytest.mark.parametrize(("gpus", "per_node"), NODES)
def test_messages_and_bytes_agree_with_a_simulated_ring_through_nodes(
    gpus: int, per_node: int
) -> None:
    assumed = Assumptions(overlap=0, usable=1, gpus_per_node=per_node, bytes_per_pack=1e9)
    endless = dataclasses.replace(assumed, node_gbit_per_s=math.inf)
    messages_s = exposed_s(endless, math.inf, gpus)
    assert messages_s == pytest.approx(simulated_s(endless, math.inf, gpus), rel=1e-6)
    instant = dataclasses.replace(assumed, message_s=0.0, node_message_s=0.0)
    bytes_s = exposed_s(instant, 25, gpus)
    assert bytes_s == pytest.approx(simulated_s(instant, 25, gpus), rel=1e-6)
    # A link that is free sends on while earlier messages travel; the model adds both times.
    assert simulated_s(assumed, 25, gpus) <= exposed_s(assumed, 25, gpus) * (1 + 1e-9)


@pytest.mark.parametrize("packs", [1, 2, 5])
@pytest.mark.parametrize("reduce_s", [0.01, 0.05, 0.3])
def test_a_step_agrees_with_simulated_packs(packs: int, reduce_s: float) -> None:
    compute_s, overlap = 0.1, 0.6
    free_s = 0.0
    for pack in range(packs):
        ready_s = compute_s * (1 - overlap * (1 - (pack + 1) / packs))
        free_s = max(free_s, ready_s) + reduce_s / packs
    assert ring.step_s(compute_s, reduce_s, overlap, packs) == pytest.approx(free_s)


def test_an_endless_bandwidth_leaves_only_messages() -> None:
    endless = dataclasses.replace(NO_OVERLAP, message_s=1e-3, bytes_per_pack=25.6e6)
    _, efficiency = ring.predict_gpus(endless, math.inf, 8)
    assert efficiency == pytest.approx(0.1 / (0.1 + 4 * 14 * 1e-3))  # 4 packs, 14 messages for each
    instant = dataclasses.replace(endless, message_s=0.0)
    assert ring.predict_gpus(instant, math.inf, 8) == (0.1, 1.0)


def test_two_gpus_send_half_of_the_gradients_twice() -> None:
    two = dataclasses.replace(
        NO_OVERLAP, gradient_bytes=8e6, usable=0.5
    )  # 4 packs: test_arithmetic
    assert exposed_s(two, 10, 2) == pytest.approx(2 * 4e6 / 0.625e9 + 4 * 2 * 10e-6)  # 4 packs


def test_one_gpu_only_computes_and_cards_divide_the_networks_time() -> None:
    assert ring.predict_gpus(Assumptions(accumulate_steps=3), 1, 1) == pytest.approx((0.3, 1.0))
    of_eight = Assumptions(overlap=0, message_s=0, node_message_s=0, gpus_per_node=8)
    two_cards = dataclasses.replace(of_eight, nics_per_node=2)
    assert exposed_s(of_eight, 25, 64) == pytest.approx(2 * exposed_s(two_cards, 25, 64))


def test_measured_steps_of_eight_workers_are_within_the_error_of_their_result() -> None:
    """Processors take the place of the network: 8 workers share 2 cores (benchmarks/network.py)."""
    path = ROOT / "benchmarks" / "results" / "2026-11-26-network.json"
    figures = json.loads(path.read_text())["figures"]
    cost, points = figures["processors"], figures["links"]["10 Gbit/s"]["points"]
    measured_s = {(each["workers"], each["bytes"]): each["step_s"][0] for each in points}
    for size, stated in ((2 << 20, 0.045), (8 << 20, 0.055)):  # 4 % and 6 %
        assumed = Assumptions(
            gradient_bytes=size,
            compute_s=0.05 + 4 * (measured_s[1, size] - 0.05),
            overlap=0.0,
            message_s=4 * cost["message_s"],
            usable=1.0,
        )
        gbit_per_s = 8e-9 / (4 * cost["s_per_byte"])
        predicted_s, _ = ring.predict_gpus(assumed, gbit_per_s, 8)
        assert predicted_s == pytest.approx(measured_s[8, size], rel=stated + 0.005)


@pytest.mark.parametrize("gpus", [8, 16, 512])
@pytest.mark.parametrize("wanted", [0.5, 0.9])
def test_fewer_micro_batches_would_not_reach_the_efficiency(gpus: int, wanted: float) -> None:
    assumed = Assumptions(gpus_per_node=8)
    found = plan.least_accumulate_steps(assumed, 10, gpus, wanted)
    efficiencies = [
        ring.predict_gpus(dataclasses.replace(assumed, accumulate_steps=steps), 10, gpus)[1]
        for steps in range(1, found + 1)
    ]
    assert efficiencies[-1] >= wanted - 1e-9
    assert all(efficiency < wanted for efficiency in efficiencies[:-1])


def cells(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[tuple[str, str], list[str]]:
    """The printed cells by number of GPUs and dtype."""
    assert plan.main([*GIVEN, *flags]) == 0
    output = capsys.readouterr().out
    return {
        (gpus, dtype): rest.split()
        for gpus, dtype, rest in re.findall(r"^ *(\d+) +(\w+16|\w+32) +(.*)$", output, re.MULTILINE)
    }


def test_a_row_agrees_with_a_calculation_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    rows = cells(capsys, "--batch=128", "--examples=1.28e6", "--price_per_gpu_hour=2", "--gpus=16")
    # 30/16 x 102.4 MB at 20 Gbit/s take 76.8 ms. 5 packs, as sqrt(102.4e6 / 16 / 2^18) = 4.9; each
    # has 4 messages of 10 us and 26 of 3.4 us. 4/5 of 66.7 ms are hidden.
    step_ms = 100 + 76.8 + 5 * (4 * 0.010 + 26 * 0.0034) - 4 / 5 * 200 / 3
    examples_per_s = 16 * 128 / step_ms * 1000
    hours = 1.28e6 / examples_per_s / 3600
    assert rows["16", "float32"] == [
        *("5", f"{step_ms:.1f}", f"{100 / step_ms:.3f}", f"{100 / (step_ms + 160 / 3):.3f}", "3"),
        *(f"{examples_per_s:,.0f}", f"{hours:.4f}", f"{hours * 16 * 2:.2f}"),
    ]
    # Half the bytes in 4 packs: the backward pass hides all but the last.
    step_ms = 100 + (38.4 + 4 * (4 * 0.010 + 26 * 0.0034)) / 4
    assert rows["16", "bfloat16"][:3] == ["4", f"{step_ms:.1f}", f"{100 / step_ms:.3f}"]


def test_accumulated_micro_batches_are_in_the_step_and_in_its_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ("--gpus=16", "--batch=128")
    once = cells(capsys, *flags)["16", "float32"]
    thrice = cells(capsys, *flags, "--accumulate_steps=3")["16", "float32"]
    assert float(thrice[1]) == pytest.approx(float(once[1]) + 200)
    assert thrice[4] == once[4]  # what the wanted efficiency needs
    rate = float(thrice[5].replace(",", ""))
    assert rate == pytest.approx(3 * 16 * 128 / float(thrice[1]) * 1000, rel=1e-3)


def test_columns_that_are_left_out_are_named_and_every_assumption_has_its_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main([*GIVEN, "--batch=8", "--overlap=0.5"]) == 0
    output = capsys.readouterr().out
    assert "left out: epoch h, which needs --examples\n" in output
    assert "left out: epoch price, which needs --examples, --price_per_gpu_hour\n" in output
    assert "left out: examples/s" not in output
    assert re.search(r"^--overlap +0\.5 +given$", output, re.MULTILINE)
    assert re.search(r"^--usable +0\.8 +assumed", output, re.MULTILINE)
    printed = set(re.findall(r"^--(\w+) +\S+.*  \S", output, re.MULTILINE))
    assert printed >= {"parameters", "link_gbit", "step_s", "batch", *plan.SOURCES}


def test_every_flag_has_a_range_and_every_default_that_the_model_uses_a_source() -> None:
    names = {field.name for field in dataclasses.fields(plan.Plan)}
    assert set(plan.RULES) == names - {"gpus"}
    optional = {each for needed in plan.NEEDED.values() for each in needed}
    required = {"parameters", "link_gbit", "step_s"}
    assert set(plan.SOURCES) == names - optional - required - {"gpus", "efficiency"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step_s=1", "--link_gbit=1"], "--parameters is missing: Number of trainable"),
        ([*GIVEN[1:], "--link_gbit=0"], "--link_gbit is 0.0: it has to be positive, 1e-18 to 1e18"),
        ([*GIVEN[1:], "--step_s=nan"], "--step_s is nan: it has to be positive, 1e-18 to 1e18"),
        ([*GIVEN[1:], "--gpus=8,0"], "--gpus is 8,0: it has to be numbers from 1 to 1e9"),
        ([*GIVEN[1:], "--gpus=8,x"], "--gpus is 8,x: it has to be whole numbers"),
        ([*GIVEN[1:], "--usable=1.1"], "--usable is 1.1: it has to be 0.01 to 1"),
        ([*GIVEN[1:], "--overlap=-1"], "--overlap is -1.0: it has to be 0 to 1"),
        ([*GIVEN[1:], "--efficiency=1"], "--efficiency is 1.0: it has to be between 0 and 1"),
        ([*GIVEN[1:], "--batch=0.5"], "--batch is 0.5: it has to be 1 or more, up to 1e18"),
        ([*GIVEN[1:], "--link=3"], "Unknown command line flag 'link'"),
    ],
)
def test_wrong_input_is_one_error(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["plan", *flags]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out


def test_the_limits_of_the_flags_have_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--parameters=1", "--link_gbit=1e18", "--step_s=1e18", "--bytes_per_pack=1e18"]
    large = ["--parameters=1e18", "--link_gbit=1e-18", "--step_s=1e-18", "--bytes_per_pack=1"]
    for flags in (small, [*large, "--usable=0.01", "--efficiency=0.999999", "--message_s=1e18"]):
        assert plan.main(["plan", *flags, "--gpus=1,1000000000"]) == 0
        output = capsys.readouterr().out
        assert not re.search(r"\b(nan|inf)\b", output)


def test_the_page_has_the_real_output(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "planning.md").read_text()
    examples = re.findall(r"^\$ python -m benchmarks\.plan (.*)\n([^`]+)```", page, re.MULTILINE)
    assert len(examples) == 7
    for flags, output in examples:
        assert plan.main(["plan", *flags.split()]) == 0
        assert capsys.readouterr().out.startswith(output), flags
