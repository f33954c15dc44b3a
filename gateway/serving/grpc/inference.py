"""One inference over gRPC: the front's `Inference`, read from a message and answered with one.

Clients send the same message with another tensor in it again and again. One that differs from an earlier one in nothing
but its raw tensor is told by its bytes, and answered with the bytes of an earlier answer around another id and tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gateway.events.addresses import ID_BYTES
from gateway.protocol.binary import tensor_to_bytes
from gateway.protocol.classification import classify
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import GatewayError
from gateway.protocol.request import InferRequest, RequestedOutput
from gateway.serving.aside import SLOW_BINARY_BYTES, SLOW_PLAIN_BYTES
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.fields import Fields
from gateway.serving.grpc.framing import parse
from gateway.serving.grpc.head import ok_tail
from gateway.serving.grpc.requests import Outline, is_finite, outline_of, read_request
from gateway.serving.grpc.tensors import put_outputs
from gateway.serving.head import read_field
from gateway.serving.inference import Connection, Inference, path_pin
from gateway.serving.room import LARGE_BODY_BYTES

__all__ = ("GrpcInference", "UsualMessages", "shown_name")

MAX_NAME = 64
MAX_GIVEN_ID = 1024
MAX_PREFIX_BYTES = 1024
MAX_USUAL = 64

_EMPTY = Signature((), ())
_PLACE = "\0" * ID_BYTES
"""Stands for the id while what is around it is rendered; no name can hold it."""


class UsualMessage(NamedTuple):
    """What stands before the one raw tensor of a message, and what it says."""

    prefix: bytes
    model: str
    version: str
    decoder: RequestDecoder
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int
    outputs: tuple[RequestedOutput, ...] | None

    def request(self, content: bytes) -> InferRequest:
        """The request of a message that has this prefix and the same length."""
        array = np.frombuffer(content, self.dtype, offset=len(self.prefix)).reshape(self.shape)
        return InferRequest(
            inputs=[array], rows=self.rows, outputs=self.outputs, fragments=[None], plain=is_finite(array)
        )


class UsualMessages:
    """What messages of one front usually look like, and the answers to them.

    The length of the tensor is the last word of a prefix, so messages of one length that begin with it hold nothing
    behind that tensor.
    """

    def __init__(self) -> None:
        self._known: dict[int, UsualMessage] = {}
        self._answers: dict[tuple[str, int, str, str, str, tuple[int, ...]], tuple[bytes, bytes]] = {}

    def __repr__(self) -> str:
        return f"<UsualMessages {len(self._known)} known>"

    def find(self, content: bytes) -> UsualMessage | None:
        """The usual message that this one is, with another tensor."""
        known = self._known.get(len(content))
        return known if known is not None and content.startswith(known.prefix) else None

    def learn(
        self, message: messages.ModelInferRequest, request: InferRequest, content: bytes, decoder: RequestDecoder
    ) -> None:
        """Remember a plain request."""
        array = request.inputs[0]
        before = len(content) - array.nbytes
        if not 0 < before <= MAX_PREFIX_BYTES or not array.nbytes or content[before:] != message.raw_input_contents[0]:
            return
        if len(self._known) >= MAX_USUAL:
            self._known.clear()
        self._known[len(content)] = UsualMessage(
            content[:before],
            shown_name(message.model_name),
            message.model_version,
            decoder,
            array.dtype,
            array.shape,
            request.rows,
            request.outputs,
        )

    def around(self, inference: GrpcInference) -> tuple[bytes, bytes] | None:
        """What stands before the id of a plain answer, and between that and its one raw tensor, if it has one."""
        asked, outputs = inference.requested, inference.outputs
        if asked is None or len(asked) != 1 or len(outputs) != 1 or outputs[0].dtype.kind not in "fiu":
            return None
        served, arm, output = inference.served, inference.choice.arm, outputs[0]
        key = served.model, served.version, served.digest, arm, output.dtype.str, output.shape
        found = self._answers.get(key)
        if found is None:
            whole, size = inference.response_of(_PLACE).SerializeToString(), output.nbytes
            before, _, after = whole[: len(whole) - size].partition(_PLACE.encode())
            if len(self._answers) >= MAX_USUAL:
                self._answers.clear()
            found = self._answers[key] = before, after
        return found


class GrpcInference(Inference):
    """One `ModelInferRequest` on its way; once its connection is told, it has a response or a refusal.

    Parameters
    ----------
    connection : Connection
    content : bytes
        The message.
    usual : UsualMessages

    Attributes
    ----------
    given_id : str
        The request's, unchecked: for its caller only.
    response : bytes or None
        A `ModelInferResponse`.
    refusal : GatewayError or None
    tail : bytes
        The block of fields behind a response.
    trailers : tuple of (bytes, bytes)
        Of a refusal: prediction id, version and arm, once the request was routed and logged.
    """

    has_stencil = False
    raw: bool = False
    _sends_raw: bool = True  # where it is large
    response: bytes | None = None
    refusal: GatewayError | None = None
    tail: bytes = b""
    trailers: Fields = ()

    def __init__(self, connection: Connection, content: bytes, *, usual: UsualMessages) -> None:
        self._known = known = usual.find(content)
        self._usual = usual
        self._content = content
        self._message: messages.ModelInferRequest | None = None
        self._given_version: str
        self.given_id: str = ""
        if known is not None:
            super().__init__(connection, known.model)
            self._given_version = known.version
        else:
            said: Outline | messages.ModelInferRequest
            if len(content) > LARGE_BODY_BYTES:
                # It may wait, and parsed it is many times as large.
                said = outline_of(content)
                self._sends_raw = said.is_raw
            else:
                said = self._message = parse(messages.ModelInferRequest, content)
            super().__init__(connection, shown_name(said.model_name))
            self._given_version = said.model_version
            self.given_id = said.id[:MAX_GIVEN_ID]
        self.size = len(content)

    @property
    def is_answered(self) -> bool:
        """Whether there is a response or a refusal."""
        return self.response is not None or self.refusal is not None

    def read_head(self, fields: Fields, seconds_left: float | None) -> None:
        """Take what stands beside the message: the version, the gateway's metadata, the call's deadline."""
        if self._given_version:
            try:
                self.pinned = path_pin(self.model, self._given_version.encode())
            except GatewayError as error:
                self.refused = error.with_traceback(None)
        for name, value in fields:
            read_field(self, name, value)
        if seconds_left is not None:
            allowed = max(1, int(seconds_left * 1000))
            self.timeout_ms = min(self.timeout_ms, allowed) if self.timeout_ms else allowed

    def recognise(self, decoder: RequestDecoder) -> bool:
        return False

    def read(self, decoder: RequestDecoder) -> InferRequest:
        # Its tensors are in the request then, and it may be large.
        content, known, message = self._content, self._known, self._message
        self._content, self._message = b"", None
        if known is not None and known.decoder is decoder:
            self.raw = True
            return known.request(content)
        message = message or parse(messages.ModelInferRequest, content)
        signature = self.served.signature or _EMPTY
        request, self.raw = read_request(message, model=self.model, signature=signature, checks=decoder.checks)
        if request.plain:
            self._usual.learn(message, request, content, decoder)
        return request

    def read_slowly(self, *, max_bytes: int) -> InferRequest:
        return self.read(self.served.large_decoder())

    @property
    def is_long(self) -> bool:
        is_raw = self._sends_raw and not self.served.takes_texts
        return self.size > (SLOW_BINARY_BYTES if is_raw else SLOW_PLAIN_BYTES)

    @property
    def is_worded(self) -> bool:
        return not self.raw

    @property
    def is_written_aside(self) -> bool:
        return self.prepared is not None and self.prepared.answer is not None

    def said(self) -> Sequence[int]:
        return ()

    def outputs_of(self, flats: Sequence[bytes | None]) -> bytes:
        return b""

    def body_of(self, event_id: bytes, outputs: bytes) -> bytes:
        return b""

    def write(self, body: bytes, *, event_id: bytes, status: int) -> None:
        version, arm = self.served.label, self.choice.arm.encode()
        if self.failure is not None:
            self.refusal = self.failure
            self.trailers = (
                (b"gateway-prediction-id", event_id),
                (b"gateway-model-version", version),
                (b"gateway-arm", arm),
            )
        else:
            self.tail = ok_tail(version, arm) + event_id
            around = self._usual.around(self) if self.plain else None
            if around is None:
                self.response = self.response_of(event_id.decode()).SerializeToString()
            else:
                before, after = around
                self.response = b"".join((before, event_id, after, tensor_to_bytes(self.outputs[0])))

    def refuse(self, error: GatewayError) -> None:
        self.refusal = error.with_traceback(None)  # else it would keep this request, and this request it
        self.connection.answered(self)

    def response_of(self, prediction_id: str) -> messages.ModelInferResponse:
        """The response, which names a prediction so."""
        served = self.served
        response = messages.ModelInferResponse(
            model_name=served.model, model_version=str(served.version), id=self.request_id or ""
        )
        response.parameters["prediction_id"].string_param = prediction_id
        response.parameters["arm"].string_param = self.choice.arm
        tensors = []
        for asked in self.requested or ():
            spec, output = served.output_specs[asked.position], self.outputs[asked.position]
            if asked.classes:
                output = classify(output, asked.classes, spec=spec, labels=served.labels.get(spec.name, ()))
                spec = TensorSpec(spec.name, "BYTES", spec.shape)
            tensors.append((spec, output))
        put_outputs(response, tensors, raw=self.raw)
        return response


def shown_name(name: str) -> str:
    """A model's name as it may stand in an error: one that is too long to be any is cut, and still none.

    >>> len(shown_name("m" * 1000))
    67
    """
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
