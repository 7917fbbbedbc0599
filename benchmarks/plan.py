"""Time, efficiency and price of training on many GPUs, predicted; docs/planning.md explains it.

    python -m benchmarks.plan --parameters=25.6e6 --link_gbit=25 --step_s=0.1
    python -m benchmarks.plan ... --batch=128 --examples=1.28e6 --price_per_gpu_hour=2

A step is an update of the weights, with the options of the same name of ``python -m tfdp.train``.
Nothing is measured, and no GPU is needed. Every assumption is a flag, and is printed.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence

from benchmarks import ring
from tfdp.cli import flags
from tfdp.cli.flags import flag
from tfdp.errors import BadInput

_DEFAULT = ring.Assumptions()
GRADIENT_BYTES = {"float32": 4, "bfloat16": 2}  # of a parameter, by --gradient_dtype
# Columns that need further flags.
NEEDED = {
    "examples/s": ("batch",),
    "epoch h": ("batch", "examples"),
    "epoch price": ("batch", "examples", "price_per_gpu_hour"),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The flags. ``RULES`` has their ranges, and ``SOURCES`` where the defaults come from.

    Raises:
        BadInput: if a value is missing or out of range.
    """

    parameters: float | None = flag(None, "Number of trainable weights of the model.")
    link_gbit: float | None = flag(
        None, "Gbit/s of one network card of a node, in one direction (nominal)."
    )
    step_s: float | None = flag(
        None, "Seconds of a step with one micro-batch on one GPU, without other workers."
    )
    batch: float | None = flag(None, "Examples of a micro-batch, on one GPU.")
    examples: float | None = flag(None, "Examples of an epoch.")
    price_per_gpu_hour: float | None = flag(None, "Price of a GPU for an hour, in any currency.")
    gpus: tuple[int, ...] = flag((8, 16, 32, 64, 128, 256, 512), "Numbers of GPUs, with commas.")
    efficiency: float = flag(
        0.9, "Efficiency for which the micro-batches of a step (--accumulate_steps) are computed."
    )
    accumulate_steps: int = flag(1, "Micro-batches of a step, one after the other, on each GPU.")
    overlap: float = flag(
        _DEFAULT.overlap, "Share of a micro-batch's time during which gradients become ready."
    )
    usable: float = flag(_DEFAULT.usable, "Share of --link_gbit that all-reduces reach.")
    message_s: float = flag(_DEFAULT.message_s, "Seconds of a message between two nodes.")
    gpus_per_node: int = flag(8, "GPUs of a node.")
    nics_per_node: int = flag(1, "Network cards of a node, which its GPUs share.")
    node_gbit: float = flag(
        _DEFAULT.node_gbit_per_s, "Gbit/s that a GPU reaches inside a node, in one direction."
    )
    node_message_s: float = flag(
        _DEFAULT.node_message_s, "Seconds of a message between two GPUs of a node."
    )
    bytes_per_pack: float | None = flag(
        None, "Largest size of one all-reduce; without it, sqrt(gradient bytes x GPUs x 256 KiB)."
    )

    def __post_init__(self) -> None:
        for name in ("parameters", "link_gbit", "step_s"):
            if getattr(self, name) is None:
                raise BadInput(f"--{name} is missing: {_help(name)}")
        for name, (holds, rule) in RULES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise BadInput(f"--{name} is {value}: it has to be {rule}")
        if not self.gpus or not all(1 <= each <= 10**9 for each in self.gpus):
            text = ",".join(map(str, self.gpus)) or "empty"
            raise BadInput(f"--gpus is {text}: it has to be numbers from 1 to 1e9, as in 8,16")

    def assumed(self, gradient_dtype: str) -> ring.Assumptions:
        """Returns the model's assumptions for gradients of a dtype."""
        assert self.parameters is not None
        assert self.step_s is not None
        return ring.Assumptions(
            gradient_bytes=self.parameters * GRADIENT_BYTES[gradient_dtype],
            compute_s=self.step_s,
            overlap=self.overlap,
            message_s=self.message_s,
            usable=self.usable,
            gpus_per_node=self.gpus_per_node,
            nics_per_node=self.nics_per_node,
            node_message_s=self.node_message_s,
            node_gbit_per_s=self.node_gbit,
            bytes_per_pack=self.bytes_per_pack,
            accumulate_steps=self.accumulate_steps,
        )


Rule = tuple[Callable[[float], bool], str]
_COUNT: Rule = (lambda value: 1 <= value <= 1e18, "1 or more, up to 1e18")
_POSITIVE: Rule = (lambda value: 1e-18 <= value <= 1e18, "positive, 1e-18 to 1e18")
_NOT_NEGATIVE: Rule = (lambda value: 0 <= value <= 1e18, "0 or more, up to 1e18")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("parameters", "batch", "examples", "bytes_per_pack"), _COUNT),
    **dict.fromkeys(("accumulate_steps", "gpus_per_node", "nics_per_node"), _COUNT),
    **dict.fromkeys(("link_gbit", "step_s", "price_per_gpu_hour", "node_gbit"), _POSITIVE),
    **dict.fromkeys(("message_s", "node_message_s"), _NOT_NEGATIVE),
    "overlap": (lambda value: 0 <= value <= 1, "0 to 1"),
    "usable": (lambda value: 0.01 <= value <= 1, "0.01 to 1"),
    "efficiency": (lambda value: 0 < value < 1, "between 0 and 1"),
}
SOURCES = {  # of the defaults
    "accumulate_steps": "tfdp.train's default",
    "overlap": "assumed: the backward pass is two thirds of a step",
    "usable": "assumed; measure by nccl-tests",
    "message_s": "assumed; NCCL's model of a ring has 9.6e-6 (2.8) to 14e-6 (2.20), tuning.cc",
    "gpus_per_node": "assumed",
    "nics_per_node": "assumed",
    "node_gbit": "assumed: NVLink; PCI Express 3 has less than 100; measure by nccl-tests",
    "node_message_s": "NCCL's model of a ring, NVLink, tuning.cc",
    "bytes_per_pack": "tfdp/step/gradients.py",
}


