"""A model whose versions come and go while it is in use.

Knows folders, versions and threads; what a model is, and who asks it, is others' business. A new
version is loaded beside the old one, takes over once it is up, and the old one is given back when
its last call has ended. So there is no moment without an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

# The states of a version, by TF Serving's names.
LOADING = "LOADING"
AVAILABLE = "AVAILABLE"
UNLOADING = "UNLOADING"
END = "END"

_LARGEST = 2**63 - 1  # of the numbers that a ModelSpec can hold


class Loaded(Protocol):
    """What a loader gives: anything that can be closed."""

    def close(self) -> None:
        """Gives everything back; called once, after the last use."""


M = TypeVar("M", bound=Loaded)

# Which of the versions that are there should be served.
Policy = Callable[[Collection[int]], Collection[int]]


def latest(count: int) -> Policy:
    """The ``count`` newest versions."""
    return lambda numbers: sorted(numbers)[-count:]


def every(numbers: Collection[int]) -> Collection[int]:
    """All versions."""
    return numbers


NEWEST = latest(1)


def specific(wanted: Collection[int]) -> Policy:
    """These versions, as far as they are there."""
    return lambda numbers: [number for number in wanted if number in numbers]


class NotServed(LookupError):  # noqa: N818 - the name says what happened
    """No version that is asked for is available; worded as TF Serving does."""

    def __init__(self, name: str, number: int | None) -> None:
        which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        super().__init__(f"Servable not found for request: {which}")


@dataclass(frozen=True)
class VersionState:
    """What became of one version; ``error`` is why it failed to load, if it did."""

    number: int
    state: str
    error: Exception | None


@dataclass
class Version(Generic[M]):
    """One version; what is not final is the servable's to change."""

    number: int
    stamp: tuple[int, ...]  # of its folder, when loading began
    state: str = LOADING
    error: Exception | None = None
    model: M | None = None
    calls: int = 0


