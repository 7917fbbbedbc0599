"""Where the main thread is in a run, for people who ask why the run stands still.

It is read from the main thread's stack, and only when somebody asks. So it costs the run nothing:
``marked`` notes a function's code and leaves the function as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

import keras

STEP: Final = "a step"
ALL_REDUCE: Final = "the all-reduce"
CALLBACK: Final = "a callback"
INPUT: Final = "input"
READING: Final = "reading the data before the first step"
ELSEWHERE: Final = "the program"

# How long to wait for a batch, to find out whether a step waits for input.
PROBE_S: Final = 2.0

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class _Mark:
    """A place of which a function is the outermost frame.

    Args:
        name: of the place, for people: "in " goes before it.
        input: the function's local variable that is the iterator over its batches, if it has one.
    """

    name: str
    input: str | None


_marks: dict[CodeType, _Mark] = {}


def marked(name: str, *, input: str | None = None) -> Callable[[Function], Function]:
    """Returns a decorator: while its function runs, the main thread is in the place ``name``.

    Of two places, one within the other, the inner one counts.

    Args:
        name: for people: "in " goes before it.
        input: the local variable of the function that is the iterator over its batches.
    """

    def mark(function: Function) -> Function:
        _marks[function.__code__] = _Mark(name, input)
        return function

    return mark


class Signs:
    """Signs of life of this process: whatever shows that the run goes on.

    Attributes:
        count: number of signs so far.
        step: number of updates done; None if training has not begun.
        has_stepped: whether one of them was done in this process.
    """

    def __init__(self) -> None:
        self.count = 0
        self.step: int | None = None
        self.has_stepped = False

    def give(self) -> None:
        """Gives a sign, for a batch or an exchange."""
        self.count += 1

    def give_step(self, step: int) -> None:
        """Gives a sign for updates; ``step`` is the number of updates done."""
        self.count += 1
        self.step = step
        self.has_stepped = True


SIGNS: Final = Signs()


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in a run.

    Args:
        name: of the place.
        hook: the callback's method that the place is, or is in; empty if there is none.
        line: the line of the user's code; empty if there is none.
    """

    name: str
    hook: str = ""
    line: str = ""

    def __str__(self) -> str:
        details = ", ".join(each for each in (self.hook, self.line) if each)
        return f"{self.name} ({details})" if details else self.name


def of_main_thread() -> Place:
    """Returns where the main thread is now."""
    frames = _frames_of_main_thread()
    hook = next((each for each in frames if _is_hook(each)), None)
    line = next((each for each in frames if _is_users(each)), None)
    inner = next((each for each in frames if each is hook or each.f_code in _marks), None)
    name = ELSEWHERE
    if inner is not None:
        name = CALLBACK if inner is hook else _marks[inner.f_code].name
    return Place(
        name,
        hook="" if hook is None else hook.f_code.co_qualname,
        line="" if line is None else _described(line),
    )


def probed() -> Place:
    """Returns where the main thread is, and in a step, what the step waits for.

    It may take a batch from the input, so the run can't go on afterwards. It takes ``PROBE_S`` if
    the input stands still.
    """
    place = of_main_thread()
    frames = _frames_of_main_thread()
    step = next((each for each in frames if each.f_code in _marks), None)
    mark = None if step is None else _marks[step.f_code]
    if step is None or mark is None or mark.input is None or mark.name != place.name:
        return place
    line = next((_described(each) for each in _called_by_tensorflow()), place.line)
    name = INPUT if _is_blocked(step.f_locals[mark.input]) else place.name
    return dataclasses.replace(place, name=name, line=line)


def _frames_of_main_thread() -> list[FrameType]:
    """Returns the frames of the main thread's stack, the innermost first."""
    innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    return list(_outwards(innermost))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _called_by_tensorflow() -> Iterator[FrameType]:
    """Yields the user's innermost frame of each other thread in which TensorFlow calls Python."""
    main = threading.main_thread().ident
    for thread, innermost in sys._current_frames().items():
        frame = next((each for each in _outwards(innermost) if _is_users(each)), None)
        callers = [each.f_code.co_filename for each in _outwards(frame)]
        if frame is not None and thread != main and any("/tensorflow/" in each for each in callers):
            yield frame


def _is_blocked(iterator: Any) -> bool:
    """Returns whether a batch does not come within ``PROBE_S``."""

    def take() -> None:
        with contextlib.suppress(Exception):
            next(iterator)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(PROBE_S)
    return taking.is_alive()


def _is_hook(frame: FrameType) -> bool:
    """Returns whether a frame is a hook of a callback, other than those of tfdp."""
    caller = frame.f_back
    return (
        caller is not None
        and caller.f_code in _code_of_callback_list()
        and frame.f_code not in _code_of_callback_list()
        and not frame.f_globals.get("__name__", "").startswith("tfdp.")
    )


@cache
def _code_of_callback_list() -> frozenset[CodeType]:
    members = vars(keras.callbacks.CallbackList).values()
    return frozenset(each.__code__ for each in members if hasattr(each, "__code__"))


def _is_users(frame: FrameType) -> bool:
    """Returns whether a frame is of neither tfdp, nor Python, nor an installed package."""
    name = frame.f_code.co_filename
    is_installed = "site-packages" in name or "__autograph_generated" in name
    return not is_installed and not name.startswith(_not_users())


@cache
def _not_users() -> tuple[str, ...]:
    root = Path(__file__).resolve().parents[1]
    own = [f"{root / package}/" for package in ("tfdp", "cluster")]
    return (*own, f"{sysconfig.get_path('stdlib')}/", "<frozen ")


def _described(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
