"""Reading the numbers of requests that were recognised on arrival, a batch of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.protocol.errors import CallerError
from gateway.serving.inference import Inference

__all__ = ("read_alone", "read_batch")

Array = np.ndarray[Any, np.dtype[Any]]


def read_batch(batch: Sequence[Inference]) -> tuple[list[Array] | None, list[Inference]]:
    """Read what requests for one version still have as text.

    Returns
    -------
    list of arrays, or None
        The inputs of the whole batch, where all of it was read now; each request keeps its text until it is answered.
    list of Inference
        Those that cannot be read, and why in `failure`.
    """
    unread = [inference for inference in batch if inference.usual is not None]
    if not unread:
        return None, []
    usual, decoder = unread[0].usual, unread[0].served.decoder
    if usual is None or decoder is None:
        return None, []
    numbers = decoder.numbers_of([inference.text for inference in unread], usual.reading)
    if numbers is None:
        return None, [inference for inference in unread if not read_alone(inference)]
    array = numbers.reshape(-1, *usual.shape[1:])
    if len(unread) == len(batch):
        return [array], []
    start = 0
    for inference in unread:
        stop = start + inference.rows
        _give(inference, [array[start:stop]])
        start = stop
    return None, []


def read_alone(inference: Inference) -> bool:
    """Take the part of one request of what was read for its run, or read it; `failure` tells why it cannot be read."""
    usual, run, decoder = inference.usual, inference.run, inference.served.decoder
    if usual is None or decoder is None:
        return False
    if run is not None and run.inputs is not None:
        _give(inference, [array[inference.row : inference.row + inference.rows] for array in run.inputs])
        return True
    try:
        _give(inference, decoder.decode(b"%b%b%b" % (usual.before, inference.text, usual.after)).inputs)
    except CallerError as error:
        inference.failure = inference.failure or error
        inference.usual = None
        return False
    return True


def _give(inference: Inference, inputs: list[Array]) -> None:
    inference.inputs = inputs
    inference.fragments = [None] * len(inputs)
    inference.usual = None
