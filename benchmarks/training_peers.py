"""Speed of training, against one process alone, tf_keras, PyTorch DDP and Keras on JAX.

    make peers                                     # the peers' environment, .bench
    python -m benchmarks.training_peers [--tasks=cnn,mlp] [--systems=tfdp,ddp] [--rounds=5]

Two workers, each pinned to a core, train on 32 examples each per step. Rounds alternate between
systems, so a ratio compares runs of the same round.
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
WORKDIR = "run"  # in a temporary folder

Jobs = tuple[list[list[str]], list[dict[str, str]]]  # each worker's command and environment


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
# Ratios of step times: title, numerator, denominator.
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
    """Trains and returns the figures that the first worker reports."""
    commands, envs = SYSTEMS[system](task)
    few_logs = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = measuring.run_pinned(
            commands, [env | few_logs for env in envs], cwd=Path(folder), limit_s=LIMIT_S
        )
    return measuring.reports_in(outputs[0])[-1]


def to_markdown(figures: dict[str, dict[str, Any]]) -> str:
    """Returns a table of ratios and one of milliseconds per step; a column for each task."""
    ratio_rows = []
    for title, numerator, denominator in RATIOS:
        cells = [
            measuring.ratios(systems[numerator]["step_s"], systems[denominator]["step_s"]).text()
            if numerator in systems and denominator in systems
            else ""
            for systems in figures.values()
        ]
        if any(cells):
            ratio_rows.append([title, *cells])
    time_rows = []
    for system in SYSTEMS:
        cells = [
            Spread.of([1000 * step_s for step_s in systems[system]["step_s"]]).text(
                3 if task == "tiny" else 1
            )
            if system in systems
            else ""
            for task, systems in figures.items()
        ]
        if any(cells):
            time_rows.append([system, *cells])
    return (
        f"{measuring.table(('ratio', *figures), ratio_rows)}\n\n"
        f"Milliseconds of a step, {BATCH} examples on each worker; the least and the most:\n\n"
        f"{measuring.table(('system', *figures), time_rows)}"
    )


def measure_in_rounds(
    tasks: Sequence[str], systems: Sequence[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Returns figures by task and system.

    Raises:
        AssertionError: if the systems' models of a task differ in their number of parameters.
    """
    figures: dict[str, dict[str, Any]] = {}
    for task in tasks:
        figures[task] = {system: {"step_s": [], "parameters": 0} for system in systems}
        for number in range(rounds):
            for system, of_system in figures[task].items():
                report = measure(task, system)
                of_system["step_s"].append(report["step_s"])
                of_system["parameters"] = report["parameters"]
                step = f"{1000 * report['step_s']:.3f} ms a step"
                print(f"{task}, round {number + 1}, {system}: {step}", file=sys.stderr, flush=True)
        parameters = {of_system["parameters"] for of_system in figures[task].values()}
        assert len(parameters) == 1, figures[task]
    return figures


def main() -> None:
    settings = measuring.arguments(__doc__, tasks=tuple(TASKS), systems=tuple(SYSTEMS), rounds=3)
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} does not exist: `make peers` makes it")
    began = measuring.machine()
    figures = measure_in_rounds(settings.tasks, settings.systems, settings.rounds)
    measuring.save_results(
        "training_peers",
        vars(settings),
        began,
        figures,
        to_markdown(figures),
        peer_packages=("tf_keras", "torch", "jax"),
    )


if __name__ == "__main__":
    main()