class Servable(Generic[M]):
    """The versions of the model in a folder, followed as they are published.

    Versions are folders named by integers; other names are ignored. One that fails to load leaves
    the old ones serving, and is tried again when its files have changed.

    Args:
        name: what callers call the model.
        base_path: the folder of the versions; it need not exist yet.
        load: loads one version's folder; whatever it raises is that version's error.
        report: told, in one line, what a person should know.
        policy: which versions are served.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        load: Callable[[Path], M],
        report: Callable[[str], None] = lambda line: None,
        policy: Policy = NEWEST,
    ) -> None:
        self.name = name
        self._source = base_path, policy
        self._load_model = load
        self._report = report
        self._reported = ""
        self._versions: dict[int, Version[M]] = {}
        self._newest: Version[M] | None = None  # of those that are available
        self._lock = threading.RLock()
        self._available = threading.Event()
        self._tried = threading.Event()
        self._wake = threading.Event()
        self._stopped = False

    @property
    def base_path(self) -> Path:
        """The folder of the versions."""
        return self._source[0]

    def follow(self, base_path: Path, policy: Policy) -> None:
        """Changes folder and policy; a servable that is watched moves there at once.

        Versions that are up already stay the same, whatever folder they came from.
        """
        with self._lock:
            self._source = base_path, policy
        self._wake.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile no version comes or goes, and other threads' calls wait: be quick."""
        with self._lock:
            yield

    def watch(self, every_s: float) -> None:
        """Starts to poll the folder in the background, until ``stop`` or ``drop``."""

        def watch() -> None:
            while not self._stopped:
                try:
                    self.poll()
                except OSError as error:  # a folder that vanished between two looks, say
                    self._report_once(f"{self.base_path} can't be read: {error}")
                self._wake.wait(every_s)
                self._wake.clear()

        threading.Thread(target=watch, name=f"watch {self.name}", daemon=True).start()

    def stop(self) -> None:
        """Ends watching."""
        self._stopped = True
        self._wake.set()

    def drop(self) -> None:
        """Ends watching and gives every version back, each after its last call."""
        with self._lock:
            self.stop()
            idle = self._leaving(())
        for version in idle:
            self._unload(version)

    def wait(self, timeout_s: float) -> bool:
        """Waits until every version to serve was tried once and one is available; tells if so."""
        return self._available.wait(timeout_s)

    def wait_until_tried(self, timeout_s: float) -> bool:
        """Waits until every version to serve was tried once, and there was one; tells if so."""
        return self._tried.wait(timeout_s)

    def poll(self) -> None:
        """Looks at the folder once and moves to the versions that the policy wants.

        Where it wants none, nothing changes: better an old answer than none.
        """
        source = base_path, policy = self._source
        folders = _version_folders(base_path)
        wanted = sorted(policy(folders), reverse=True)
        if not wanted:
            if not self._versions:
                text = f"no version of model {self.name} to serve in {base_path} yet; waiting"
                self._report_once(text)
            return
        for number in wanted:
            if self._stopped:
                return
            self._bring_up(number, folders[number])
        if any(self._versions[number].state == AVAILABLE for number in wanted):
            self._available.set()
            with self._lock:
                # Another policy may have come while versions were loaded.
                idle = self._leaving(wanted) if source is self._source else []
            for version in idle:
                self._unload(version)
        self._tried.set()

    @contextmanager
    def use(self, number: int | None = None) -> Iterator[tuple[int, M]]:
        """A version (the newest available, without ``number``) that stays loaded until the end.

        Raises:
            NotServed: it is not available.
        """
        version = self.take(number)
        try:
            assert version.model is not None
            yield version.number, version.model
        finally:
            self.give_back(version)

    def take(self, number: int | None) -> Version[M]:
        """As ``use``, for callers who promise to ``give_back`` what they get."""
        with self._lock:
            version = self._newest if number is None else self._versions.get(number)
            if version is None or version.state != AVAILABLE:
                raise NotServed(self.name, number)
            version.calls += 1
        return version

    def give_back(self, version: Version[M]) -> None:
        """Ends a use; the last one of a version that is on its way out unloads it."""
        with self._lock:
            version.calls -= 1
            last = version.state == UNLOADING and version.calls == 0
        if last:
            self._unload(version)

    def states(self) -> list[VersionState]:
        """What became of every version seen so far, newest first."""
        with self._lock:
            return [
                VersionState(version.number, version.state, version.error)
                for _, version in sorted(self._versions.items(), reverse=True)
            ]

    def _bring_up(self, number: int, folder: Path) -> None:
        version = self._versions.get(number)
        if version is not None and version.state != END:
            return
        stamp = _stamp(folder)
        if version is not None and version.error is not None and version.stamp == stamp:
            return
        version = Version[M](number, stamp)
        with self._lock:
            self._versions[number] = version
        try:
            model = self._load_model(folder)
        except Exception as error:  # whatever is wrong with a version must not stop the server
            # Its traceback would keep what was loaded of it, and that may be large.
            error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            with self._lock:
                version.state, version.error = END, error
            self._report(f"model {self.name} version {number} failed to load: {error}")
            return
        with self._lock:
            version.model = model
            dropped = self._stopped
            version.state = UNLOADING if dropped else AVAILABLE
            self._find_newest()
        if dropped:
            self._unload(version)
        elif self._available.is_set():
            self._report(f"model {self.name} version {number} is served now")

    def _leaving(self, kept: Collection[int]) -> list[Version[M]]:
        """Takes no more calls for other versions than these, and returns the idle ones of them."""
        leaving = [
            version
            for number, version in self._versions.items()
            if version.state == AVAILABLE and number not in kept
        ]
        for version in leaving:
            version.state = UNLOADING
        self._find_newest()
        return [version for version in leaving if version.calls == 0]

    def _find_newest(self) -> None:
        available = [n for n, version in self._versions.items() if version.state == AVAILABLE]
        self._newest = self._versions[max(available)] if available else None

    def _report_once(self, text: str) -> None:
        if text != self._reported:
            self._reported = text
            self._report(text)

    def _unload(self, version: Version[M]) -> None:
        model, version.model = version.model, None
        if model is not None:
            model.close()
        with self._lock:
            version.state = END


def _version_folders(base_path: Path) -> dict[int, Path]:
    if not base_path.is_dir():
        return {}
    return {
        int(folder.name): folder
        for folder in base_path.iterdir()
        if folder.name.isascii() and folder.name.isdigit() and folder.is_dir()
        if int(folder.name) <= _LARGEST
    }


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when files are added, removed or written."""
    stats = [path.stat() for path in folder.rglob("*")]
    sizes = sum(stat.st_size for stat in stats)
    return len(stats), sizes, max((stat.st_mtime_ns for stat in stats), default=0)
