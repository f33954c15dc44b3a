"""Reading the numbers of requests that were recognised on arrival, a batch of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from gateway.engine.job import each_apart
from gateway.protocol.decode import Usual
from gateway.protocol.errors import CallerError
from gateway.serving.bundle import Bundle
from gateway.serving.inference import Inference
from gateway.serving.version import ServedVersion

__all__ = ("read_alone", "read_batch")

Array = np.ndarray[Any, np.dtype[Any]]


def read_batch(jobs: list[Inference | Bundle]) -> tuple[list[Any], list[Array] | None, list[Inference]]:
    """Read what requests for one version still have as text.

    Returns
    -------
    list of Inference or Bundle
        Those that can be run. A bundle is one of them only where it is all there is and can be read as one.
    list of arrays, or None
        The inputs of all of them, where all were read now; each request keeps its text until it is answered.
    list of Inference
        Those that cannot be read, and why in `failure`.
    """
    first = jobs[0] if len(jobs) == 1 else None
    bundle = first if isinstance(first, Bundle) and first.is_usual else None
    if bundle is not None:
        numbers = _numbers_of(bundle.texts, bundle.usual, bundle.served)
        if numbers is not None:
            return jobs, [numbers], []
    batch: list[Inference] = [each for each in each_apart(jobs) if not each.abandoned]
    whole, refused = _read_each(batch) if bundle is None else (None, _read_apart(batch, bundle.usual))
    return [each for each in batch if each.failure is None] if refused else batch, whole, refused


def _read_each(batch: Sequence[Inference]) -> tuple[list[Array] | None, list[Inference]]:
    refused: list[Inference] = []
    for usual, alike in groupby(batch, key=attrgetter("usual")):
        if usual is None:
            continue
        unread = list(alike)
        numbers = _numbers_of([inference.text for inference in unread], usual, unread[0].served)
        if numbers is None:
            refused += _read_apart(unread, usual)
        elif len(unread) == len(batch):
            return [numbers], []
        else:
            _share(numbers, unread)
    return None, refused


def read_alone(inference: Inference) -> bool:
    """Take the part of one request of what was read for its run, or read it; `failure` tells why it cannot be read."""
    usual, run, decoder = inference.usual, inference.run, inference.served.decoder
    if usual is None or decoder is None:
        return False
    if run is not None and run.inputs is not None:
        _give(inference, [array[inference.row : inference.row + inference.rows] for array in run.inputs])
        return True
    try:
        request = decoder.decode(b"%b%b%b" % (usual.before, inference.text, usual.after))
        if request.rows != inference.rows:
            raise CallerError(f"the request has {request.rows} rows where its like had {inference.rows}")
    except CallerError as error:
        # Whatever else became of it: it could never have been answered. The frames of the error would hold the request.
        inference.failure = error.with_traceback(None)
        inference.usual = None
        inference.rows = 1
        return False
    _give(inference, request.inputs)
    return True


def _read_apart(batch: Sequence[Inference], usual: Usual) -> list[Inference]:
    """Read what cannot be read together: those with too few or too many numbers, or all of them, each alone."""
    odd: list[Inference] = []
    others: list[Inference] = []
    for inference in batch:
        (others if inference.text.count(b",") == usual.size - 1 else odd).append(inference)
    texts = [inference.text for inference in others]
    numbers = _numbers_of(texts, usual, others[0].served) if odd and others else None
    if numbers is None:
        odd = list(batch)
    else:
        _share(numbers, others)
    return [inference for inference in odd if not read_alone(inference)]


def _numbers_of(texts: list[bytes], usual: Usual, served: ServedVersion) -> Array | None:
    decoder = served.decoder
    numbers = None if decoder is None else decoder.numbers_of(texts, usual)
    return None if numbers is None else numbers.reshape(-1, *usual.shape[1:])


def _share(numbers: Array, batch: Sequence[Inference]) -> None:
    start = 0
    for inference in batch:
        stop = start + inference.rows
        _give(inference, [numbers[start:stop]])
        start = stop


def _give(inference: Inference, inputs: list[Array]) -> None:
    inference.inputs = inputs
    inference.fragments = [None] * len(inputs)
    inference.usual = None
