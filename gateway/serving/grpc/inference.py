"""One inference over gRPC: the front's `Inference`, read from a message and answered with one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.protocol.classification import classify
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import GatewayError
from gateway.protocol.request import InferRequest
from gateway.serving.aside import SLOW_BINARY_BYTES, SLOW_PLAIN_BYTES
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.requests import read_request
from gateway.serving.grpc.tensors import put_outputs
from gateway.serving.head import read_gateway_header
from gateway.serving.inference import Connection, Inference, path_pin

__all__ = ("GrpcInference", "shown_name")

MAX_NAME = 64
MAX_GIVEN_ID = 1024

_EMPTY = Signature((), ())
_READ = messages.ModelInferRequest()

Metadata = tuple[tuple[str, str], ...]


class GrpcInference(Inference):
    """One `ModelInferRequest` on its way; once its connection is told, it has a response or a refusal.

    Parameters
    ----------
    connection : Connection
    message : ModelInferRequest
    size : int
        Of the message, in bytes.

    Attributes
    ----------
    given_id : str
        The request's, unchecked: for its caller only.
    response : ModelInferResponse or None
    refusal : GatewayError or None
    trailers : tuple of (str, str)
        Prediction id, version and arm, once the request was routed and logged.
    """

    raw: bool = False
    response: messages.ModelInferResponse | None = None
    refusal: GatewayError | None = None
    trailers: Metadata = ()

    def __init__(self, connection: Connection, message: messages.ModelInferRequest, *, size: int) -> None:
        super().__init__(connection, shown_name(message.model_name))
        self.message = message
        self.size = size
        self.given_id: str = message.id[:MAX_GIVEN_ID]

    def read_head(self, metadata: Iterable[tuple[str, str | bytes]], seconds_left: float | None) -> None:
        """Take what stands beside the message: the version, the gateway's metadata, the call's deadline."""
        try:
            if self.message.model_version:
                self.pinned = path_pin(self.model, self.message.model_version.encode())
            for name, value in metadata:
                if name.startswith("gateway-"):
                    read_gateway_header(self, name.encode(), value.encode() if isinstance(value, str) else value)
        except GatewayError as error:
            self.refused = error.with_traceback(None)
        if seconds_left is not None:
            allowed = max(1, int(seconds_left * 1000))
            self.timeout_ms = min(self.timeout_ms, allowed) if self.timeout_ms else allowed

    def recognise(self, decoder: RequestDecoder) -> bool:
        return False

    def read(self, decoder: RequestDecoder) -> InferRequest:
        # Its tensors are in the request then, and it may be large.
        message, self.message = self.message, _READ
        signature = self.served.signature or _EMPTY
        request, self.raw = read_request(message, model=self.model, signature=signature, checks=decoder.checks)
        return request

    def read_slowly(self, *, max_bytes: int) -> InferRequest:
        return self.read(self.served.large_decoder())

    @property
    def is_long(self) -> bool:
        if len(self.message.raw_input_contents) and not self.served.takes_texts:
            return self.size > SLOW_BINARY_BYTES
        return self.size > SLOW_PLAIN_BYTES

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
        prediction_id, arm = event_id.decode(), self.choice.arm
        self.trailers = (
            ("gateway-prediction-id", prediction_id),
            ("gateway-model-version", str(self.served.version)),
            ("gateway-arm", arm),
        )
        if self.failure is not None:
            self.refusal = self.failure
        else:
            self.response = self._response(prediction_id, arm)

    def refuse(self, error: GatewayError) -> None:
        self.refusal = error
        self.connection.answered(self)

    def _response(self, prediction_id: str, arm: str) -> messages.ModelInferResponse:
        served = self.served
        response = messages.ModelInferResponse(
            model_name=served.model, model_version=str(served.version), id=self.request_id or ""
        )
        response.parameters["prediction_id"].string_param = prediction_id
        response.parameters["arm"].string_param = arm
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
