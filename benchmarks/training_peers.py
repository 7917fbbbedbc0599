"""Speed of training: this project beside one process alone, tf_keras, PyTorch DDP and JAX.

    make peers                                     # their environment, .bench
    python -m benchmarks.training_peers [--tasks=cnn,mlp] [--systems=tfdp,ddp] [--rounds=5]

Two workers, each pinned to a core of its own, with 32 examples each a step; rounds alternate
between systems. Ratios are taken round by round, of systems that ran right after each other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import PEERS_PYTHON, Spread
from benchmarks.peers.models import BATCH, EPOCHS, TASKS
from tests.running import ROOT, free_port

WORKERS = 2
LIMIT_S = 1200
WORKDIR = "run"  # in a folder that is removed

Jobs = tuple[list[list[str]], list[dict[str, str]]]  # a command and an environment for each worker


def tfdp(task: str, workers: int = WORKERS, *flags: str) -> Jobs:
    steps = TASKS[task].steps
    command = [
        *(sys.executable, "-m", "tfdp.train", f"--workdir={WORKDIR}", f"--epochs={EPOCHS}"),
        f"--recipe={ROOT / 'benchmarks' / 'peers' / 'tfdp_recipe.py'}",
        *(f"--hparam=task={task}", f"--hparam=steps={steps}", f"--hparam=workers={workers}"),
        *(f"--global_batch_size={BATCH * workers}", f"--checkpoint_every_steps={EPOCHS * steps}"),
        *("--export_dir=none", "--notensorboard", *flags),
    ]
    return [command] * workers, measuring.tf_configs(workers)


def torch(task: str, workers: int = WORKERS, *flags: str) -> Jobs:
    command = _peer("torch_ddp", task, TASKS[task].steps, *flags)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    envs = [address | {"RANK": str(rank), "WORLD_SIZE": str(workers)} for rank in range(workers)]
    return [command] * workers, envs


def tf_keras(task: str) -> Jobs:
    command = _peer("tf_keras_fit", task, TASKS[task].slow_steps)
    return [command] * WORKERS, measuring.tf_configs(WORKERS)


def keras_jax(task: str) -> Jobs:
    flags = ("--backend=jax", f"--address=127.0.0.1:{free_port()}", f"--workers={WORKERS}")
    command = _peer("keras_fit", task, TASKS[task].slow_steps, *flags)
    return [[*command, f"--index={index}"] for index in range(WORKERS)], [{}] * WORKERS


def keras_alone(task: str) -> Jobs:
    return [_peer("keras_fit", task, TASKS[task].slow_steps, "--backend=tensorflow")], [{}]


def _peer(name: str, task: str, steps: int, *flags: str) -> list[str]:
    module = f"benchmarks.peers.{name}"
    return [str(PEERS_PYTHON), "-m", module, f"--task={task}", f"--steps={steps}", *flags]


SYSTEMS: dict[str, Callable[[str], Jobs]] = {
    "tfdp": tfdp,
    "tfdp_alone": lambda task: tfdp(task, 1),
    "keras_alone": keras_alone,
    "ddp": torch,
    "tfdp_bf16": lambda task: tfdp(task, WORKERS, "--gradient_dtype=bfloat16"),
    "ddp_bf16": lambda task: torch(task, WORKERS, "--bf16"),
    "torch_alone": lambda task: torch(task, 1),
    "tf_keras": tf_keras,
    "keras_jax": keras_jax,
}
# What is compared: a title, and of which system the step's time is divided by which one's.
RATIOS = (
    ("scaling: examples/s over twice one process's", "tfdp_alone", "tfdp"),
    ("the same of DDP", "torch_alone", "ddp"),
    ("examples/s over tf_keras fit, MWMS", "tf_keras", "tfdp"),
    ("examples/s over DDP", "ddp", "tfdp"),
    ("step over DDP's", "tfdp", "ddp"),
    ("bfloat16 on the wire: step over DDP's with its bf16 hook", "tfdp_bf16", "ddp_bf16"),
    ("examples/s over Keras 3 on JAX", "keras_jax", "tfdp"),
    ("one process: examples/s over Keras 3 fit", "keras_alone", "tfdp_alone"),
)


def measure(task: str, system: str) -> dict[str, Any]:
    """Trains and returns what the first worker reports."""
    commands, envs = SYSTEMS[system](task)
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = measuring.run_pinned(
            commands, [env | quiet for env in envs], cwd=Path(folder), limit_s=LIMIT_S
        )
    return measuring.reports_in(outputs[0])[-1]


def tell(figures: dict[str, dict[str, Any]]) -> str:
    """Ratios first, then milliseconds of a step."""
    compared = []
    for title, upper, lower in RATIOS:
        row = [
            measuring.ratios(found[upper]["step_s"], found[lower]["step_s"]).text()
            if upper in found and lower in found
            else ""
            for found in figures.values()
        ]
        if any(row):
            compared.append([title, *row])
    times = []
    for system in SYSTEMS:
        row = [
            Spread.of([1000 * step_s for step_s in found[system]["step_s"]]).text(
                3 if task == "tiny" else 1
            )
            if system in found
            else ""
            for task, found in figures.items()
        ]
        if any(row):
            times.append([system, *row])
    return (
        f"{measuring.table(('ratio', *figures), compared)}\n\n"
        f"Milliseconds of a step, {BATCH} examples on each worker; the least and the most:\n\n"
        f"{measuring.table(('system', *figures), times)}"
    )


def rounds(tasks: Sequence[str], systems: Sequence[str], count: int) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for task in tasks:
        found = figures[task] = {name: {"step_s": [], "parameters": 0} for name in systems}
        for number in range(count):
            for system in systems:
                one = measure(task, system)
                found[system]["step_s"].append(one["step_s"])
                found[system]["parameters"] = one["parameters"]
                step = f"{1000 * one['step_s']:.3f} ms a step"
                print(f"{task}, round {number + 1}, {system}: {step}", file=sys.stderr, flush=True)
        assert len({each["parameters"] for each in found.values()}) == 1, found
    return figures


def main() -> None:
    settings = measuring.arguments(__doc__, tasks=tuple(TASKS), systems=tuple(SYSTEMS), rounds=3)
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is not there: `make peers` makes it")
    began = measuring.machine()
    figures = rounds(settings.tasks, settings.systems, settings.rounds)
    measuring.save(
        settings.results,
        "training_peers",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "keras")
        | measuring.versions(PEERS_PYTHON, "tf_keras", "torch", "jax"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
