"""A servable: a model whose versions are loaded and unloaded while it answers calls.

A new version is loaded while the old one still answers. Once the new version is available, it
takes over, and the old one is unloaded after its last call: every call finds a version. This
module handles folders, versions and threads; the type of the loaded model is a parameter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from serving.server.errors import ServableNotFound
from serving.server.models.base_paths import is_version_name, why_no_version

# The states of a version; the names are TF Serving's.
LOADING = "LOADING"
AVAILABLE = "AVAILABLE"
UNLOADING = "UNLOADING"
END = "END"

_MAX_VERSION = 2**63 - 1  # the largest number that a ModelSpec can contain


class LoadedModel(Protocol):
    """The result of a loader: an object that can be closed."""

    def close(self) -> None:
        """Frees everything; called once, after the last use."""


M = TypeVar("M", bound=LoadedModel)

# Selects the versions to serve, from those that exist.
VersionPolicy = Callable[[Collection[int]], Collection[int]]


def latest(count: int) -> VersionPolicy:
    """Selects the ``count`` newest versions."""
    return lambda numbers: sorted(numbers)[-count:]


def every(numbers: Collection[int]) -> Collection[int]:
    """Selects all versions."""
    return numbers


NEWEST = latest(1)


def specific(wanted: Collection[int]) -> VersionPolicy:
    """Selects these versions, if they exist."""
    return lambda numbers: [number for number in wanted if number in numbers]


@dataclass(frozen=True)
class VersionState:
    """The state of one version; ``error`` is the reason if it failed to load."""

    number: int
    state: str
    error: Exception | None


@dataclass
class Version(Generic[M]):
    """One version; only its servable changes the fields.

    Attributes:
        number: the name of its folder.
        fingerprint: of the folder's files when loading began.
        state: LOADING, AVAILABLE, UNLOADING or END.
        error: why it failed to load; None if it did not.
        model: the loaded model, while the version is available.
        calls: number of calls that use it.
        failures: how often these files have failed to load.
        failed_at_s: when they did so last, by the monotonic clock.
    """

    number: int
    fingerprint: tuple[int, ...]
    state: str = LOADING
    error: Exception | None = None
    model: M | None = None
    calls: int = 0
    failures: int = 0
    failed_at_s: float = 0.0


class Servable(Generic[M]):
    """The versions of a model in a folder, loaded as they are published.

    Versions are folders named by integers; other names are ignored. If a version fails to load, the
    old versions still answer. It is loaded again ``retries`` times, and when its files change.

    Args:
        name: the model's name in requests.
        base_path: the folder that contains the versions; it need not exist yet.
        load: loads a version from its folder; an error that it raises is the version's error.
        report: gets messages for the operator, one line each.
        policy: selects the versions to serve.
        retries: how often a version that failed is loaded again while its files stay the same.
        retry_interval_s: seconds before each of these.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        load: Callable[[Path], M],
        report: Callable[[str], None] = lambda line: None,
        policy: VersionPolicy = NEWEST,
        retries: int = 0,
        retry_interval_s: float = 60.0,
    ) -> None:
        self.name = name
        self._source = base_path, policy
        self._load_model = load
        self._report = report
        self._retries, self._retry_interval_s = retries, retry_interval_s
        self._reported = ""
        self._versions: dict[int, Version[M]] = {}
        self._newest: Version[M] | None = None  # the newest available one
        self._lock = threading.RLock()
        self._available = threading.Event()
        self._tried = threading.Event()
        self._wake = threading.Event()
        self._stopped = False

    @property
    def base_path(self) -> Path:
        """The folder that contains the versions."""
        return self._source[0]

    def set_source(self, base_path: Path, policy: VersionPolicy) -> None:
        """Changes folder and policy; a watched servable polls the new folder at once.

        Available versions are not loaded again, even if the new folder has the same numbers.
        """
        with self._lock:
            self._source = base_path, policy
        self._wake.set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every version's state as it is. Calls wait meanwhile, so hold it briefly."""
        with self._lock:
            yield

    def watch(self, every_s: float) -> None:
        """Polls the folder in the background until ``stop`` or ``drop``.

        Args:
            every_s: seconds between two polls; 0 polls once, and again after ``set_source``.
        """

        def watch() -> None:
            while not self._stopped:
                try:
                    self.poll()
                except OSError as error:  # a folder was removed during the poll, for example
                    self._report_once(f"{self.base_path} can't be read: {error}")
                self._wake.wait(every_s or None)
                self._wake.clear()

        threading.Thread(target=watch, name=f"watch {self.name}", daemon=True).start()

    def stop(self) -> None:
        """Ends watching."""
        self._stopped = True
        self._wake.set()

    def drop(self) -> None:
        """Ends watching and unloads every version, each after its last call."""
        with self._lock:
            self.stop()
            idle = self._retire_all_except(())
        for version in idle:
            self._unload(version)

    def wait(self, timeout_s: float) -> bool:
        """Waits for the first loads, and returns whether a version is available.

        It becomes true when the load of every version to serve has ended and one is available.
        """
        return self._available.wait(timeout_s)

    def wait_for_first_loads(self, timeout_s: float) -> bool:
        """Waits for the first loads, and returns whether all have ended, also with errors.

        It stays false as long as no version to serve exists.
        """
        return self._tried.wait(timeout_s)

    def poll(self) -> None:
        """Reads the folder once, loads the versions that the policy selects, and retires others.

        If the policy selects no version, nothing changes: an old answer is better than none.
        """
        source = base_path, policy = self._source
        folders = _version_folders(base_path)
        wanted = sorted(policy(folders), reverse=True)
        if not wanted:
            if not self._versions:
                text = f"no version of model {self.name} to serve in {base_path} yet; waiting"
                self._report_once(f"{text}. {why_no_version(base_path)}")
            return
        for number in wanted:
            if self._stopped:
                return
            self._load_if_needed(number, folders[number])
        if any(self._versions[number].state == AVAILABLE for number in wanted):
            self._available.set()
            with self._lock:
                # `set_source` may have been called while versions were loaded.
                idle = self._retire_all_except(wanted) if source is self._source else []
            for version in idle:
                self._unload(version)
        self._tried.set()

    def acquire(self, number: int | None) -> Version[M]:
        """Returns a version, which stays loaded until the caller has called ``release``.

        Args:
            number: None selects the newest available version.

        Raises:
            ServableNotFound: the version is not available.
        """
        with self._lock:
            version = self._newest if number is None else self._versions.get(number)
            if version is None or version.state != AVAILABLE:
                raise ServableNotFound(self.name, number)
            version.calls += 1
        return version

    def release(self, version: Version[M]) -> None:
        """Ends a use; the last use of a retired version unloads it."""
        with self._lock:
            version.calls -= 1
            is_last = version.state == UNLOADING and version.calls == 0
        if is_last:
            self._unload(version)

    def states(self) -> list[VersionState]:
        """Returns the state of every version found so far, newest first."""
        with self._lock:
            return [
                VersionState(version.number, version.state, version.error)
                for _, version in sorted(self._versions.items(), reverse=True)
            ]

    def _load_if_needed(self, number: int, folder: Path) -> None:
        version = self._versions.get(number)
        if version is not None and version.state != END:
            return
        fingerprint = _fingerprint(folder)
        failures = 0
        if version is not None and version.error and version.fingerprint == fingerprint:
            failures = version.failures
            wait_s = version.failed_at_s + self._retry_interval_s - time.monotonic()
            if failures > self._retries or wait_s > 0:
                return
        version = Version[M](number, fingerprint)
        with self._lock:
            self._versions[number] = version
        try:
            model = self._load_model(folder)
        except Exception as error:  # no version's error may stop the server
            # The traceback would keep the objects that were loaded, and these may be large.
            error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            with self._lock:
                version.state, version.error = END, error
                version.failures, version.failed_at_s = failures + 1, time.monotonic()
            self._report(f"model {self.name} version {number} failed to load: {error}")
            return
        with self._lock:
            version.model = model
            is_dropped = self._stopped
            version.state = UNLOADING if is_dropped else AVAILABLE
            self._update_newest()
        if is_dropped:
            self._unload(version)
        elif self._available.is_set():
            self._report(f"model {self.name} version {number} is served now")

    def _retire_all_except(self, kept: Collection[int]) -> list[Version[M]]:
        """Ends new calls of the versions not in ``kept``; returns those without calls."""
        retired = [
            version
            for number, version in self._versions.items()
            if version.state == AVAILABLE and number not in kept
        ]
        for version in retired:
            version.state = UNLOADING
        self._update_newest()
        return [version for version in retired if version.calls == 0]

    def _update_newest(self) -> None:
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
        if is_version_name(folder.name) and folder.is_dir()
        if int(folder.name) <= _MAX_VERSION
    }


def _fingerprint(folder: Path) -> tuple[int, ...]:
    """Returns numbers that change when files are added, removed or written."""
    stats = [path.stat() for path in folder.rglob("*")]
    sizes = sum(stat.st_size for stat in stats)
    return len(stats), sizes, max((stat.st_mtime_ns for stat in stats), default=0)
