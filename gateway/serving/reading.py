"""Reading the numbers of requests that were recognised on arrival, a batch of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.protocol.errors import CallerError
from gateway.serving.inference import Inference

__all__ = ("read_alone", "read_batch")

Array = np.ndarray[Any, np.dtype[Any]]


def read_batch(batch: Sequence[Inference]) -> tuple[list[list[Array]] | None, list[Inference]]:
    """Read what requests for one version still have as text.

    Returns
    -------
    list over inputs of lists of arrays, or None
        The inputs of the whole batch, where all of it was read now.
    list of Inference
        Those that cannot be read, and why in `failure`.
    """
    unread = [inference for inference in batch if inference.usual is not None]
    if not unread:
        return None, []
    usual, decoder = unread[0].usual, unread[0].served.decoder
    if usual is None or decoder is None:
        return None, []
    numbers = decoder.numbers_of([inference.fragments[0] or b"" for inference in unread], usual.reading)
    if numbers is None:
        return None, [inference for inference in unread if not read_alone(inference)]
    array = numbers.reshape(-1, *usual.shape[1:])
    start = 0
    for inference in unread:
        stop = start + inference.rows
        inference.inputs = [array[start:stop]]
        inference.usual = None
        start = stop
    return [[array]] if len(unread) == len(batch) else None, []


def read_alone(inference: Inference) -> bool:
    """Read one request that is still text, or tell in its `failure`, if it has none yet, why it cannot be read."""
    usual, text, decoder = inference.usual, inference.fragments[0], inference.served.decoder
    inference.usual = None
    if usual is None or text is None or decoder is None:
        return False
    try:
        inference.inputs = decoder.decode(b"%b%b%b" % (usual.before, text, usual.after)).inputs
    except CallerError as error:
        inference.failure = inference.failure or error
        return False
    return True
