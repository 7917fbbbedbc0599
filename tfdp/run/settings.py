"""The flags of the commands, checked before anything starts. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from tfdp.choices import (
    AutoShard,
    Cluster,
    Communication,
    GradientDtype,
    MixedPrecision,
    PredictionFormat,
)
from tfdp.cli import flags
from tfdp.cli.flags import flag
from tfdp.errors import BadInput
from tfdp.publishing.settings import PublishSettings

MAX_COUNT = (1 << 31) - 1  # of steps, examples, seconds and so on

_CHOICES = {
    "cluster": get_args(Cluster),
    "communication": get_args(Communication),
    "auto_shard": get_args(AutoShard),
    "mixed_precision": get_args(MixedPrecision),
    "gradient_dtype": get_args(GradientDtype),
    "format": get_args(PredictionFormat),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The flags of every command that runs on all workers, checked.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    recipe: str = flag("", "Python file or dotted module with build_model and train_data.")
    hparam: tuple[str, ...] = flag((), "NAME=VALUE for a field of the recipe's HParams.")
    global_batch_size: int = flag(64, "Examples per step, over all replicas.")
    cluster: Cluster = flag(
        "auto", "Where to find the other workers: auto, none, tf_config, slurm, kubernetes, env."
    )
    communication: Communication = flag("auto", "How workers all-reduce: auto, ring or nccl.")
    auto_shard: AutoShard = flag(
        "auto", "How workers share a tf.data.Dataset: auto, file, data, off."
    )
    startup_timeout_s: float = flag(
        600.0, "Seconds to wait for the other workers.", may_differ=True
    )

    def __post_init__(self) -> None:
        if not self.recipe:
            raise BadInput("--recipe is missing: name a Python file or a dotted module")
        check_count("global_batch_size", self.global_batch_size, least=1)
        if not 0 < self.startup_timeout_s <= MAX_COUNT:
            raise BadInput(
                f"--startup_timeout_s is {self.startup_timeout_s}: it has to be positive, "
                f"up to {MAX_COUNT}"
            )
        for name, choices in _CHOICES.items():
            value = getattr(self, name, choices[0])
            if value not in choices:
                raise BadInput(f"--{name} is {value}: it has to be one of {', '.join(choices)}")

    def shared(self) -> dict[str, Any]:
        """Returns the values that all workers must have in common, by flag, as JSON takes them."""
        return flags.shared(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(WorkerSettings, PublishSettings):
    """The flags of ``python -m tfdp.train``, checked.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    workdir: Path = flag(
        Path(), "Folder for checkpoints, logs, curves and summary.json.", may_differ=True
    )
    steps: int | None = flag(None, "Total number of updates; or give --epochs.")
    epochs: int | None = flag(None, "Total number of passes over the data; 10 by default.")
    seed: int = flag(0, "Determines initial weights, the order of examples and random layers.")
    min_workers: int | None = flag(
        None, "Train with so many workers at least, if others are away; all of them by default."
    )
    elastic_wait_s: float = flag(
        60.0, "Seconds to wait for all workers before training without some.", may_differ=True
    )
    checkpoint_every_steps: int = flag(1000, "Updates from one checkpoint to the next.")
    keep_checkpoints: int = flag(3, "Number of newest checkpoints to keep.")
    keep_best: str = flag(
        "", "NAME:min or NAME:max of an evaluation: its checkpoint is kept as well."
    )
    adopt_checkpoints: bool = flag(
        False, "Go on from checkpoints of another recipe, seed or global batch size."
    )
    eval_every_steps: int = flag(
        0, "Updates from one evaluation to the next; 0: evaluate at the end only."
    )
    export_dir: Path | None = flag(
        None, "Folder to publish versions in: WORKDIR/model; none: don't publish."
    )
    accumulate_steps: int = flag(
        1, "Number of micro-batches in which a replica computes its share of a batch."
    )
    mixed_precision: MixedPrecision = flag(
        "none", "Compute in bfloat16 or float16, keep float32 weights."
    )
    gradient_dtype: GradientDtype = flag(
        "float32", "Dtype in which gradients are sent: bfloat16 is half the bytes."
    )
    bytes_per_pack: int | None = flag(None, "Largest size of one all-reduce of gradients.")
    pause_at_step: int | None = flag(
        None, "Save, evaluate and end there; the same command without it goes on."
    )
    hang_timeout_s: float | None = flag(
        None,
        "Seconds without a step after which the run ends with 138; by default far more than any "
        "step has taken.",
        may_differ=True,
    )
    tensorboard: bool = flag(True, "Write WORKDIR/tensorboard.")
    profile: bool = flag(False, "Profile some steps, and report what limits the run's speed.")

    def __post_init__(self) -> None:
        PublishSettings.__post_init__(self)
        WorkerSettings.__post_init__(self)
        if not str(self.workdir) or str(self.workdir) == ".":
            raise BadInput("--workdir is missing: name a folder for checkpoints, logs and results")
        check_is_local("workdir", self.workdir)
        check_is_local("export_dir", self.export_dir)
        if self.steps is not None and self.epochs is not None:
            raise BadInput(f"--steps={self.steps} and --epochs={self.epochs}: give one of them")
        for name in ("steps", "epochs", "checkpoint_every_steps", "keep_checkpoints"):
            check_count(name, getattr(self, name), least=1)
        check_count("min_workers", self.min_workers, least=1)
        check_count("pause_at_step", self.pause_at_step, least=1)
        if not 0 <= self.elastic_wait_s <= MAX_COUNT:
            raise BadInput(
                f"--elastic_wait_s is {self.elastic_wait_s}: it has to be 0 or more, up to "
                f"{MAX_COUNT}"
            )
        if self.min_workers is not None and self.elastic_wait_s >= self.startup_timeout_s:
            raise BadInput(
                f"--elastic_wait_s is {self.elastic_wait_s}: it has to be less than "
                f"--startup_timeout_s, {self.startup_timeout_s}, after which workers give up"
            )
        if self.hang_timeout_s is not None and not 0 < self.hang_timeout_s <= MAX_COUNT:
            raise BadInput(
                f"--hang_timeout_s is {self.hang_timeout_s}: it has to be positive, up to "
                f"{MAX_COUNT}; leave it out for an automatic limit"
            )
        check_count("eval_every_steps", self.eval_every_steps, least=0)
        check_count("accumulate_steps", self.accumulate_steps, least=1)
        check_count("bytes_per_pack", self.bytes_per_pack, least=1)
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise BadInput(f"--seed is {self.seed}: it has to fit into 64 bits")
        if self.keep_best:
            self._check_keep_best()
        if self.publish_dir is None and self.gates:
            raise BadInput(
                "--export_dir is none, so nothing is published: --require_min, --require_max and "
                "--not_worse_than_current are conditions for publishing; leave them out"
            )

    def check_min_workers(self, count: int) -> None:
        """Raises BadInput if ``--min_workers`` is more than the number of workers."""
        if self.min_workers is not None and self.min_workers > count:
            raise BadInput(
                f"--min_workers is {self.min_workers}: it has to be 1 to {count}, as the cluster "
                f"has {count} workers"
            )

    def _check_keep_best(self) -> None:
        metric, _, direction = self.keep_best.rpartition(":")
        if not metric or direction not in ("min", "max"):
            raise BadInput(
                f"--keep_best is {self.keep_best}: it has to be NAME:min or NAME:max of a metric "
                "of the evaluation, such as loss:min"
            )
        if not self.eval_every_steps:
            raise BadInput(
                f"--keep_best is {self.keep_best}, and nothing is evaluated between: give "
                "--eval_every_steps"
            )

    @property
    def publish_dir(self) -> Path | None:
        """The folder to publish versions in: ``--export_dir``, by default ``WORKDIR/model``."""
        if self.export_dir is None:
            return self.workdir / "model"
        return None if str(self.export_dir) == "none" else self.export_dir

    def shared(self) -> dict[str, Any]:
        """Returns the values that all workers must have in common, by flag, as JSON takes them."""
        return super().shared() | {"--export_dir": self.publish_dir and "a folder"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings(WorkerSettings):
    """The flags of every command that reads a run's checkpoint, checked.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    workdir: Path | None = flag(None, "Folder of a run, whose checkpoint is read.", may_differ=True)
    step: int | None = flag(None, "Step of the checkpoint; the newest by default.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(CheckpointSettings):
    """The flags of ``python -m tfdp.evaluate``, checked.

    Raises:
        BadInput: if they don't fit together, or a value is out of range.
    """

    version: Path | None = flag(
        None, "Folder of a published version to evaluate instead.", may_differ=True
    )
    output: Path | None = flag(
        None, "File for the result, instead of standard output.", may_differ=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.workdir, self.step, self.version)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings(CheckpointSettings):
    """The flags of ``python -m tfdp.predict``, checked.

    Raises:
        BadInput: if they don't fit together, or a value is out of range.
    """

    global_batch_size: int = flag(64, "Rows of a batch, which one worker computes.")
    version: Path | None = flag(
        None, "Folder of a published version to predict with instead.", may_differ=True
    )
    output: Path = flag(
        Path(), "Folder for the predictions, which all workers share.", may_differ=True
    )
    format: PredictionFormat = flag("npz", "Format of the files: npz, tfrecord, jsonl.")
    batches_per_part: int | None = flag(
        None, "Batches in each file; by default about a thousandth of the data, up to 1024."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.workdir, self.step, self.version)
        if self.output == Path():
            raise BadInput("--output is missing: name a folder for the predictions")
        check_is_local("output", self.output)
        check_count("batches_per_part", self.batches_per_part, least=1)
        if self.auto_shard in ("file", "off"):
            raise BadInput(
                f"--auto_shard is {self.auto_shard}: each worker predicts parts of its own, and "
                "reads all of a dataset to find them; leave it out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(CheckpointSettings, PublishSettings):
    """The flags of ``python -m tfdp.export``, checked.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    export_dir: Path | None = flag(
        None, "Folder to publish the version in: WORKDIR/model.", may_differ=True
    )

    def __post_init__(self) -> None:
        PublishSettings.__post_init__(self)
        CheckpointSettings.__post_init__(self)
        if self.workdir is None:
            raise BadInput("--workdir is missing: name the folder of the run to publish from")
        check_is_local("export_dir", self.export_dir)


def check_model(workdir: Path | None, step: int | None, version: Path | None) -> None:
    """Raises BadInput unless flags name one model: a run's checkpoint, or a version."""
    if (workdir is None) == (version is None):
        raise BadInput(
            "give one of --workdir (of a run, for its checkpoint) and --version (the folder "
            "of a published version)"
        )
    if step is not None and version is not None:
        raise BadInput(f"--step={step} is of a run's checkpoint: it goes with --workdir")


def check_count(name: str, value: int | None, *, least: int) -> None:
    """Raises BadInput if a flag's value is out of range; None stands for the flag's default."""
    if value is not None and not least <= value <= MAX_COUNT:
        raise BadInput(f"--{name} is {value}: it has to be {least} or more, up to {MAX_COUNT}")


def check_is_local(name: str, path: Path | None) -> None:
    """Raises BadInput if a flag's path is remote."""
    if ":/" in str(path):
        raise BadInput(
            f"--{name} is {path}: remote paths have no atomic rename, so a crash could leave half "
            "a file; use a mounted file system"
        )
