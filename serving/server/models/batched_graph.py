"""A copy of a signature's graph that runs behind TensorFlow's batch scheduler.

TF Serving gathers calls in front of its session. TensorFlow has the same scheduler as the op
BatchFunction, which runs a function on a batch. Here the function is the part of the graph that
depends on the signature's inputs; variables, tables and constants are its captured arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from serving.server.models.batching_parameters import BatchingParameters

# The types of tensors that the scheduler can join.
_CAN_JOIN = {
    *(tf.float16, tf.float32, tf.float64, tf.bfloat16, tf.complex64, tf.complex128),
    *(tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.bool, tf.string),
}


@dataclass(frozen=True)
class Batched:
    """A batched computation, which is fed the same tensors as the signature.

    Attributes:
        outputs: names of the batched tensors, by the names of the signature's output tensors.
        row_positions: name of an int32 tensor of shape [rows, 2]: the index in the batch of each
            row of a call, and the size of the batch, padding included.
        ranks: the ranks that inputs must have, by tensor name; only of inputs that are padded.
    """

    outputs: Mapping[str, str]
    row_positions: str
    ranks: Mapping[str, int]


def add(graph: tf.Graph, signature: Any, parameters: BatchingParameters) -> Batched | None:
    """Adds a batched computation of the signature's outputs to ``graph``.

    Args:
        graph: the loaded model's graph; not finalized yet.
        signature: a SignatureDef message.
        parameters: how calls are gathered.

    Returns:
        The computation; None if an input or output has no batch dimension, or a type that the
        scheduler can't join.
    """
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    if not signature.inputs or any(info.WhichOneof("encoding") != "name" for info in infos):
        return None  # the initializer, or sparse or ragged tensors
    inputs = [graph.get_tensor_by_name(info.name) for info in signature.inputs.values()]
    outputs = [graph.get_tensor_by_name(info.name) for info in signature.outputs.values()]
    if not all(tensor.dtype in _CAN_JOIN for tensor in (*inputs, *outputs)):
        return None
    operations = _operations_between(inputs, outputs)
    is_computed = all(output.op in operations for output in outputs)
    if not is_computed or not all(_has_batch_dimension(info.tensor_shape) for info in infos):
        return None
    names = [output.name for output in outputs]
    subgraph, captured = _extract(graph, operations, inputs)
    padded = [parameters.pad_variable_length_inputs and _varies(tensor) for tensor in inputs]

    def compute(*arguments: tf.Tensor) -> list[tf.Tensor]:
        remaining = iter(arguments)
        batches = [
            _decode_padded(next(remaining), next(remaining), tensor) if pad else next(remaining)
            for tensor, pad in zip(inputs, padded, strict=True)
        ]
        function_graph = tf.compat.v1.get_default_graph()
        replaced = {tensor.name: function_graph.capture(tensor) for tensor in captured}
        replaced |= {tensor.name: batch for tensor, batch in zip(inputs, batches, strict=True)}
        results = tf.graph_util.import_graph_def(subgraph, replaced, names, name="")
        size = tf.shape(arguments[0])[:1]
        row_positions = tf.stack([tf.range(size[0]), tf.fill(size, size[0])], axis=1)
        return [*results, row_positions]

    with graph.as_default():
        arguments = []
        for tensor, pad in zip(inputs, padded, strict=True):
            arguments += _encode_padded(tensor) if pad else [tensor]
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in arguments]
        function = tf.function(compute, autograph=False).get_concrete_function(*specs)
        batched = tf.raw_ops.BatchFunction(
            in_tensors=arguments,
            captured_tensors=function.captured_inputs,
            f=function,
            num_batch_threads=parameters.num_batch_threads,
            max_batch_size=parameters.max_batch_size,
            batch_timeout_micros=parameters.batch_timeout_micros,
            max_enqueued_batches=parameters.max_enqueued_batches,
            allowed_batch_sizes=list(parameters.allowed_batch_sizes),
            shared_name=graph.unique_name("batch"),
            Tout=[*(output.dtype for output in outputs), tf.int32],
        )
    return Batched(
        outputs={name: tensor.name for name, tensor in zip(names, batched, strict=False)},
        row_positions=batched[-1].name,
        ranks={t.name: t.shape.rank for t, pad in zip(inputs, padded, strict=True) if pad},
    )


def _has_batch_dimension(shape: Any) -> bool:
    return bool(shape.unknown_rank or (shape.dim and shape.dim[0].size == -1))


def _operations_between(inputs: Sequence[Any], outputs: Sequence[Any]) -> set[Any]:
    """Returns the operations on paths from ``inputs``, which are left out, to ``outputs``."""
    fed = {tensor.op for tensor in inputs}
    dependent: set[Any] = set()
    seen = set(fed)
    # Walks backwards. An operation is visited twice: to push those that it depends on, and after
    # them, to decide whether it depends on an input.
    stack = [(output.op, False) for output in outputs]
    while stack:
        op, are_dependencies_done = stack.pop()
        dependencies = {*(tensor.op for tensor in op.inputs), *op.control_inputs}
        if are_dependencies_done:
            if dependencies & fed or dependencies & dependent:
                dependent.add(op)
        elif op not in seen:
            seen.add(op)
            stack += [(op, True), *((dependency, False) for dependency in dependencies)]
    return dependent


def _extract(graph: tf.Graph, operations: set[Any], inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns a GraphDef of ``operations``, and the tensors that it takes from other operations."""
    names = {op.name for op in operations}
    whole = graph.as_graph_def()
    subgraph = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    subgraph.node.extend(node for node in whole.node if node.name in names)
    for node in subgraph.node:
        node.attr.pop("_class", None)  # may require to be placed with a node outside
        kept = [name for name in node.input if name[0] != "^" or name[1:] in names]
        del node.input[:]
        node.input.extend(kept)
    fed = {tensor.op for tensor in inputs}
    captured = {
        tensor.name: tensor
        for op in operations
        for tensor in op.inputs
        if tensor.op not in operations and tensor.op not in fed
    }
    return subgraph, list(captured.values())


