"""``python -m serving.client bench``: latency quantiles of a server at given rates."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from serving import element_types
from serving.client.aio import AsyncClient
from serving.client.command import load, sizing, tables
from serving.client.command.load import Outcome, Summary
from serving.client.errors import InvalidInput
from serving.client.results import Signature
from serving.tensors import Array

KEPT_UP: Final = 0.9  # of the offered rate; a server that answers less can't keep up
_FIRST_CALLS: Final = 10  # not counted: they connect, and the server allocates memory
_HEADER: Final = (
    *("offered/s", "answered/s", "failed"),
    *("p50 ms", "p90 ms", "p99 ms", "max ms", "late p99 ms"),
)


@dataclasses.dataclass
class Report:
    """The results of a bench.

    Attributes:
        points: a summary of each rate, in the order of the rates.
        errors: by rate, the message of its first failed call.
        is_interrupted: whether Ctrl-C ended it; the last point is then shorter than the others.
    """

    points: list[Summary] = dataclasses.field(default_factory=list)
    errors: dict[float, str] = dataclasses.field(default_factory=dict)
    is_interrupted: bool = False

    @property
    def answered(self) -> int:
        """The number of calls that succeeded."""
        return sum(point.calls - point.failed for point in self.points)

    def measured(self) -> sizing.Measured | None:
        """Returns the figures for sizing; None if no call of the lowest rate succeeded."""
        if not self.points or self.points[0].p99_ms is None:
            return None
        knee_per_s = max(point.answered_per_s for point in self.points)
        return sizing.Measured(self.points[0].p99_ms, knee_per_s)

    def to_text(self) -> str:
        """Returns a table, and a line for everything that a reader has to know."""
        rows = [
            (
                *(f"{point.offered_per_s:g}", f"{point.answered_per_s:.1f}", str(point.failed)),
                *(
                    "-" if value is None else f"{value:.2f}"
                    for value in (point.p50_ms, point.p90_ms, point.p99_ms, point.max_ms)
                ),
                f"{point.late_p99_ms:.2f}",
            )
            for point in self.points
        ]
        return "\n".join([tables.align(_HEADER, rows), *self._notes()])

    def _notes(self) -> Iterator[str]:
        for point in self.points:
            rate = f"{point.offered_per_s:g}/s"
            if point.failed:
                counts = ", ".join(
                    f"{count} {status}"
                    for status, count in point.statuses.items()
                    if status != load.SUCCESS
                )
                error = self.errors[point.offered_per_s]
                yield f"failed at {rate}: {counts}; the first one: {error}"
            if is_late(point):
                yield (
                    f"at {rate} this generator was late itself: these latencies are its own. Lower "
                    "the rate, or run several generators on other machines"
                )
            elif not keeps_up(point) and not self.is_interrupted:
                yield (
                    f"at {rate} the server can't keep up: it answers less than {KEPT_UP:g} of the "
                    "calls; higher rates are left out"
                )
        if self.is_interrupted:
            yield "interrupted: these are the calls until then"


def keeps_up(point: Summary) -> bool:
    """Returns whether nearly all calls were answered at the rate at which they were offered."""
    return point.answered_per_s >= KEPT_UP * point.offered_per_s


def is_late(point: Summary) -> bool:
    """Returns whether the generator's own delay is a large part of the latencies."""
    return point.late_p99_ms > 1 and point.late_p99_ms > 0.5 * (point.p99_ms or 0)


def sizing_line(report: Report, rate_per_s: float, p99_ms: float) -> str:
    """Returns a sentence with the number of replicas for a rate and a limit of the latency."""
    measured = report.measured()
    if measured is None:
        return "no number of replicas: no call of the lowest rate was answered"
    figures = (
        f"one replica: p99 {measured.unloaded_p99_ms:.1f} ms at the lowest rate, at most "
        f"{measured.knee_per_s:.0f} answers/s"
    )
    found = sizing.replicas_for(measured, rate_per_s, p99_ms)
    if found is None:
        return f"no number of replicas has a p99 of {p99_ms:g} ms; {figures}"
    caution = ""
    if keeps_up(report.points[-1]) or is_late(report.points[-1]):
        caution = " One replica may answer more than this bench offered: add higher rates."
    return (
        f"{found.replicas} replicas for {rate_per_s:g}/s with a p99 of {p99_ms:g} ms: with one of "
        f"them lost, each has {found.use:.2f} of its limit and a p99 of about "
        f"{found.p99_ms:.1f} ms ({figures}).{caution}"
    )


def sizing_figures(report: Report, rate_per_s: float, p99_ms: float) -> dict[str, Any]:
    """Returns what ``sizing_line`` says, for JSON; None for what was not found."""
    one = report.measured()
    found = sizing.replicas_for(one, rate_per_s, p99_ms) if one else None
    return {
        "for_rate_per_s": rate_per_s,
        "for_p99_ms": p99_ms,
        "one_replica": dataclasses.asdict(one) if one else None,
        "sizing": dataclasses.asdict(found) if found else None,
    }


