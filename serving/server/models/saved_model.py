"""A SavedModel in memory. As in TF Serving, it runs in a session, by the names of tensors.

Calling ``tf.saved_model.load(path).signatures[...]`` would be the modern way, but it checks shapes
that TF Serving leaves to the ops, its error messages differ, and it takes ten times as long.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from serving.element_types import numpy_dtype
from serving.server.deadlines import TimeLeft
from serving.server.models import batched_graph
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.cheap_graphs import CheapGraphs
from serving.tensors import Array

_MAX_TIMEOUT_MS = 2**31 - 1
_CALLERS_THREAD = -1  # in RunOptions
_BATCH_NODE = re.compile(r"\n\t \[\[(\{\{node )?BatchFunction\w*(\}\})?\]\]$")
_SHAPES_DIFFER = ("Dimensions of inputs should match", "Ranks of all input tensors should match")


@dataclass(frozen=True)
class Signature:
    """A SignatureDef as Python dicts, which are faster to read: every call reads it.

    Attributes:
        definition: TensorFlow's SignatureDef message.
        inputs: tensor names by input name, sorted by input name.
        outputs: tensor names by output name, sorted by output name.
        defaults: TensorProtos, by name, of inputs that a caller may omit.
    """

    definition: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, Any]


class SavedModel:
    """One version of a model, in a graph and session of its own; safe to share between threads.

    Attributes:
        signatures: by key.
    """

    def __init__(
        self,
        path: Path,
        batching: BatchingParameters | None = None,
        observe_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Loads the graph that is tagged ``serve`` and its variables.

        Args:
            path: folder of the SavedModel.
            batching: how calls are gathered into batches; None runs each call by itself.
            observe_batch: gets the number of rows, padding included, of every computed batch.

        Raises:
            tf.errors.OpError, OSError, RuntimeError, ValueError: the model can't be loaded.
        """
        self._graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
            definitions = dict(meta_graph.signature_def)
            self.signatures = {key: _to_signature(value) for key, value in definitions.items()}
            self._quantized = self._find_quantized_outputs()
            self._batched = self._add_batching(definitions, batching) if batching else {}
            # Session.run does this. TF_SessionRun_wrapper, which `_call` uses, does not.
            self._session._extend_graph()
            self._inline = self._make_inline_functions()
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
        """Computes the tensors ``fetches`` from ``feeds``.

        With batching, a call that feeds and fetches all tensors of a signature runs in a batch,
        and any other call runs by itself, as in TF Serving.

        Args:
            feeds: arrays by tensor name, for example ``x:0``.
            fetches: names of the tensors to compute.
            time_left_s: returns the seconds until the caller's deadline, or None without one.

        Raises:
            tf.errors.OpError: the computation failed; DeadlineExceededError when time is up.
        """
        results = self._run(feeds, fetches, time_left_s)
        if self._quantized:
            dtypes = [self._quantized.get(name) for name in fetches]
            pairs = zip(results, dtypes, strict=True)
            results = [np.asarray(r).view(dtype) if dtype else r for r, dtype in pairs]
        return results

    def _run(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], time_left_s: TimeLeft
    ) -> list[Array]:
        batched = self._batched and self._batched.get((frozenset(feeds), frozenset(fetches)))
        if not batched or not _fit(feeds, batched.ranks):
            return self._call(feeds, fetches, time_left_s)
        _check_rows(feeds.values())
        names = [*(batched.outputs[name] for name in fetches), batched.row_positions]
        try:
            *results, positions = self._call(feeds, names, time_left_s)
        except tf.errors.CancelledError:
            # The deadline of another call in the batch has cancelled all of it: run this one alone.
            return self._call(feeds, fetches, time_left_s)
        except (tf.errors.InvalidArgumentError, tf.errors.UnavailableError) as error:
            raise _as_tf_serving_reports(error, feeds) from None
        if positions[0, 0] == 0:  # true for exactly one call of each batch
            self._observe_batch(int(positions[0, 1]))
        return results

    def close(self) -> None:
        """Frees the variables; no call may be under way."""
        self._session.close()

    def _find_quantized_outputs(self) -> dict[str, np.dtype[Any]]:
        """Returns the numpy dtypes of quantized outputs, by tensor name.

        A session returns such outputs as arrays of plain integers.
        """
        dtypes = {}
        for signature in self.signatures.values():
            for name in signature.outputs.values():
                with contextlib.suppress(KeyError, ValueError):  # `_handle` reports what is missing
                    dtype = self._graph.get_tensor_by_name(name).dtype
                    if dtype.is_quantized:
                        dtypes[name] = numpy_dtype(dtype.name)
        return dtypes

    def _add_batching(
        self, definitions: Mapping[str, Any], parameters: BatchingParameters
    ) -> dict[Any, batched_graph.Batched]:
        """Returns batched computations, by the names of the tensors that are fed and fetched."""
        added = {}
        for definition in definitions.values():
            batched = batched_graph.add(self._graph, definition, parameters)
            if batched is not None:
                fed = frozenset(info.name for info in definition.inputs.values())
                added[fed, frozenset(batched.outputs)] = batched
        return added

    def _make_inline_functions(self) -> dict[tuple[str | None, ...], Callable[..., list[Array]]]:
        """Returns functions that run cheap signatures in the caller's thread.

        They save the switch to another thread. Such a run can't be interrupted by a deadline. The
        keys are the names of the tensors to feed, None, and the names of those to fetch.
        """
        functions = {}
        graphs = CheapGraphs(self._graph)
        for signature in self.signatures.values():
            feeds, fetches = list(signature.inputs.values()), list(signature.outputs.values())
            if feeds and graphs.is_cheap(fetches):
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                options.run_options.inter_op_thread_pool = _CALLERS_THREAD
                # TensorFlow refuses some signatures; `_call` runs these in the session.
                with contextlib.suppress(tf.errors.OpError):
                    run = self._session._make_callable_from_options(options)
                    functions[*feeds, None, *fetches] = run
        return functions

    def _call(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], time_left_s: TimeLeft
    ) -> list[Array]:
        """Runs the session.

        Session.run casts the arrays that are fed, checks shapes, and takes 0.3 ms. The C function
        below takes 0.03 ms, and its results and errors are those of TF Serving.
        """
        inline = self._inline.get((*feeds, None, *fetches))
        if inline is not None:
            try:
                return _as_arrays(inline(*feeds.values()))
            except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
                pass  # the session's message below is TF Serving's; this one is not
        try:
            results = pywrap_tf_session.TF_SessionRun_wrapper(
                self._session._session,
                _options(time_left_s()),
                {self._handle(name, _no_feed): array for name, array in feeds.items()},
                [self._handle(fetch, _no_fetch) for fetch in fetches],
                [],
                None,
            )
        except UnicodeDecodeError as error:
            # A message that quotes an input's bytes, such as an Example that can't be parsed.
            text = error.object.decode(errors="replace")
            raise tf.errors.InvalidArgumentError(None, None, text) from None
        return _as_arrays(results)

    def _handle(self, name: str, missing: Callable[[tf.Graph, str], Any]) -> Any:
        """Returns the C++ handle of a tensor; raises what ``missing`` returns if none exists."""
        handle = self._handles.get(name)
        if handle is None:
            try:
                tensor = self._graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
            except (KeyError, ValueError):
                raise missing(self._graph, name) from None
            handle = tensor._as_tf_output()
            self._handles[name] = handle
        return handle