def _varies(tensor: Any) -> bool:
    """Returns whether calls may differ in sizes other than the number of rows.

    False also for an unknown rank: such an input can't be padded.
    """
    return tensor.shape.rank is not None and None in tensor.shape.as_list()[1:]


def _encode_padded(tensor: Any) -> list[Any]:
    """Encodes a call's input so that the scheduler can join inputs of different lengths.

    Returns:
        A vector with a variant for each row, and a vector with the element to pad each row with:
        the call's first element, as in TF Serving.
    """
    rows = tf.RaggedTensor.from_tensor(tensor, ragged_rank=tensor.shape.rank - 1)
    variants = tf.raw_ops.RaggedTensorToVariant(
        rt_nested_splits=rows.nested_row_splits,
        rt_dense_values=rows.flat_values,
        batched_input=True,
    )
    first = tf.reshape(tensor, [-1])[:1]
    return [variants, tf.repeat(first, tf.shape(variants)[0])]


def _decode_padded(variants: Any, first: Any, tensor: Any) -> Any:
    """Returns a batch's padded input, from the joined results of ``_encode_padded``."""
    rank = tensor.shape.rank
    splits, values = tf.raw_ops.RaggedTensorFromVariant(
        encoded_ragged=variants,
        input_ragged_rank=rank - 2,
        output_ragged_rank=rank - 1,
        Tvalues=tensor.dtype,
        Tsplits=tf.int64,
    )
    ragged = tf.RaggedTensor.from_nested_row_splits(values, splits, validate=False)
    is_value = tf.ones_like(ragged, tf.bool).to_tensor()
    padding = tf.reshape(first, [-1] + [1] * (rank - 1))
    return tf.where(is_value, ragged.to_tensor(), padding)
