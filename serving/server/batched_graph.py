"""A signature's graph once more, behind TensorFlow's batch scheduler.

TF Serving gathers calls in front of its session. Its scheduler is in TensorFlow too, as the op
BatchFunction, which runs a function on what it has gathered. Here the function is the part of the
graph that depends on the signature's inputs; variables, tables and constants are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from serving.server.batching import BatchingParameters


@dataclass(frozen=True)
class Batched:
    """A batched computation, fed as the signature is.

    Attributes:
        outputs: for the name of each output's tensor that of the one that stands for it.
        place: name of an int32 tensor of shape [rows, 2]: where in its batch each row of a call
            was, and the size of the batch, padding included.
        ranks: which ranks inputs must have, by the names of their tensors, where it matters.
    """

    outputs: Mapping[str, str]
    place: str
    ranks: Mapping[str, int]


def add(graph: tf.Graph, signature: Any, parameters: BatchingParameters) -> Batched | None:
    """Adds a batched computation of the signature's outputs to ``graph``.

    Args:
        graph: of the loaded model; not finalized yet.
        signature: a SignatureDef message.
        parameters: how to gather calls.

    Returns:
        None if there is no batch dimension that all inputs and outputs have.
    """
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    if not signature.inputs or any(info.WhichOneof("encoding") != "name" for info in infos):
        return None  # the initializer, or what is sparse or ragged
    inputs = [graph.get_tensor_by_name(info.name) for info in signature.inputs.values()]
    outputs = [graph.get_tensor_by_name(info.name) for info in signature.outputs.values()]
    between = _between(inputs, outputs)
    computed = all(output.op in between for output in outputs)
    if not computed or not all(_any_number_of_rows(info.tensor_shape) for info in infos):
        return None
    names = [output.name for output in outputs]
    part, outside = _part(graph, between, inputs)
    padded = [parameters.pad_variable_length_inputs and _varies(tensor) for tensor in inputs]

    def compute(*arguments: tf.Tensor) -> list[tf.Tensor]:
        left = iter(arguments)
        rows = [
            _together(next(left), next(left), tensor) if pad else next(left)
            for tensor, pad in zip(inputs, padded, strict=True)
        ]
        here = tf.compat.v1.get_default_graph()
        known = {tensor.name: here.capture(tensor) for tensor in outside}
        known |= {tensor.name: row for tensor, row in zip(inputs, rows, strict=True)}
        found = tf.graph_util.import_graph_def(part, known, names, name="")
        size = tf.shape(arguments[0])[:1]
        place = tf.stack([tf.range(size[0]), tf.fill(size, size[0])], axis=1)
        return [*found, place]

    with graph.as_default():
        arguments = []
        for tensor, pad in zip(inputs, padded, strict=True):
            arguments += _apart(tensor) if pad else [tensor]
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
        outputs={name: each.name for name, each in zip(names, batched, strict=False)},
        place=batched[-1].name,
        ranks={t.name: t.shape.rank for t, pad in zip(inputs, padded, strict=True) if pad},
    )


def _any_number_of_rows(shape: Any) -> bool:
    return bool(shape.unknown_rank or (shape.dim and shape.dim[0].size == -1))


def _between(inputs: Sequence[Any], outputs: Sequence[Any]) -> set[Any]:
    """The operations that lie on a path from ``inputs``, themselves left out, to ``outputs``."""
    fed = {tensor.op for tensor in inputs}
    found: set[Any] = set()
    seen = set(fed)
    ahead = [(output.op, False) for output in outputs]
    while ahead:  # a walk backwards, each operation judged after those that it depends on
        op, judged = ahead.pop()
        before = {*(tensor.op for tensor in op.inputs), *op.control_inputs}
        if judged:
            if before & fed or before & found:
                found.add(op)
        elif op not in seen:
            seen.add(op)
            ahead += [(op, True), *((other, False) for other in before)]
    return found


def _part(graph: tf.Graph, between: set[Any], inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The nodes of ``between``, and the tensors that they take from the rest of the graph."""
    names = {op.name for op in between}
    whole = graph.as_graph_def()
    part = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    part.node.extend(node for node in whole.node if node.name in names)
    for node in part.node:
        node.attr.pop("_class", None)  # may want to be near a node that is outside
        kept = [name for name in node.input if name[0] != "^" or name[1:] in names]
        del node.input[:]
        node.input.extend(kept)
    fed = {tensor.op for tensor in inputs}
    outside = {
        tensor.name: tensor
        for op in between
        for tensor in op.inputs
        if tensor.op not in between and tensor.op not in fed
    }
    return part, list(outside.values())


def _varies(tensor: Any) -> bool:
    """Whether calls may differ in more than the number of rows; a rank must be known for that."""
    return tensor.shape.rank is not None and None in tensor.shape.as_list()[1:]


def _apart(tensor: Any) -> list[Any]:
    """A call's input in a form that the scheduler can put beside others of different lengths.

    That is a vector with a variant for each row, and one with the element to pad each row with:
    the call's first, as in TF Serving.
    """
    rows = tf.RaggedTensor.from_tensor(tensor, ragged_rank=tensor.shape.rank - 1)
    variants = tf.raw_ops.RaggedTensorToVariant(
        rt_nested_splits=rows.nested_row_splits,
        rt_dense_values=rows.flat_values,
        batched_input=True,
    )
    first = tf.reshape(tensor, [-1])[:1]
    return [variants, tf.repeat(first, tf.shape(variants)[0])]


def _together(variants: Any, first: Any, tensor: Any) -> Any:
    """A batch's input, from what ``_apart`` made of the calls' ones."""
    rank = tensor.shape.rank
    splits, values = tf.raw_ops.RaggedTensorFromVariant(
        encoded_ragged=variants,
        input_ragged_rank=rank - 2,
        output_ragged_rank=rank - 1,
        Tvalues=tensor.dtype,
        Tsplits=tf.int64,
    )
    ragged = tf.RaggedTensor.from_nested_row_splits(values, splits, validate=False)
    there = tf.ones_like(ragged, tf.bool).to_tensor()
    padding = tf.reshape(first, [-1] + [1] * (rank - 1))
    return tf.where(there, ragged.to_tensor(), padding)
