"""From reference rows to the reference profile: what the version answers for them, and how far off it is."""

from __future__ import annotations

import numpy as np

from gateway.drift.profile import LossProfile, Profile, ProfileError, build_loss, build_profile
from gateway.engine.errors import RunFailed
from gateway.repository.errors import ModelFileError, ReferenceFileError
from gateway.repository.manifest import Batching
from gateway.repository.policy import QualityPolicy
from gateway.repository.probes import take_rows
from gateway.repository.reference import Reference
from gateway.repository.runner import Array, Runner

__all__ = ("losses_of", "profile_reference")

RUN_ROWS = 256


def profile_reference(runner: Runner, reference: Reference, *, batching: Batching, quality: QualityPolicy) -> Profile:
    """Run the reference rows and profile inputs, outputs and, where there are labels, the loss.

    Parameters
    ----------
    batching : Batching
        Rows share a run only where it allows so.
    quality : QualityPolicy
        `output` is what the labels speak of, `miss_above` what counts as a miss.

    Raises
    ------
    ModelFileError
        The model fails on a reference row.
    ReferenceFileError
        Labels do not fit the output, or no profile can be made of the rows.
    """
    outputs = _run_all(runner, reference, batching.shared_rows(RUN_ROWS, exact=False))
    loss = None
    if reference.labels is not None:
        loss = _loss(outputs, reference.labels, quality)
    try:
        return build_profile(inputs=reference.inputs, outputs=outputs, columns=reference.columns, loss=loss)
    except ProfileError as error:
        raise ReferenceFileError(f"{reference.file.name}: {error}") from None


def losses_of(quality: QualityPolicy, outputs: Array, labels: Array) -> Array:
    """The loss of each row, as the monitor reckons it for a label that arrives later.

    Parameters
    ----------
    outputs : array, shape [rows] or [rows, ...]
    labels : array, shape [rows]

    >>> losses_of(QualityPolicy(loss="zero_one"), np.array([[0.1, 0.7, 0.2], [0.9, 0.1, 0.0]]), np.array([1.0, 1.0]))
    array([0., 1.])
    """
    flat = outputs.astype(np.float64).reshape(len(outputs), -1)
    losses: Array
    if quality.loss == "absolute_error":
        losses = np.abs(flat[:, 0] - labels)
        return losses
    predicted = flat.argmax(axis=1) if flat.shape[1] > 1 else np.round(flat[:, 0])
    losses = (predicted != labels).astype(np.float64)
    return losses


def _run_all(runner: Runner, reference: Reference, rows_in_a_run: int) -> dict[str, Array]:
    """Answers of all rows; an output that does not have one row for each row that went in is left out."""
    count = reference.file.rows
    answers: list[dict[str, Array]] = []
    for start in range(0, count, rows_in_a_run):
        rows = np.arange(start, min(start + rows_in_a_run, count))
        try:
            answers.append(runner.run(take_rows(reference.inputs, rows)))
        except RunFailed as error:
            raise ModelFileError(f"the model fails on reference rows {start + 1} to {rows[-1] + 1}: {error}") from None
    outputs = {}
    for name in answers[0]:
        arrays = [answer[name] for answer in answers]
        if (
            len({array.shape[1:] for array in arrays}) == 1
            and sum(len(array) for array in arrays if array.ndim) == count
        ):
            outputs[name] = np.concatenate(arrays)
    return outputs


def _loss(outputs: dict[str, Array], labels: Array, quality: QualityPolicy) -> LossProfile:
    answers = outputs.get(quality.output)
    if answers is None or answers.dtype.kind not in "biuf" or not answers[:1].size:
        raise ReferenceFileError(
            f"labels are for quality.output = {quality.output!r} of model.toml, which has no number for each row"
        )
    # One class or another is wrong or right: any limit between tells them apart, and the monitor takes this one.
    miss_above = 0.5 if quality.miss_above is None and quality.loss == "zero_one" else quality.miss_above
    try:
        losses = losses_of(quality, answers, labels)
        return build_loss(output=quality.output, loss=quality.loss, losses=losses, miss_above=miss_above)
    except ProfileError as error:
        raise ReferenceFileError(str(error)) from None
