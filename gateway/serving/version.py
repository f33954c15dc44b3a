"""What a front knows about one model version: its lane, its codec, its metrics."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from gateway.engine.lane import Lane
from gateway.engine.wire import Hello
from gateway.events.records import Arm
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.encode import encode_string, tensor_head
from gateway.protocol.errors import EngineUnavailable
from gateway.protocol.json_tensor import SECRET_BITS
from gateway.protocol.limits import Limits
from gateway.routing.table import Choice
from gateway.serving.answers import outcome_of
from gateway.serving.records import prediction_head
from gateway.serving.stencil import Stencil, make_stencil
from gateway.serving.tally import RunTally
from gateway.telemetry.cells import CellFile, Counter, Histogram

__all__ = ("ServedVersion",)


MAX_STENCILS = 256

Array = np.ndarray[Any, np.dtype[Any]]


class ServedVersion:
    """One version as this front serves it.

    `decoder` and `signature` are None until its engine has been reached for the first time.
    """

    def __init__(
        self,
        model: str,
        version: int,
        *,
        digest: str,
        gateway: str,
        cells: CellFile,
        limits: Limits,
        max_logged_bytes: int,
    ) -> None:
        self.model = model
        self.version = version
        self.digest = digest
        self.label = str(version).encode()
        self.lane: Lane
        self.signature: Signature | None = None
        self.decoder: RequestDecoder | None = None
        self.redacted: frozenset[int] = frozenset()
        self.redacted_columns: dict[int, dict[str, int]] = {}
        self.sample = 1.0
        self.takes_bundles = False
        self.takes_texts = False
        self.input_heads: tuple[bytes, ...] = ()
        self.answer_head = b""
        self.output_heads: tuple[bytes, ...] = ()
        self.output_specs: tuple[TensorSpec, ...] = ()
        self.labels: dict[str, tuple[str, ...]] = {}
        self.omitted: dict[str, str] = {}
        self._gateway = gateway
        self._cells = cells
        self._limits = limits
        self._max_logged_bytes = max_logged_bytes
        self._record_heads: dict[tuple[Arm, float, str], bytes] = {}
        self._stencils: dict[tuple[Arm, float, str, int, tuple[int, ...], tuple[int, ...]], Stencil | None] = {}
        self._requests: dict[tuple[str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        labels = {"model": model, "version": str(version)}
        self.inference_seconds = cells.histogram("gateway_inference_duration_seconds", labels)
        self.queue_seconds = cells.histogram("gateway_queue_duration_seconds", labels)
        self.batch_rows = cells.histogram("gateway_batch_rows", labels)
        self.tally = RunTally(labels, cells)

    def __repr__(self) -> str:
        return f"<ServedVersion {self.lane!r}>"

    @property
    def unready(self) -> str:
        """What callers are told while no engine has been reached, with the reason where none will be."""
        why = "" if self.lane.refusing is None else f": {self.lane.refusing}"
        return f"Request for unknown model: '{self.model}' version {self.version} is not at ready state{why}"

    def large_decoder(self) -> RequestDecoder:
        """A decoder of its own for one large request: another thread uses it, and its memory goes with it.

        Raises
        ------
        EngineUnavailable
            No engine has been reached yet.
        """
        if self.decoder is None:
            raise EngineUnavailable(self.unready)
        return self.decoder.again()

    def greeted(self, hello: Hello) -> bool:
        """Learn from the engine's greeting; False when it serves other bytes than those approved."""
        if hello.digest != self.digest:
            return False
        self.signature = hello.signature
        inputs = hello.signature.inputs
        self.redacted = frozenset(place for place, spec in enumerate(inputs) if spec.name in hello.redact)
        self.redacted_columns = {
            place: hello.redact_columns[spec.name]
            for place, spec in enumerate(inputs)
            if spec.name in hello.redact_columns
        }
        self.sample = hello.sample
        # A full bundle would have to tell the lane, which may hold a batch back until then.
        self.takes_bundles = self._is_logged_alike() and not hello.max_delay_us
        self.takes_texts = any(spec.datatype == "BYTES" for spec in inputs)
        self.input_heads = tuple(tensor_head(spec) for spec in inputs)
        self._stencils.clear()
        self.labels = hello.labels
        self.omitted = hello.omitted
        self.decoder = RequestDecoder(
            self.model,
            hello.signature,
            batchable=hello.batchable,
            limits=self._limits,
            secret=secrets.randbits(SECRET_BITS),
        )
        self.output_specs = hello.signature.outputs
        self.answer_head = b'{"model_name":%b,"model_version":"%b",' % (encode_string(self.model), self.label)
        self.output_heads = tuple(tensor_head(spec) for spec in hello.signature.outputs)
        return True

    def record_head(self, arm: Arm, weight: float, reason: str) -> bytes:
        """The constant part of this version's records on one arm."""
        key = (arm, weight, reason)
        head = self._record_heads.get(key)
        if head is None:
            if len(self._record_heads) > 256:
                self._record_heads.clear()
            head = self._record_heads[key] = prediction_head(
                gateway=self._gateway,
                model=self.model,
                version=self.version,
                digest=self.digest,
                arm=arm,
                weight=weight,
                reason=reason,
            )
        return head

    def stencil(
        self, choice: Choice, weight: float, *, boot: bytes, rows: int, inputs: Array, outputs: Array
    ) -> Stencil | None:
        """What plain requests of so many rows have in common; None when they are not logged as they are.

        Parameters
        ----------
        inputs, outputs : arrays
            Of one request or of more.
        """
        key = (choice.arm, weight, choice.reason, rows, inputs.shape[1:], outputs.shape[1:])
        try:
            return self._stencils[key]
        except KeyError:
            if len(self._stencils) > MAX_STENCILS:
                self._stencils.clear()
            stencil = None
            if self._is_logged_whole(rows, inputs, outputs):
                stencil = make_stencil(
                    self.record_head(choice.arm, weight, choice.reason),
                    boot=boot,
                    rows=rows,
                    inputs=inputs,
                    outputs=outputs,
                    input_head=self.input_heads[0],
                    output_head=self.output_heads[0],
                    answer_head=self.answer_head,
                    version=self.label,
                    arm=choice.arm.encode(),
                )
            self._stencils[key] = stencil
            return stencil

    def requests(self, arm: str, status: int) -> Counter:
        """The counter of requests on one arm that ended with this status."""
        counter = self._requests.get((arm, status))
        if counter is None:
            counter = self._requests[arm, status] = self._cells.counter(
                "gateway_requests_total",
                {"model": self.model, "version": str(self.version), "arm": arm, "outcome": outcome_of(status)},
            )
        return counter

    def durations(self, arm: str) -> Histogram:
        """The histogram of durations on one arm."""
        histogram = self._durations.get(arm)
        if histogram is None:
            histogram = self._durations[arm] = self._cells.histogram(
                "gateway_request_duration_seconds", {"model": self.model, "version": str(self.version), "arm": arm}
            )
        return histogram

    def _is_logged_alike(self) -> bool:
        return not (self.redacted or self.redacted_columns or self.sample < 1)

    def _is_logged_whole(self, rows: int, inputs: Array, outputs: Array) -> bool:
        if self.signature is None or not self._is_logged_alike():
            return False
        if inputs.dtype.kind == "f" and inputs.dtype.itemsize == 2:
            return False
        return all(
            len(array) and array.nbytes // len(array) * rows <= self._max_logged_bytes for array in (inputs, outputs)
        )

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The V2 model metadata."""
        signature = self.signature or Signature((), ())
        metadata: dict[str, Any] = {
            "name": self.model,
            "versions": versions,
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in signature.inputs],
            "outputs": [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in signature.outputs],
        }
        if self.omitted:
            metadata["omitted_outputs"] = [{"name": name, "type": kind} for name, kind in self.omitted.items()]
        return metadata
