"""Predictions of one batch: the block they make, and the records they would be one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gateway.events.addresses import format_id
from gateway.events.blocks import PredictionBlock, encode_block
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.serving.records import Kept, prediction_head, prediction_record, record_time, tensor_records

BOOT = "0196f0c5d2a100"
TIME = record_time(1332633600.25)


class Batch:
    """Predictions as arrays, one of each a prediction."""

    def __init__(
        self,
        inputs: list[np.ndarray[Any, Any]],
        outputs: list[np.ndarray[Any, Any]],
        *,
        names: tuple[str, str, str] = ("bike-demand", "features", "count"),
        datatypes: tuple[str, str] = ("FP32", "FP32"),
        timings: list[tuple[int, int]] | None = None,
        keys: list[str | None] | None = None,
        inference_us: int = 23,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.timings = timings or [(number, 7 * number) for number in range(len(inputs))]
        self.keys = keys or [None] * len(inputs)
        self.inference_us = inference_us
        self.head = prediction_head(
            gateway="g%1", model=names[0], version=2, digest="sha256:00", arm="canary", weight=12.5, reason="weight"
        )
        self.heads = [
            tensor_head(TensorSpec(name, datatype, (-1,))) for name, datatype in zip(names[1:], datatypes, strict=True)
        ]

    def block(self, **changes: Any) -> PredictionBlock:
        rows = [len(array) for array in self.inputs]
        columns = np.array(self.timings, "<u4")
        block = PredictionBlock(
            head=self.head,
            input_head=self.heads[0],
            output_head=self.heads[1],
            input_dtype=self.inputs[0].dtype.str,
            output_dtype=self.outputs[0].dtype.str,
            input_axes=self.inputs[0].shape[1:],
            output_axes=self.outputs[0].shape[1:],
            time=TIME,
            inference_us=self.inference_us,
            rows=b"" if set(rows) == {1} else np.array(rows, "<u4").tobytes(),
            queue_us=columns[:, 0].tobytes(),
            total_us=columns[:, 1].tobytes(),
            keys="".join(key or " " * 16 for key in self.keys).encode() if any(self.keys) else b"",
            inputs=b"".join(array.tobytes() for array in self.inputs),
            outputs=b"".join(array.tobytes() for array in self.outputs),
        )
        return msgspec.structs.replace(block, **changes)

    def payload(self, **changes: Any) -> bytes:
        return encode_block(self.block(**changes), len(self.inputs))

    def records(self, sequence: int, *, boot: str = BOOT) -> list[bytes]:
        return [
            prediction_record(
                self.head,
                event_id=format_id(boot, sequence + place).encode(),
                time=TIME,
                sequence=sequence + place,
                status=200,
                rows=len(given),
                timings=(queue, self.inference_us, total),
                inputs=tensor_records(self.heads[:1], [given], [None], kept=Kept(1 << 30)),
                outputs=tensor_records(self.heads[1:], [answered], [None], kept=Kept(1 << 30)),
                parameters={},
                request_id=None,
                key=key,
                error=None,
            )
            for place, (given, answered, (queue, total), key) in enumerate(
                zip(self.inputs, self.outputs, self.timings, self.keys, strict=True)
            )
        ]


def singles(count: int = 3, *, first: int = 0, width: int = 4, model: str = "bike-demand") -> Batch:
    """Predictions of one row, which can be told by `total_us`: it counts from `first`."""
    features = np.arange(first, first + count, dtype="f4")[:, None, None] + np.linspace(0, 0.9, width, dtype="f4")
    return Batch(
        list(features),
        list(features[:, :, :1] / 3),
        names=(model, "features", "count"),
        timings=[(place, first + place) for place in range(count)],
    )
