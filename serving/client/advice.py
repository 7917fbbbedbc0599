"""What to do about an error of a call, by its status and the server's text."""

from __future__ import annotations

import re
from typing import Final

from grpc import StatusCode

_REFUSED: Final = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.OUT_OF_RANGE,
)
_INFERENCE: Final = ("Predict", "Classify", "Regress")
# Not all failed connections: TLS and HTTP/1 are between the client and the server behind the proxy.
_PROXY_FAILED: Final = (
    "(?i)HTTP proxy|resolving|name resolution|failed to connect"
    "|connections to all .*(clos|reset|timed? ?out)"
)

# The first row that fits: codes, a part of the text (of TF Serving, TensorFlow or gRPC), advice.
# A text that fits no row gets no advice, because a wrong one costs more.
_TABLE: Final[tuple[tuple[tuple[StatusCode, ...], str, str], ...]] = (
    (
        _REFUSED,
        "Unrecognized servable version label",
        "Check the label: version_labels in the server's models.config has all of them.",
    ),
    (_REFUSED, "Missing ModelSpec|has no name specified|empty model name", "Give a model's name."),
    (
        _REFUSED,
        "(?i)signature key .* not found|No signature was found",
        "Check the signature: metadata() lists those of the model.",
    ),
    (
        _REFUSED,
        "(classification|regression) (signature|inputs)|Expected one (input|output) Tensor"
        "|Expected one or two output Tensors",
        "This signature is for another method: metadata() lists those of the model.",
    ),
    (
        _REFUSED,
        "input size does not match signature|Signature input alias",
        "Compare the names of the inputs with those of metadata().",
    ),
    (_REFUSED, "duplicate output tensor alias", "Name each output once in output_filter."),
    (
        _REFUSED,
        "output tensor alias not found",
        "Compare output_filter with the outputs of metadata().",
    ),
    (_REFUSED, "Input is empty", "Send at least one example."),
    (
        _REFUSED,
        "Task size .* is larger than maximum",
        "Send fewer rows in one call: max_batch_size= splits them.",
    ),
    (
        _REFUSED,
        "Data types don't match|Number of .* values != expected|Feature: .* is required",
        "Compare the types and lengths of the features with those that the model was exported for.",
    ),
    (_REFUSED, r"Expects arg\[\d+\] to be", "Compare the dtypes with those of metadata()."),
    (
        _REFUSED,
        "Request to assign label to version",
        "Wait until status() shows that version as AVAILABLE, and reload again.",
    ),
    (_REFUSED, "have an absolute path", "Give each model an absolute base_path."),
    (_REFUSED, "multiple times in config list", "List each model once."),
    (_REFUSED, "Illegal setting neither", 'Give each model a model_platform: "tensorflow".'),
    (
        _REFUSED,
        "Illegal to change a model's platform",
        "A model keeps its model_platform: use the old one, or another name.",
    ),
    (
        _REFUSED,
        "Only ModelConfigList",
        "Write the models into a model_config_list.",
    ),
    (
        (*_REFUSED, StatusCode.UNIMPLEMENTED),  # a convolution with a wrong number of channels
        r"(?i)size-incompatible|incompatible shapes|\bshapes? \[|0th-dimension|-dimensional\b|"
        r"\brank\b|different ndims|requested shape|grouped convolutions",
        "Compare the shapes with those of metadata().",
    ),
    (
        (StatusCode.NOT_FOUND,),
        r"request: Specific\(|Could not find version \d",
        "status() lists the versions that are loaded.",
    ),
    (
        (StatusCode.NOT_FOUND,),
        r"request: Latest\(|Could not find any versions",
        "Check the model's name; status() lists the versions that are loaded.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        "batch scheduling queue",
        "The server is overloaded: call less at a time, or add replicas.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        r"http1\.x server",
        "The port is not gRPC's: TF Serving has one for gRPC, mostly 8500, and one for REST.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        "(?i)ssl|tls|certificate|peer name|verification check",
        "Check the certificates, and that either both sides use TLS or none.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        "(?i)dns|name resolution|domain name|resolv",
        "Check that the target's name is right and can be resolved here.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        r"header with status: 50\d",
        "A gateway answered, and not the server behind it: check that one.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        "(?i)refused|failed to connect to remote host|no route|unreachable|timed? ?out",
        "Check that a server listens there.",
    ),
    (
        (StatusCode.UNAVAILABLE,),
        "(?i)socket closed|connection reset|broken pipe|goaway|recvmsg",
        "The connection broke: check that the server runs.",
    ),
    (
        (StatusCode.RESOURCE_EXHAUSTED,),
        "(?i)threadpool",
        "Call less at a time, or increase the server's --grpc_max_threads.",
    ),
    (
        (StatusCode.RESOURCE_EXHAUSTED,),
        "(?i)message larger than max",
        "Send fewer rows in one call (max_batch_size=), or increase the server's limit of a "
        "message.",
    ),
    (
        (StatusCode.RESOURCE_EXHAUSTED,),
        r"\bOOM\b|(?i:allocat|out of memory)",
        "Send fewer rows in one call (max_batch_size=), or give the server more memory.",
    ),
    (
        (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED),
        "",
        "Check the credentials.",
    ),
    (
        (StatusCode.UNIMPLEMENTED,),
        "(?i)^no message$|method not found|unknown (service|method)|header with status: 404",
        "Check that the target is TF Serving's gRPC port: the server there has no such method.",
    ),
    (
        (StatusCode.CANCELLED,),
        "(?i)client was closed|channel closed",
        "Close a client when its calls have ended.",
    ),
    (
        (StatusCode.CANCELLED,),
        "",
        "Something between the client and the model ended the call, such as a gateway.",
    ),
    (
        (StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS, StatusCode.ABORTED),
        "",
        "See the server's log.",
    ),
)


def advice_for(method: str, code: StatusCode, details: str, proxy: str | None) -> str:
    """Returns a sentence that states what to do, or an empty text if nothing is sure to help."""
    if code is StatusCode.DEADLINE_EXCEEDED:
        if method in _INFERENCE:
            return "Increase timeout_s, or send less in one call."
        if method == "HandleReloadConfigRequest":
            return "Increase timeout_s: the server waits for models, also for a missing base_path."
        return "Check that the server is not overloaded, or increase timeout_s."
    if proxy and code is StatusCode.UNAVAILABLE and re.search(_PROXY_FAILED, details):
        return "Check the proxy, or list the target in no_proxy to connect directly."
    for codes, part, advice in _TABLE:
        if code in codes and re.search(part, details):
            return advice
    return ""
