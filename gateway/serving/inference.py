"""One inference request, from its head to its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from gateway.engine.job import NORMAL, Job
from gateway.protocol.binary import Octets
from gateway.protocol.classification import classify
from gateway.protocol.compression import inflate
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.decode import RequestDecoder, Usual
from gateway.protocol.encode import encode_string, encode_tensor, encode_tensor_in_binary, tensor_head
from gateway.protocol.errors import CallerError, GatewayError, ModelFailed, UnknownModel
from gateway.protocol.request import InferRequest, RequestedOutput
from gateway.routing.table import Choice, Route
from gateway.serving.answers import error_answer, infer_answer, status_of
from gateway.serving.room import Held
from gateway.serving.version import ServedVersion

__all__ = ("Connection", "Inference", "Prepared", "parse_pin", "path_pin")

Array = np.ndarray[Any, np.dtype[Any]]


class Connection(Protocol):
    """Where an answer goes."""

    def answered(self, inference: Inference) -> None:
        """`inference.answer` is ready."""


class Prepared:
    """What was written of a large request before its record is, each None where that was not.

    Attributes
    ----------
    answer : bytes or None
        Its outputs, from `Inference.outputs_of`.
    logged_inputs, logged_outputs : bytes or None
        As the log has them.
    """

    __slots__ = ("answer", "logged_inputs", "logged_outputs")

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.logged_inputs: bytes | None = None
        self.logged_outputs: bytes | None = None


class Inference(Job):
    """One inference request, from its head to its answer: in JSON and binary, over HTTP.

    Another protocol overrides what reads the request and what writes its answer: `read`, `read_slowly`, `outputs_of`,
    `body_of`, `write` and `refuse`.

    Parameters
    ----------
    connection : Connection
    model : str
    """

    has_stencil: bool = True  # its answer is one of those that a stencil renders, where its record is
    pinned: int | None = None
    key: str | None = None
    timeout_ms: int = 0
    keep_alive: bool = True
    json_length: int | None = None
    encoding: str | None = None
    accepts: str | None = None
    blocks: Sequence[bytes | memoryview] = ()
    refused: GatewayError | None = None
    answer: bytes = b""
    arrived: float = 0.0
    request_id: str | None = None
    parameters: Mapping[str, Any] = MappingProxyType({})
    requested: tuple[RequestedOutput, ...] | None = None
    fragments: Sequence[bytes | None] = ()
    usual: Usual | None = None  # while its numbers are still `text`
    text: bytes = b""
    plain: bool = False
    prepared: Prepared | None = None
    held_body: Held | None = None
    held_answer: Held | None = None
    # Known once it is routed.
    served: ServedVersion = None  # type: ignore[assignment]
    route: Route = None  # type: ignore[assignment]
    choice: Choice = None  # type: ignore[assignment]

    def __init__(self, connection: Connection, model: str) -> None:
        super().__init__()
        self.connection = connection
        self.model = model
        self.body: list[Octets] = []

    def again(self) -> Inference:
        """Another inference with the same head; of one whose body has not been read.

        What `Job` and `Inference` begin with is set here without their constructors, since each request of a busy
        connection comes this way.
        """
        again = Inference.__new__(Inference)
        again.connection = self.connection
        again.model = self.model
        again.body = []
        again.inputs = ()
        again.rows = 1
        again.rank = self.rank
        again.row = 0
        again.run = again.failure = None
        again.abandoned = False
        again.pinned = self.pinned
        again.key = self.key
        again.timeout_ms = self.timeout_ms
        again.json_length = self.json_length
        again.encoding = self.encoding
        again.accepts = self.accepts
        return again

    def apart(self) -> Sequence[Inference]:
        return (self,)

    def with_body(self, body: bytes) -> Inference:
        """Another inference with the same head, and this body."""
        another = self.again()
        another.body.append(body)
        return another

    @property
    def is_bare(self) -> bool:
        """Whether its head asks for a model and for nothing else."""
        asked = (self.pinned, self.key, self.json_length, self.encoding, self.accepts, self.refused)
        return not self.timeout_ms and self.rank == NORMAL and all([each is None for each in asked])

    def read(self, decoder: RequestDecoder) -> InferRequest:
        """The request, for the version it was routed to; asked for once.

        Raises
        ------
        CallerError
        """
        pieces, self.body = self.body, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.size = len(body)
        return decoder.decode(body, self.json_length)

    def read_slowly(self, *, max_bytes: int) -> InferRequest:
        """As `read`, of a large body on another thread: others run meanwhile.

        Parameters
        ----------
        max_bytes : int
            Of a compressed body, inflated.

        Raises
        ------
        CallerError
        """
        pieces, self.body = self.body, []
        body: Octets
        if self.encoding is not None:
            body = inflate(pieces, self.encoding, max_bytes=max_bytes)
        else:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        del pieces
        self.size = len(body)
        return self.served.large_decoder().decode_in_slices(body, self.json_length)

    def recognise(self, decoder: RequestDecoder) -> bool:
        """Whether it is a request like the last, so that its numbers may be read later, with others."""
        if self.json_length is not None or len(self.body) != 1:
            return False
        body = self.body[0]
        if isinstance(body, bytes) and self.take_usual(decoder.recognise(body), len(body)):
            self.body = []
            return True
        return False

    def take_usual(self, found: tuple[Usual, bytes] | None, size: int) -> bool:
        """Take what a decoder has recognised in a body of so many bytes; False when that is nothing."""
        if found is None:
            return False
        self.usual, self.text = found
        self.size = size
        self.rows = self.usual.shape[0]
        self.plain = self.accepts is None
        return True

    def take_inputs(self, inputs: list[Array]) -> None:
        """Take what was read of its text."""
        self.inputs = inputs
        self.fragments = [None] * len(inputs)
        self.usual = None

    def said(self) -> Sequence[int] | None:
        """Positions of the outputs that `outputs_of` wants as flat JSON arrays; None for all of them."""
        if self.requested is None:
            return None
        return [asked.position for asked in self.requested if not (asked.binary or asked.classes)]

    @property
    def is_long(self) -> bool:
        """Whether reading it takes long, whatever is in `body`."""
        return False

    @property
    def is_worded(self) -> bool:
        """Whether elements of its outputs are to be written one by one."""
        return self.requested is None or bool(self.said())

    @property
    def is_classified(self) -> bool:
        """Whether the largest elements of an output are to be found."""
        return any([asked.classes for asked in self.requested or ()])

    @property
    def is_written_aside(self) -> bool:
        """Whether writing its answer takes long, now that its outputs are prepared."""
        return self.accepts is not None

    def outputs_of(self, flats: Sequence[bytes | None]) -> bytes:
        """The outputs of a finished inference, as its answer lists them; `flats` are they as flat JSON, where said."""
        if self.requested is None:
            tensors: Iterable[bytes] = map(encode_tensor, self.served.output_heads, self.outputs, flats)
        else:
            tensors, self.blocks = self._requested(flats)
        return b",".join(tensors)

    def body_of(self, event_id: bytes, outputs: bytes) -> bytes:
        """The body of the answer to a finished inference, of `outputs_of`."""
        return b'%b%b"parameters":{"prediction_id":"%b"},"outputs":[%b]}' % (
            self.served.answer_head,
            b"" if self.request_id is None else b'"id":%b,' % encode_string(self.request_id),
            event_id,
            outputs,
        )

    def write(self, body: bytes, *, event_id: bytes, status: int) -> None:
        """Write the answer, head and all."""
        self.answer = infer_answer(
            body,
            prediction_id=event_id,
            version=self.served.label,
            arm=self.choice.arm.encode(),
            keep_alive=self.keep_alive,
            status=status,
            blocks=self.blocks,
            encoding=self.accepts,
        )

    def release(self, body: bytes, *, event_id: bytes, status: int) -> None:
        """Answer with what the log holds now; `failure` tells why when `status` is no success."""
        self.write(body, event_id=event_id, status=status)
        self.connection.answered(self)

    def give_up(self, fault: Exception) -> None:
        """Keep nothing of a request or answer that cannot be written down."""
        name = type(fault).__name__
        self.failure = ModelFailed(f"the answer of model '{self.model}' cannot be written down ({name})")
        self.inputs, self.parameters, self.request_id, self.prepared = (), {}, None, None

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error that stands in no record."""
        self.answer = error_answer(status_of(error), str(error), keep_alive=self.keep_alive)
        self.connection.answered(self)

    def _requested(self, flats: Sequence[bytes | None]) -> tuple[list[bytes], list[bytes | memoryview]]:
        served, tensors, blocks = self.served, [], []
        for asked in self.requested or ():
            position = asked.position
            head, output, flat = served.output_heads[position], self.outputs[position], flats[position]
            if asked.classes:
                spec = served.output_specs[position]
                head, flat = tensor_head(TensorSpec(spec.name, "BYTES", spec.shape)), None
                output = classify(output, asked.classes, spec=spec, labels=served.labels.get(spec.name, ()))
            if asked.binary:
                tensor, block = encode_tensor_in_binary(head, output)
                blocks.append(block)
            else:
                tensor = encode_tensor(head, output, flat)
            tensors.append(tensor)
        return tensors, blocks


def path_pin(model: str, value: bytes) -> int:
    """A version from a path; what is no version cannot be found.

    Raises
    ------
    UnknownModel
    """
    try:
        return parse_pin(value)
    except CallerError:
        shown = value[:32].decode("latin-1")
        raise UnknownModel(f"Request for unknown model: '{model}' version {shown} is not found") from None


def parse_pin(value: bytes) -> int:
    """A version from the `Gateway-Version` header.

    Raises
    ------
    CallerError
    """
    if not value.isdigit() or len(value) > 9 or value.startswith(b"0"):
        raise CallerError(f"a version is a positive whole number, got '{value[:32].decode('latin-1')}'")
    return int(value)
