"""Trials in TensorBoard: ``tensorboard --logdir=WORKDIR/trials`` shows them in its HParams tab.

The curves of training are written by the runs themselves. Here, each trial gets an event file with
its parameters, and with the objective at each rung.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, summary_v2
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from tfdp.search.objective import is_number
from tfdp.search.table import Row, Table

# A folder of its own in that of the run: TensorBoard takes what is below for metrics of the trial,
# and reads one file at a time in a folder.
FILE: Final = Path("search", "events.out.tfevents.0.search")


class Curves:
    """Writes an event file for each trial: ``WORKDIR/trials/0007/search/events.out.tfevents…``.

    A file depends on its row only, not on time, and grows at its end. So a search that is started
    again finds what it would write, and TensorBoard may be open all the time.

    Args:
        workdir: of the search.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._written: dict[int, Row] = {}

    def update(self, table: Table) -> None:
        """Writes what is new in a table."""
        for row in table.rows:
            if self._written.get(row.number) != row:
                _write(self._workdir / row.folder / FILE, _records(row, table.objective.name))
                self._written[row.number] = row


def _write(path: Path, data: bytes) -> None:
    """Lets a file have at least this content; what it has of it already is not written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        file.seek(0)
        earlier = file.read()
        if earlier.startswith(data):  # of a trial that had got further before a restart
            return
        if data.startswith(earlier):
            file.write(data[len(earlier) :])
            return
    path.unlink()  # of another search; a TensorBoard that reads it must not find a mixture
    path.write_bytes(data)


def _records(row: Row, objective: str) -> bytes:
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    for step, summary in _summaries(row, objective):
        writer.write(Event(step=step, summary=summary).SerializeToString())
    return file.getvalue()


def _summaries(row: Row, objective: str) -> Iterator[tuple[int, Summary]]:
    params = {name: _shown(value) for name, value in row.params.items()}
    start = summary_v2.hparams_pb(params, trial_id=Path(row.folder).name, start_time_secs=0)
    plugin = start.value[0].metadata.plugin_data
    # Otherwise, the order of parameters in it is another one in each process.
    content = HParamsPluginData.FromString(plugin.content)
    plugin.content = content.SerializeToString(deterministic=True)
    yield 0, start
    for step, value in row.rungs.items():
        if is_number(value):
            yield step, scalar_pb(objective, value)
    if row.state != "running":
        status = STATUS_FAILURE if row.state == "failed" else STATUS_SUCCESS
        end = HParamsPluginData(session_end_info=SessionEndInfo(status=status))
        yield (
            row.steps,
            Summary(
                value=[
                    Summary.Value(
                        tag=metadata.SESSION_END_INFO_TAG,
                        metadata=metadata.create_summary_metadata(end),
                        tensor=metadata.NULL_TENSOR,
                    )
                ]
            ),
        )


def _shown(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
