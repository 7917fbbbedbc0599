"""What a run was asked for, checked before anything starts. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from tfdp.errors import BadInput
from tfdp.publishing.options import PublishSettings
from tfdp.words import AutoShard, Communication, GradientDtype, MixedPrecision

MOST = (1 << 31) - 1  # of whatever is counted, seconds included


@dataclasses.dataclass(frozen=True)
class Settings(PublishSettings):
    """The flags of ``python -m tfdp.train``, valid.

    Raises:
        BadInput: if a value is out of range.
    """

    recipe: str
    workdir: Path
    steps: int | None = None
    epochs: int | None = None
    global_batch_size: int = 64
    seed: int = 0
    hparam: tuple[str, ...] = ()
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    keep_best: str = ""
    adopt_checkpoints: bool = False
    eval_every_steps: int = 0
    export_dir: Path | None = None
    communication: Communication = "auto"
    auto_shard: AutoShard = "auto"
    accumulate_steps: int = 1
    mixed_precision: MixedPrecision = "none"
    gradient_dtype: GradientDtype = "float32"
    bytes_per_pack: int | None = None
    startup_timeout_s: float = 600.0
    tensorboard: bool = True
    profile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recipe:
            raise BadInput("--recipe is missing: name a Python file or a dotted module")
        if not str(self.workdir) or str(self.workdir) == ".":
            raise BadInput("--workdir is missing: name a folder for checkpoints, logs and results")
        for name in ("workdir", "export_dir"):
            if ":/" in str(getattr(self, name)):
                raise BadInput(
                    f"--{name} is {getattr(self, name)}: remote paths have no atomic rename, "
                    "so a crash could leave half a file; use a mounted file system"
                )
        if self.steps is not None and self.epochs is not None:
            raise BadInput(f"--steps={self.steps} and --epochs={self.epochs}: give one of them")
        for name, least in (
            ("steps", 1),
            ("epochs", 1),
            ("global_batch_size", 1),
            ("checkpoint_every_steps", 1),
            ("keep_checkpoints", 1),
            ("eval_every_steps", 0),
            ("accumulate_steps", 1),
            ("bytes_per_pack", 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= MOST:
                raise BadInput(f"--{name} is {value}: it has to be {least} or more, up to {MOST}")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise BadInput(f"--seed is {self.seed}: it has to fit into 64 bits")
        if not 0 < self.startup_timeout_s <= MOST:
            raise BadInput(
                f"--startup_timeout_s is {self.startup_timeout_s}: it has to be positive, "
                f"up to {MOST}"
            )
        for name, choices in (
            ("communication", get_args(Communication)),
            ("auto_shard", get_args(AutoShard)),
            ("mixed_precision", get_args(MixedPrecision)),
            ("gradient_dtype", get_args(GradientDtype)),
        ):
            if getattr(self, name) not in choices:
                raise BadInput(
                    f"--{name} is {getattr(self, name)}: it has to be one of {', '.join(choices)}"
                )

        if self.keep_best:
            name, _, which = self.keep_best.rpartition(":")
            if not name or which not in ("min", "max"):
                raise BadInput(
                    f"--keep_best is {self.keep_best}: it has to be NAME:min or NAME:max of what "
                    "an evaluation gives, such as loss:min"
                )
            if not self.eval_every_steps:
                raise BadInput(
                    f"--keep_best is {self.keep_best}, and nothing is evaluated between: say how "
                    "often by --eval_every_steps"
                )
        if self.publish_dir is None and self.demands:
            raise BadInput(
                "--export_dir is none, so nothing is published: --require_min, --require_max and "
                "--not_worse_than_current say what a version has to reach"
            )

    @property
    def publish_dir(self) -> Path | None:
        """Where versions are published: ``--export_dir``, by default ``WORKDIR/model``."""
        if self.export_dir is None:
            return self.workdir / "model"
        return None if str(self.export_dir) == "none" else self.export_dir

    def shared(self) -> dict[str, Any]:
        """What has to be the same on every worker, for comparison, as JSON takes it."""
        here_only = ("workdir", "startup_timeout_s", "models_config")
        values = dataclasses.asdict(self) | {"export_dir": self.publish_dir and "a folder"}
        return {f"--{name}": value for name, value in values.items() if name not in here_only}
