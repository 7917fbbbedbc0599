"""Pictures of the newest results, for the README and the docs.

    make pictures          # .bench/bin/python -m benchmarks.pictures [FOLDER OF RESULTS] [TO]

Each kind of result has a function of its name that draws it. Missing results are skipped. One more
picture, of docs/planning.md, needs no results.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from benchmarks import ring
from benchmarks.measuring import RESULTS
from benchmarks.peers.models import BATCH
from tests.running import ROOT

PICTURES = ROOT / "docs" / "pictures"
OURS, THEIRS, OTHERS = "#1f6fb4", "#e0812b", "#9a9a9a"  # colours
SYSTEMS = {  # of training_peers, from top to bottom: title and colour
    "tfdp": ("tfdp", OURS),
    "ddp": ("PyTorch DDP, gloo", THEIRS),
    "tf_keras": ("tf_keras fit, MWMS", OTHERS),
    "keras_jax": ("Keras 3 on JAX", OTHERS),
    "tfdp_bf16": ("tfdp, bfloat16 on the wire", OURS),
    "ddp_bf16": ("DDP, its bf16 hook", THEIRS),
}
TASKS = {
    "tiny": "tiny MLP\n2.4k parameters",
    "cnn": "CNN\n95k parameters",
    "mlp": "MLP\n16.8M parameters",
    "transformer": "transformer\n11M parameters",
    "resnet18": "ResNet-18\non 32 by 32 pixels",
}
PLANNED_LINKS = ((10, 1), (25, 1), (100, 1), (100, 8))  # Gbit/s of a card, and cards of a node
plt.rcParams |= {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 150,
    "legend.frameon": False,
}


def training_peers(figures: dict[str, Any]) -> Any:
    """Draws bars of examples/s on two workers, in a panel for each model."""
    tasks = [task for task in TASKS if task in figures]
    picture, panels = plt.subplots(
        1, len(tasks), figsize=(2.2 * len(tasks) + 1.4, 2.6), sharey=True, squeeze=False
    )
    for task, panel in zip(tasks, panels[0], strict=True):
        systems = [system for system in SYSTEMS if system in figures[task]]
        rates = [
            2 * BATCH / statistics.median(figures[task][system]["step_s"]) for system in systems
        ]
        names, colours = zip(*(SYSTEMS[system] for system in systems), strict=True)
        bars = panel.barh(names, rates, color=colours, height=0.7)
        panel.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=2, fontsize=8)
        panel.set_title(TASKS[task])
        panel.set_xlim(0, 1.3 * max(rates))
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
    panels[0][0].invert_yaxis()
    picture.suptitle("Examples per second, two workers of one core each", x=0.01, ha="left")
    return picture


def serving_load(figures: dict[str, Any]) -> Any:
    """Draws latency against offered load, on a logarithmic scale."""
    picture, panel = plt.subplots(figsize=(6, 3.2))
    for (name, points), colour in zip(figures.items(), (OTHERS, OURS), strict=True):
        offered = [point["offered_per_s"] for point in points]
        for key, style in (("p99_ms", "--"), ("p50_ms", "-")):
            latencies = [point[key] for point in points]
            label = f"{name}, {key.removesuffix('_ms')}"
            panel.plot(offered, latencies, style, marker=".", color=colour, label=label)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.set_xlabel("calls offered per second")
    panel.set_ylabel("milliseconds from when a call was due")
    panel.set_title("One server on one core: latency against offered load")
    panel.legend()
    return picture


def serving_publications(figures: dict[str, Any]) -> Any:
    """Draws the 99th percentile of each second, with the phases of the scenario."""
    picture, panel = plt.subplots(figsize=(8, 3))
    seconds = figures["p99_ms_by_second"]
    top = 1.35 * max(value for value in seconds if value is not None)
    panel.plot([value if value is not None else float("nan") for value in seconds], color=OURS)
    begins = [*figures["begins_s"].items(), ("", len(seconds))]
    for i, (name, began_s) in enumerate(begins[:-1]):
        if i % 2:
            panel.axvspan(began_s, begins[i + 1][1], color="#eeeeee", zorder=0)
        panel.text(began_s + 0.3, top, name, rotation=90, va="top", fontsize=7, color="#555555")
    panel.set_ylim(0, top)
    panel.set_xlim(0, len(seconds) - 1)
    panel.set_xlabel("seconds")
    panel.set_ylabel("p99 of each second, ms")
    panel.set_title(f"{figures['calls']:,} calls, of which {figures['failed']} failed")
    return picture


def recovery(figures: dict[str, Any]) -> Any:
    """Draws bars of seconds for each event, for tfdp and torchrun."""
    picture, panel = plt.subplots(figsize=(6, 2.4))
    events = list(figures["tfdp"])
    for i, (system, colour) in enumerate((("tfdp", OURS), ("torchrun", THEIRS))):
        medians = [statistics.median(figures[system][event]) for event in events]
        positions = [position + 0.38 * i for position in range(len(events))]
        bars = panel.barh(positions, medians, height=0.36, color=colour, label=system)
        panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    panel.set_xlim(right=1.3 * panel.get_xlim()[1])  # room for the legend
    panel.set_yticks([position + 0.19 for position in range(len(events))], events)
    panel.invert_yaxis()
    panel.set_xlabel("seconds until every worker has done an update")
    panel.legend(loc="center right")
    return picture


def network(figures: dict[str, Any]) -> Any:
    """Draws step time against workers, measured and modelled, in a panel for each link."""
    links = figures["links"]
    picture, panels = plt.subplots(
        1, len(links), figsize=(3.2 * len(links), 3), sharey=True, squeeze=False
    )
    for (name, link), panel in zip(links.items(), panels[0], strict=True):
        sizes = sorted({point["bytes"] for point in link["points"]})
        for size, colour in zip(sizes, (THEIRS, OURS), strict=False):
            points = [point for point in link["points"] if point["bytes"] == size]
            workers = [point["workers"] for point in points]
            model_ms = [1000 * point["model_s"] for point in points]
            panel.plot(workers, model_ms, "-", color=colour, label=f"{size >> 20} MiB, model")
            for use, marker in (("given", "."), ("fitted", "o"), ("foretold", "x")):
                of_use = [point for point in points if point["use"] == use]
                panel.plot(
                    [point["workers"] for point in of_use],
                    [1000 * statistics.median(point["step_s"]) for point in of_use],
                    marker,
                    color=colour,
                    label=f"measured, {use}",
                )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("workers")
        panel.set_title(name)
    panels[0][0].set_ylim(
        bottom=0
    )  # of all panels (they share the axis), once all points are drawn
    panels[0][0].set_ylabel("milliseconds a step")
    panels[0][0].legend(fontsize=7)
    return picture


def bfloat16_loss(figures: dict[str, Any]) -> Any:
    """Draws the loss of every run by epoch."""
    picture, panel = plt.subplots(figsize=(6, 3))
    for (dtype, runs), colour, style in zip(
        figures.items(), (OTHERS, OURS), ("-", "--"), strict=True
    ):
        for i, run in enumerate(runs):
            epochs = range(1, 1 + len(run["loss"]))
            label = f"gradients as {dtype}" if i == 0 else None
            panel.plot(epochs, run["loss"], style, color=colour, label=label)
    panel.set_yscale("log")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("epochs of the digits, on two workers")
    panel.set_ylabel("loss")
    panel.set_title("A pair of lines for each seed")
    panel.legend()
    return picture


def planning() -> Any:
    """Draws the predicted efficiency against GPUs, for the first example of docs/planning.md."""
    picture, panel = plt.subplots(figsize=(6, 3.2))
    gpus = [2**i for i in range(3, 10)]
    for (gbit, cards), colour in zip(PLANNED_LINKS, (OTHERS, THEIRS, OURS, "#222222"), strict=True):
        for overlap, style in ((ring.Assumptions().overlap, "-"), (0.0, "--")):
            assumed = ring.Assumptions(overlap=overlap, gpus_per_node=8, nics_per_node=cards)
            efficiencies = [ring.predict_gpus(assumed, gbit, count)[1] for count in gpus]
            label = f"{cards} x {gbit} Gbit/s" if overlap else None
            panel.plot(gpus, efficiencies, style, marker=".", color=colour, label=label)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("GPUs, 8 in a node; dashed: nothing overlaps")
    panel.set_ylabel("efficiency")
    panel.set_title("Predicted, not measured: ResNet-50, float32, by a node's network cards")
    panel.legend(ncols=2, loc="lower left")
    return picture


DRAW_FUNCTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    function.__name__: function
    for function in (
        *(training_peers, bfloat16_loss, recovery, network),
        *(serving_load, serving_publications),
    )
}


def main(results: Path = RESULTS, pictures: Path = PICTURES) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAW_FUNCTIONS.items():
        files = sorted(results.glob(f"*-{name}.json"))  # by date
        if not files:
            print(f"{name}: no results in {results}")
            continue
        result = json.loads(files[-1].read_text())
        picture = draw(result["figures"])
        origin = f"{result['date']}, {result['machine']['cores']} cores, {result['machine']['cpu']}"
        picture.text(0.99, 0.005, origin, ha="right", fontsize=6, color="#777777")
        picture.tight_layout()
        path = pictures / f"{name}.png"
        picture.savefig(path)
        print(f"{files[-1].name} -> {path}")
    picture = planning()
    picture.tight_layout()
    picture.savefig(pictures / "planning.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
