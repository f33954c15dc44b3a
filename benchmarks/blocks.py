"""Blocks of predictions as fronts write them, of random features."""

from __future__ import annotations

import time

import numpy as np

from gateway.events.blocks import PredictionBlock, encode_block
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.serving.records import record_time

__all__ = ("random_block",)

_FEATURES, _OUTPUT = (tensor_head(TensorSpec(name, "FP32", (-1, -1))) for name in ("features", "variable"))


def random_block(
    draw: np.random.Generator,
    head: bytes,
    *,
    count: int,
    features: int,
    rows: int = 1,
    keys: int = 0,
    seconds_ahead: float = 0.0,
) -> bytes:
    """The payload of a block.

    Parameters
    ----------
    draw : Generator
    head : bytes
        From `prediction_head`.
    count : int
        Predictions in the block.
    features, rows : int
        Columns and rows of each.
    keys : int
        So many callers with a routing key; 0: none has one.
    seconds_ahead : float
        Added to the time of the answers.
    """
    inputs = draw.normal(size=(count, rows, features)).astype("f4").round(4)
    block = PredictionBlock(
        head=head,
        input_head=_FEATURES,
        output_head=_OUTPUT,
        input_dtype="<f4",
        output_dtype="<f4",
        input_axes=(features,),
        output_axes=(1,),
        time=record_time(time.time() + seconds_ahead),
        inference_us=50,
        rows=b"" if rows == 1 else np.full(count, rows, "<u4").tobytes(),
        queue_us=np.full(count, 100, "<u4").tobytes(),
        total_us=np.full(count, 400, "<u4").tobytes(),
        keys=b"".join(b"%016x" % each for each in draw.integers(0, keys, count)) if keys else b"",
        inputs=inputs.tobytes(),
        outputs=(inputs[:, :, :1] * 2).tobytes(),
    )
    return encode_block(block, count)