def least_accumulate_steps(
    assumed: ring.Assumptions, gbit_per_s: float, gpus: int, wanted: float
) -> int:
    """Returns the fewest micro-batches of a step that reach the efficiency ``wanted``.

    A step of A micro-batches of c seconds has one all-reduce, of which e seconds are not hidden,
    so A c / (A c + e) >= wanted.
    """
    once = dataclasses.replace(assumed, accumulate_steps=1)
    exposed_s = ring.predict_gpus(once, gbit_per_s, gpus)[0] - assumed.compute_s
    return max(1, math.ceil(round(wanted / (1 - wanted) * exposed_s / assumed.compute_s, 9)))


def row(plan: Plan, gpus: int, gradient_dtype: str) -> dict[str, str]:
    """Returns the cells of a row by column; those in ``NEEDED`` only if their flags are given."""
    assert plan.link_gbit is not None
    assumed = plan.assumed(gradient_dtype)
    step_s, efficiency = ring.predict_gpus(assumed, plan.link_gbit, gpus)
    alone = dataclasses.replace(assumed, overlap=0.0)
    _, without_overlap = ring.predict_gpus(alone, plan.link_gbit, gpus)
    micro_batches = least_accumulate_steps(assumed, plan.link_gbit, gpus, plan.efficiency)
    cells = {
        "GPUs": str(gpus),
        "gradients": gradient_dtype,
        "packs": str(ring.pack_count(gpus, assumed.gradient_bytes, assumed.bytes_per_pack)),
        "step ms": f"{1000 * step_s:,.1f}",
        "efficiency": f"{efficiency:.3f}",
        "no overlap": f"{without_overlap:.3f}",
        f"accumulate for {plan.efficiency:g}": str(micro_batches),
    }
    if plan.batch is not None:
        examples_per_s = plan.batch * plan.accumulate_steps * gpus / step_s
        cells["examples/s"] = f"{examples_per_s:,.0f}"
        if plan.examples is not None:
            epoch_h = plan.examples / examples_per_s / 3600
            cells["epoch h"] = f"{epoch_h:,.4f}"
            if plan.price_per_gpu_hour is not None:
                cells["epoch price"] = f"{epoch_h * gpus * plan.price_per_gpu_hour:,.2f}"
    return cells


def to_text(plan: Plan) -> str:
    """Returns the table, the columns that are left out, and every assumption with its source."""
    rows = [row(plan, gpus, dtype) for gpus in plan.gpus for dtype in GRADIENT_BYTES]
    lines = _aligned([list(rows[0]), *(list(each.values()) for each in rows)])
    lines.append("")
    for column, needed in NEEDED.items():
        if missing := [f"--{name}" for name in needed if getattr(plan, name) is None]:
            lines.append(f"left out: {column}, which needs {', '.join(missing)}")
    lines += [
        "A step has GPUs x --batch x --accumulate_steps examples (--global_batch_size), and one",
        "exchange of gradients, in so many packs.",
        "efficiency: speed over GPUs x one GPU's, if packs travel during the backward pass.",
        "no overlap: the same if they travel after it. Expect a value between the two, at best.",
        f"accumulate for {plan.efficiency:g}: the least --accumulate_steps for that efficiency.",
        "These are predictions (docs/planning.md). They assume:",
        "",
    ]
    assumptions = []
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        is_default = field.name in SOURCES and value == field.default
        if field.name not in ("gpus", "efficiency") and (is_default or value is not None):
            text = "by GPUs" if value is None else f"{value:g}"
            source = SOURCES[field.name] if is_default else "given"
            assumptions.append([f"--{field.name}", text, source, field.metadata["help"]])
    for line, (*_, about) in zip(
        _aligned([each[:3] for each in assumptions], left=(0, 2)), assumptions, strict=True
    ):
        lines += [line, f"    {about}"]
    return "\n".join(lines)


def _help(name: str) -> str:
    return next(f.metadata["help"] for f in dataclasses.fields(Plan) if f.name == name)


def _aligned(rows: Sequence[Sequence[str]], left: Iterable[int] = (1,)) -> list[str]:
    """Returns lines with columns of equal width, aligned to the right but for those of ``left``."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def main(argv: Sequence[str] = tuple(sys.argv)) -> int:
    """Prints the plan; returns the exit code, 2 for wrong flags."""
    if flags.print_help(Plan, argv, __doc__ or ""):
        return 0
    try:
        print(to_text(flags.parse(Plan, argv)))
    except BadInput as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
