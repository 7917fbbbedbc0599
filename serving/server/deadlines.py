"""The time that a caller still waits for its answer."""

from __future__ import annotations

from collections.abc import Callable

# Returns the seconds until the deadline, or None without one. It is a function because asking
# gRPC takes time: it is only called where the value is needed.
TimeLeft = Callable[[], float | None]
