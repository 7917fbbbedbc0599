"""A model whose versions come and go while it is in use.

Knows folders, versions and threads; what a model is, and who asks it, is others' business. A new
version is loaded beside the old one, takes over once it is up, and the old one is given back when
its last call has ended. So there is no moment without an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

# The states of a version, by TF Serving's names.
LOADING = "LOADING"
AVAILABLE = "AVAILABLE"
UNLOADING = "UNLOADING"
END = "END"


class Loaded(Protocol):
    """What a loader gives: anything that can be closed."""

    def close(self) -> None:
        """Gives everything back; called once, after the last use."""


M = TypeVar("M", bound=Loaded)


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
class _Version(Generic[M]):
    number: int
    stamp: tuple[int, ...]  # of its folder, when loading began
    state: str = LOADING
    error: Exception | None = None
    model: M | None = None
    calls: int = 0


class Servable(Generic[M]):
    """The newest version of the model in a folder, followed as versions are published.

    Versions are folders named by integers; other names are ignored. One that fails to load leaves
    the old one serving, and is tried again when its files have changed.

    Args:
        name: what callers call the model.
        base_path: the folder of the versions; it need not exist yet.
        load: loads one version's folder; whatever it raises is that version's error.
        report: told, in one line, what a person should know.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        load: Callable[[Path], M],
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = name
        self.base_path = base_path
        self._load_model = load
        self._report = report
        self._versions: dict[int, _Version[M]] = {}
        self._lock = threading.Lock()
        self._waiting = False
        self._available = threading.Event()
        self._stopped = threading.Event()

    def watch(self, every_s: float) -> None:
        """Starts to poll the folder in the background, until ``stop``."""

        def follow() -> None:
            while True:
                try:
                    self.poll()
                except OSError as error:  # a folder that vanished between two looks, say
                    self._report(f"{self.base_path} can't be read: {error}")
                if self._stopped.wait(every_s):
                    return

        threading.Thread(target=follow, name=f"watch {self.name}", daemon=True).start()

    def stop(self) -> None:
        """Ends watching."""
        self._stopped.set()

    def wait(self, timeout_s: float) -> bool:
        """Waits until some version has become available; tells whether one has."""
        return self._available.wait(timeout_s)

    def poll(self) -> None:
        """Looks at the folder once and moves to its newest version, if that isn't the one in use.

        An empty folder changes nothing: better an old answer than none.
        """
        folders = _version_folders(self.base_path)
        if not folders:
            if not self._versions and not self._waiting:
                self._waiting = True
                self._report(f"no version of model {self.name} in {self.base_path} yet; waiting")
            return
        newest = max(folders)
        version = self._versions.get(newest)
        if version is None or version.state == END:
            stamp = _stamp(folders[newest])
            if version is None or version.error is None or version.stamp != stamp:
                version = self._load(newest, folders[newest], stamp)
        if version.state == AVAILABLE:
            for other in list(self._versions.values()):
                if other is not version and other.state == AVAILABLE:
                    self._retire(other)

    @contextmanager
    def use(self, number: int | None = None) -> Iterator[tuple[int, M]]:
        """A version (the newest available, without ``number``) that stays loaded until the end.

        Raises:
            NotServed: it is not available.
        """
        with self._lock:
            version = self._pick(number)
            version.calls += 1
        try:
            assert version.model is not None
            yield version.number, version.model
        finally:
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

    def _pick(self, number: int | None) -> _Version[M]:
        available = [n for n, version in self._versions.items() if version.state == AVAILABLE]
        if number is None and available:
            return self._versions[max(available)]
        if number in available:
            return self._versions[number]
        raise NotServed(self.name, number)

    def _load(self, number: int, folder: Path, stamp: tuple[int, ...]) -> _Version[M]:
        version = _Version[M](number, stamp)
        with self._lock:
            self._versions[number] = version
        try:
            model = self._load_model(folder)
        except Exception as error:  # whatever is wrong with a version must not stop the server
            with self._lock:
                version.state, version.error = END, error
            self._report(f"model {self.name} version {number} failed to load: {error}")
        else:
            with self._lock:
                version.state, version.model = AVAILABLE, model
            if self._available.is_set():
                self._report(f"model {self.name} version {number} is served now")
            self._available.set()
        return version

    def _retire(self, version: _Version[M]) -> None:
        with self._lock:
            version.state = UNLOADING
            idle = version.calls == 0
        if idle:
            self._unload(version)

    def _unload(self, version: _Version[M]) -> None:
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
    }


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when files are added, removed or written."""
    stats = [path.stat() for path in folder.rglob("*")]
    sizes = sum(stat.st_size for stat in stats)
    return len(stats), sizes, max((stat.st_mtime_ns for stat in stats), default=0)