def zeros(signature: Signature, rows: int) -> dict[str, Array]:
    """Returns zeros, or empty strings, for all inputs of a signature that have no default.

    Args:
        signature: the signature.
        rows: the size of a first dimension that may be any; other such dimensions get 1.

    Raises:
        InvalidInput: an input has a dtype that can't be sent.
    """
    made: dict[str, Array] = {}
    for name, info in signature.inputs.items():
        if name in signature.optional:
            continue
        sizes = (None,) if info.shape is None else info.shape
        shape = [
            size if size is not None else rows if place == 0 else 1
            for place, size in enumerate(sizes)
        ]
        try:
            dtype = element_types.numpy_dtype(info.dtype)
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}: give the inputs by --input") from None
        made[name] = np.full(shape, b"" if info.dtype == "string" else 0, dtype)
    return made


def run(
    client_arguments: Mapping[str, Any],
    predict_arguments: Mapping[str, Any],
    rates_per_s: Sequence[float],
    seconds: float,
    is_random: bool,
) -> Report:
    """Offers equal calls at each rate, from the lowest on, until the server can't keep up.

    Args:
        client_arguments: of ``AsyncClient``.
        predict_arguments: of its ``predict``.
        rates_per_s: calls in a second.
        seconds: time for each rate.
        is_random: whether calls come at random times instead of evenly.
    """

    async def sweep_by_client() -> Report:
        async with AsyncClient(**client_arguments) as client:

            async def call() -> None:
                await client.predict(**predict_arguments)

            return await sweep(call, rates_per_s, seconds, is_random)

    return asyncio.run(sweep_by_client())


async def sweep(
    call: Callable[[], Awaitable[object]],
    rates_per_s: Sequence[float],
    seconds: float,
    is_random: bool,
) -> Report:
    """Offers calls at each rate, from the lowest on, until the server can't keep up.

    Progress is shown on standard error. The first Ctrl-C stops it and waits for the calls under
    way; a second one raises KeyboardInterrupt.

    Args:
        call: makes a call.
        rates_per_s: calls in a second.
        seconds: time for each rate.
        is_random: whether calls come at random times instead of evenly.
    """
    report = Report()
    with _until_interrupt() as stop:
        for _ in range(_FIRST_CALLS):
            try:
                await call()
            except Exception:
                break  # it will be seen again, and counted
        for rate in sorted(set(rates_per_s)):
            if stop.is_set():
                break
            outcomes = await _offer(call, rate, seconds, is_random, stop)
            report.points.append(load.summarise(outcomes, rate))
            error = next((outcome.error for outcome in outcomes if outcome.error), None)
            if error is not None:
                report.errors[rate] = error
            if not keeps_up(report.points[-1]):
                break
        report.is_interrupted = stop.is_set()
    return report


async def _offer(
    call: Callable[[], Awaitable[object]],
    rate_per_s: float,
    seconds: float,
    is_random: bool,
    stop: asyncio.Event,
) -> list[Outcome]:
    """Offers calls at one rate, and shows progress."""
    is_terminal = sys.stderr.isatty()  # where one line is written again and again
    line_begin, line_end = ("\r\033[K", "") if is_terminal else ("", "\n")
    begun = answered = failed = 0
    start_s = time.perf_counter()

    async def counted_call() -> None:
        nonlocal begun, answered, failed
        begun += 1
        try:
            await call()
        except Exception:
            failed += 1
            raise
        answered += 1

    def is_over(after_s: float) -> bool:
        # A generator that falls far behind would take much longer than asked for.
        behind_s = time.perf_counter() - start_s - after_s
        return stop.is_set() or after_s >= seconds or behind_s > 1 + seconds / 2

    def progress() -> str:
        passed_s = time.perf_counter() - start_s
        return (
            f"{rate_per_s:g}/s: {min(passed_s, seconds):.0f} of {seconds:g} s, "
            f"{answered} answered, {failed} failed, {begun - answered - failed} under way"
        )

    async def show() -> None:
        while True:
            await asyncio.sleep(1 if is_terminal else 10)
            print(f"{line_begin}{progress()}", end=line_end, file=sys.stderr, flush=True)

    showing = asyncio.create_task(show())
    try:
        return await load.offer(counted_call, rate_per_s, is_over, is_random=is_random)
    finally:
        showing.cancel()
        print(f"{line_begin}{progress()}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _until_interrupt() -> Iterator[asyncio.Event]:
    """Yields an event that the first Ctrl-C sets; the next one is Python's own."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def note() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)
        print("\nwaiting for the calls under way; Ctrl-C again ends at once", file=sys.stderr)

    loop.add_signal_handler(signal.SIGINT, note)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def figures(report: Report, **about: Any) -> dict[str, Any]:
    """Returns a report for JSON, after entries ``about`` what was measured."""
    return about | {
        "is_interrupted": report.is_interrupted,
        "points": [
            dataclasses.asdict(point)
            | {
                "keeps_up": keeps_up(point),
                "is_generator_late": is_late(point),
                "first_error": report.errors.get(point.offered_per_s),
            }
            for point in report.points
        ],
    }
