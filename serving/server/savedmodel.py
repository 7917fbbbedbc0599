"""A SavedModel in memory, run as TF Serving runs it: in a session, by the names of tensors.

Calling ``tf.saved_model.load(path).signatures[...]`` would be the modern way, but it checks shapes
that TF Serving leaves to the ops, words its errors differently, and takes ten times as long.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from serving.server import batched_graph, small_graph, warmup
from serving.server.batching import BatchingParameters
from serving.server.models import TimeLeft
from serving.tensors import Array

if TYPE_CHECKING:
    from serving.layouts import Layout
    from serving.server.models import Asked
    from serving.server.repeated import Repeated

_MAX_TIMEOUT_MS = 2**31 - 1
_CALLERS_THREAD = -1  # in RunOptions
_SHAPES_DIFFER = ("Dimensions of inputs should match", "Ranks of all input tensors should match")


def loader(
    batching: BatchingParameters | None = None,
    observe_batch: Callable[[int], None] = lambda size: None,
) -> Callable[[Path], SavedModel]:
    """What loads a version: its graph and variables, and then its warm-up requests are run.

    Args:
        batching: how to gather calls; None runs each by itself.
        observe_batch: told of every batch that was computed, by its rows with padding; called from
            several threads.
    """

    def load(path: Path) -> SavedModel:
        model = SavedModel(path, batching, observe_batch)
        try:
            warmup.run(model, path)
        except BaseException:
            model.close()
            raise
        return model

    return load


@dataclass(frozen=True)
class Signature:
    """A signature, unpacked, since it is looked at in every call.

    Attributes:
        definition: TensorFlow's SignatureDef message.
        inputs: names of the tensors to feed, by the inputs' names, which are sorted.
        outputs: names of the tensors to fetch, likewise.
        defaults: TensorProtos for inputs that may be left out.
    """

    definition: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, Any]


class SavedModel:
    """One version of a model, in a graph and session of its own; safe to share between threads.

    Attributes:
        signatures: by key.
        repeated: what calls that are laid out alike have in common, by their layout.
    """

    def __init__(
        self,
        path: Path,
        batching: BatchingParameters | None = None,
        observe_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Loads the graph that is tagged ``serve`` and its variables.

        Args:
            path: folder of the SavedModel.
            batching: how to gather calls; None runs each by itself.
            observe_batch: told of every batch that was computed, by its rows with padding.

        Raises:
            tf.errors.OpError, OSError, RuntimeError, ValueError: it can't be loaded.
        """
        self.repeated: dict[Layout[Asked], Repeated] = {}
        self._graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
            definitions = dict(meta_graph.signature_def)
            self.signatures = {key: _unpacked(each) for key, each in definitions.items()}
            self._batched = self._add_batching(definitions, batching) if batching else {}
            self._session._extend_graph()  # Session.run does; the call that it ends in does not
            self._small = self._make_small()
        except BaseException:
            self._session.close()
            raise
        self._graph.finalize()
        self._observe_batch = observe_batch
        self._handles: dict[str, Any] = {}

    def run(
        self,
        feeds: Mapping[str, Array],
        fetches: Sequence[str],
        time_left_s: TimeLeft = lambda: None,
    ) -> list[Array]:
        """Computes ``fetches`` from ``feeds``, both by names of tensors such as ``x:0``.

        What is fed and fetched together as a signature says runs in batches, if the model was
        loaded so; anything else by itself. TF Serving makes the same difference.

        Args:
            feeds: arrays to feed.
            fetches: what to compute.
            time_left_s: says how many seconds the caller still waits; None is without limit.

        Raises:
            tf.errors.OpError: in TensorFlow's words; DeadlineExceededError when time is up.
        """
        batched = self._batched and self._batched.get((frozenset(feeds), frozenset(fetches)))
        if not batched or not _fit(feeds, batched.ranks):
            return self._call(feeds, fetches, time_left_s)
        _check_rows(feeds.values())
        names = [*(batched.outputs[name] for name in fetches), batched.place]
        try:
            *results, place = self._call(feeds, names, time_left_s)
        except tf.errors.CancelledError:
            # A batch is given up when one of its calls runs out of time; the others go alone then.
            return self._call(feeds, fetches, time_left_s)
        except tf.errors.InvalidArgumentError as error:
            raise _reworded(error, feeds) from None
        if place[0, 0] == 0:  # one call in each batch has its first row
            self._observe_batch(int(place[0, 1]))
        return results

    def close(self) -> None:
        """Gives the variables back; no call may be under way."""
        self._session.close()

    def _add_batching(
        self, definitions: Mapping[str, Any], parameters: BatchingParameters
    ) -> dict[Any, batched_graph.Batched]:
        """By the names of the tensors that are fed and fetched, how to do it in batches."""
        added = {}
        for definition in definitions.values():
            batched = batched_graph.add(self._graph, definition, parameters)
            if batched is not None:
                fed = frozenset(info.name for info in definition.inputs.values())
                added[fed, frozenset(batched.outputs)] = batched
        return added

    def _make_small(self) -> dict[tuple[str | None, ...], Callable[..., list[Array]]]:
        """What runs signatures whose graphs are so small that a thread's switch would show.

        They run in the caller's thread, where a deadline is looked at only when all is done.
        """
        made = {}
        small = small_graph.Finder(self._graph)
        for signature in self.signatures.values():
            feeds, fetches = list(signature.inputs.values()), list(signature.outputs.values())
            if feeds and small.is_small(fetches):
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                options.run_options.inter_op_thread_pool = _CALLERS_THREAD
                with contextlib.suppress(tf.errors.InvalidArgumentError):  # odd: the usual way then
                    run = self._session._make_callable_from_options(options)
                    made[*feeds, None, *fetches] = run
        return made

    def _call(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], time_left_s: TimeLeft
    ) -> list[Array]:
        """Runs the session.

        Session.run would do, but it casts what is fed, checks shapes, and takes 0.3 ms where the
        call that it ends in takes 0.03 ms. TF Serving's answers are that call's.
        """
        small = self._small.get((*feeds, None, *fetches))
        results: list[Array]
        if small is not None:
            try:
                results = small(*feeds.values())
                return results
            except tf.errors.InvalidArgumentError:
                pass  # worded otherwise than TF Serving has it
        results = pywrap_tf_session.TF_SessionRun_wrapper(
            self._session._session,
            _options(time_left_s()),
            {self._handle(name): array for name, array in feeds.items()},
            [self._handle(fetch) for fetch in fetches],
            [],
            None,
        )
        return results

    def _handle(self, name: str) -> Any:
        """What C++ knows a tensor by."""
        handle = self._handles.get(name)
        if handle is None:
            handle = self._graph.get_tensor_by_name(name)._as_tf_output()
            self._handles[name] = handle
        return handle


