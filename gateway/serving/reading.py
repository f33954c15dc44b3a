"""Reading the numbers of requests that were recognised on arrival, a batch of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

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
        Those that can be run; a bundle only if it could be read as one.
    list of arrays, or None
        The inputs of all of them, where all were read now; each request keeps its text until it is answered.
    list of Inference
        Those that cannot be read, and why in `failure`.
    """
    bundles: list[Bundle] = []
    read: list[Inference] = []
    unread: list[Inference] = []
    refused: list[Inference] = []
    for job in jobs:
        if not isinstance(job, Bundle) or not job.is_usual:
            unread += [each for each in job.apart() if not each.abandoned]
        elif (numbers := _numbers_of(job.texts, job.usual, job.served)) is not None:
            job.inputs = [numbers]
            bundles.append(job)
        else:
            refused += _read_apart(job.apart(), job.usual)
            read += [each for each in job.apart() if each.failure is None]
    if len(bundles) == len(jobs) == 1:
        return jobs, list(bundles[0].inputs), []
    whole, others = _read_each(unread)
    refused += others
    if whole is not None and (bundles or read):
        _share(whole[0], unread)
        whole = None
    return [*bundles, *read, *[each for each in unread if each.failure is None]], whole, refused


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
        inference.take_inputs([array[inference.row : inference.row + inference.rows] for array in run.inputs])
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
    inference.take_inputs(request.inputs)
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
        inference.take_inputs([numbers[start:stop]])
        start = stop