def _as_arrays(results: Sequence[Any]) -> list[Array]:
    """Returns outputs as arrays; TensorFlow returns a scalar string as bytes."""
    return [np.array(each, object) if isinstance(each, bytes) else each for each in results]


def _to_signature(definition: Any) -> Signature:
    inputs, outputs = (
        {name: infos[name].name for name in sorted(infos)}
        for infos in (definition.inputs, definition.outputs)
    )
    return Signature(definition, inputs, outputs, dict(definition.defaults))


# Python's API refuses tensors that don't exist: of sparse inputs, which have no name, and of
# operations without outputs, such as the initializer. TF Serving has these texts from C++.
def _no_feed(graph: tf.Graph, name: str) -> Any:
    return tf.errors.NotFoundError(None, None, f"FeedInputs: unable to find feed output {name}")


def _no_fetch(graph: tf.Graph, name: str) -> Any:
    operations = {operation.name: operation for operation in graph.get_operations()}
    operation = operations.get(name.partition(":")[0])
    if operation is None:
        return tf.errors.NotFoundError(None, None, f"FetchOutputs node {name}: not found")
    if operation.outputs:
        count = len(operation.outputs)
        text = f"FetchOutputs {name}: output index too large, must be < {count}"
    else:
        text = (
            f"Tried to fetch data for '{name}', which produces no output.  To run to a node but "
            f"not fetch any data, pass '{name}' as an argument to the 'target_node_names' argument "
            "of the Session::Run API."
        )
    return tf.errors.InvalidArgumentError(None, None, text)


def _fit(feeds: Mapping[str, Array], ranks: Mapping[str, int]) -> bool:
    """Returns whether the scheduler can take a call: it can't take empty tensors."""
    return all(array.size for array in feeds.values()) and all(
        feeds[name].ndim == rank for name, rank in ranks.items()
    )


def _check_rows(arrays: Iterable[Array]) -> None:
    """Raises InvalidArgumentError for a call without a batch dimension, with TF Serving's text."""
    shapes = [array.shape for array in arrays]
    if not all(shapes):
        text = "Batching Run() input tensors must have at least one dimension"
        raise tf.errors.InvalidArgumentError(None, None, text)
    if len({shape[0] for shape in shapes}) > 1:
        text = "Batching Run() input tensors must have equal 0th-dimension size"
        raise tf.errors.InvalidArgumentError(None, None, text)


def _as_tf_serving_reports(error: Any, feeds: Mapping[str, Array]) -> Any:
    """Returns TF Serving's error where it differs from the scheduler's."""
    if not error.message.startswith(_SHAPES_DIFFER):
        # TF Serving gathers calls in front of the session: its graph has no node for that.
        return type(error)(None, None, _BATCH_NODE.sub("", error.message))
    text = (
        f"Tensors with name '{min(feeds)}' from different tasks have different shapes and padding "
        "is turned off.Set pad_variable_length_inputs to true, or ensure that all tensors with the "
        "same namehave equal dimensions starting with the first dim."
    )
    return tf.errors.FailedPreconditionError(None, None, text)


def _options(timeout_s: float | None) -> Any:
    """Returns RunOptions with a timeout, as C++ takes them."""
    if timeout_s is None:
        return None
    milliseconds = min(_MAX_TIMEOUT_MS, max(1, math.ceil(timeout_s * 1000)))
    # Rounded up by 6 % at most, so that the cache below stays small.
    coarse = max(0, milliseconds.bit_length() - 5)
    return _cached_options(min(_MAX_TIMEOUT_MS, -(-milliseconds >> coarse) << coarse))


@functools.cache
def _cached_options(timeout_ms: int) -> Any:
    options = config_pb2.RunOptions(timeout_in_ms=timeout_ms)
    return pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