def _unpacked(definition: Any) -> Signature:
    inputs, outputs = (
        {name: infos[name].name for name in sorted(infos)}
        for infos in (definition.inputs, definition.outputs)
    )
    return Signature(definition, inputs, outputs, dict(definition.defaults))


def _fit(feeds: Mapping[str, Array], ranks: Mapping[str, int]) -> bool:
    """Whether the scheduler can take a call: it knows nothing of empty tensors."""
    return all(array.size for array in feeds.values()) and all(
        feeds[name].ndim == rank for name, rank in ranks.items()
    )


def _check_rows(arrays: Iterable[Array]) -> None:
    """Refuses a call without a batch dimension, in TF Serving's words."""
    shapes = [array.shape for array in arrays]
    if not all(shapes):
        text = "Batching Run() input tensors must have at least one dimension"
        raise tf.errors.InvalidArgumentError(None, None, text)
    if len({shape[0] for shape in shapes}) > 1:
        text = "Batching Run() input tensors must have equal 0th-dimension size"
        raise tf.errors.InvalidArgumentError(None, None, text)


def _reworded(error: Any, feeds: Mapping[str, Array]) -> Any:
    """What TF Serving says, where that is something else than what the scheduler says."""
    if not error.message.startswith(_SHAPES_DIFFER):
        return error
    text = (
        f"Tensors with name '{min(feeds)}' from different tasks have different shapes and padding "
        "is turned off.Set pad_variable_length_inputs to true, or ensure that all tensors with the "
        "same namehave equal dimensions starting with the first dim."
    )
    return tf.errors.FailedPreconditionError(None, None, text)


def _options(timeout_s: float | None) -> Any:
    """RunOptions as C++ takes them."""
    if timeout_s is None:
        return None
    milliseconds = min(_MAX_TIMEOUT_MS, max(1, math.ceil(timeout_s * 1000)))
    coarse = max(0, milliseconds.bit_length() - 5)  # 6 % at most, so that few are made, and kept
    return _made_options(min(_MAX_TIMEOUT_MS, -(-milliseconds >> coarse) << coarse))


@functools.cache
def _made_options(timeout_ms: int) -> Any:
    options = config_pb2.RunOptions(timeout_in_ms=timeout_ms)
    return pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
