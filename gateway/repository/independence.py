"""Are the rows of a model independent of one another? Only then may requests share a run.

A free first axis does not tell: a mean over the batch, NonZero or a top-k over all rows keep it free and yet let one
caller's row change another's answer. So the model is run: rows together, apart, and in other groups and orders.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from gateway.engine.errors import EngineGone, RunFailed, RunStopped
from gateway.protocol.binary import tensor_to_bytes
from gateway.protocol.datatypes import FREE, Signature
from gateway.repository.errors import ModelFileError
from gateway.repository.manifest import TRIED_ROWS, Batching
from gateway.repository.probes import made_up_rows, other_lengths, take_rows, widened_rows
from gateway.repository.runner import Array, Runner

__all__ = ("examine_batching",)

# Kernels may take another path for large batches. One that takes long gains nothing from being larger.
LARGE_BATCH_BYTES = 16 * 2**20
LARGE_BATCH_SECONDS = 0.25
SEED = 2012

# Differences that only reordered floating-point sums make, relative to the size of the answer, by bytes of a float.
# For float32 this is about 80 roundings; what a neighbour changes in earnest is far above.
_ROUNDING = {2: 1e-2, 4: 1e-5, 8: 1e-12}


class _NotBatchable(Exception):
    """Raised with the reason."""


def examine_batching(runner: Runner, reference: Mapping[str, Array] | None, *, max_rows: int = TRIED_ROWS) -> Batching:
    """Run rows together, apart and regrouped, and compare each row's answers bit for bit.

    Where axes beside the first are free, rows of some other lengths are run too, as far as the model takes them:
    kernels choose their way by the size of the whole.

    Parameters
    ----------
    runner : Runner
    reference : mapping of input name to array, shape [rows, ...], optional
        Without it rows are made up from the signature.
    max_rows : int
        Of the largest run that is wanted. Beyond `TRIED_ROWS` twice as many are tried again and again, where only the
        first axes are free, as long as rows are small, runs short, and the verdict stays as it is.

    Raises
    ------
    ModelFileError
        The model fails on every row by itself, though reference rows are among them.
    EngineError
        The runner itself failed.
    """
    try:
        _check_axes(runner.signature)
        rows, alone = _rows_that_run(runner, reference)
        seen = _compare(runner, rows, alone, _groups(rows))
        for others in other_lengths(rows, runner.signature.inputs):
            if seen.verdict == "dependent":
                break
            with contextlib.suppress(_NotBatchable):
                kept, answers, _ = _run_alone(runner, others)
                if answers:
                    seen = _worse(seen, _compare(runner, kept, _stack(answers), _groups(kept, briefly=True)))
        return _with_more(runner, rows, alone, seen, most=max_rows)
    except _NotBatchable as reason:
        return Batching("not_batchable", reason=str(reason))


def _check_axes(signature: Signature) -> None:
    if not signature.inputs:
        raise _NotBatchable("the model has no input")
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != FREE:
                raise _NotBatchable(f"{kind} {spec.name!r} of shape {list(spec.shape)} has no free first axis")


def _rows_that_run(runner: Runner, reference: Mapping[str, Array] | None) -> tuple[dict[str, Array], dict[str, Array]]:
    generator = np.random.default_rng(SEED)
    if reference is not None:
        rows, answers, why = _run_alone(runner, widened_rows(reference, generator))
        if not answers:
            raise ModelFileError(f"the model fails on the reference rows, each run by itself: {why}")
        return rows, _stack(answers)
    for guess in made_up_rows(runner.signature.inputs, generator):
        try:
            rows, answers, _ = _run_alone(runner, guess)
        except (EngineGone, RunStopped):
            # A made-up row may be one that no caller sends, such as a zero to divide by.
            break
        if answers:
            return rows, _stack(answers)
    raise _NotBatchable("no made-up row runs; give reference rows to find out")


def _run_alone(runner: Runner, rows: dict[str, Array]) -> tuple[dict[str, Array], list[dict[str, Array]], str]:
    """Those of the rows that run by themselves, with their answers, and why another fails; none when only one does."""
    kept: list[int] = []
    why = ""
    answers: list[dict[str, Array]] = []
    for row in range(_count(rows)):
        try:
            answers.append(runner.run(take_rows(rows, np.array([row]))))
        except RunFailed as error:
            why = str(error)
            continue
        kept.append(row)
    return take_rows(rows, np.array(kept, dtype=np.intp)), answers if len(answers) > 1 else [], why


def _stack(answers: list[dict[str, Array]]) -> dict[str, Array]:
    for name in answers[0]:
        shapes = {answer[name].shape for answer in answers}
        shape = next(iter(shapes))
        if len(shapes) > 1 or not shape or shape[0] != 1:
            seen = " or ".join(str(list(shape)) for shape in sorted(shapes))
            raise _NotBatchable(f"output {name!r} of one row has shape {seen}, expected one row of one shape")
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _with_more(
    runner: Runner, rows: dict[str, Array], alone: dict[str, Array], seen: Batching, *, most: int
) -> Batching:
    if any(FREE in spec.shape[1:] for spec in runner.signature.inputs):
        return seen  # more rows of one length would tell nothing of other lengths
    generator = np.random.default_rng(SEED)
    row_bytes, seconds = _row_bytes(rows) + _row_bytes(alone), 0.0
    while seen.verdict in ("equal", "within") and TRIED_ROWS <= seen.most_rows < most and seconds < LARGE_BATCH_SECONDS:
        size = min(2 * seen.most_rows, most)
        if row_bytes * size > LARGE_BATCH_BYTES:
            break
        started = time.monotonic()
        try:
            more = _compare(runner, rows, alone, [generator.integers(_count(rows), size=size)])
        except (_NotBatchable, RunStopped):
            break
        if more.verdict == "within" and seen.verdict == "equal":
            break
        seen = msgspec.structs.replace(_worse(seen, more), rows=seen.rows, most_rows=size)
        seconds = time.monotonic() - started
    return seen


def _count(rows: dict[str, Array]) -> int:
    return len(next(iter(rows.values())))


def _row_bytes(rows: dict[str, Array]) -> int:
    """Of the largest row of each tensor."""
    return sum(
        max(len(tensor_to_bytes(tensor[row : row + 1])) for row in range(_count(rows))) for tensor in rows.values()
    )


def _compare(runner: Runner, rows: dict[str, Array], alone: dict[str, Array], groups: Iterable[Array]) -> Batching:
    count = _count(rows)
    scales = {name: _scales(answers) for name, answers in alone.items()}
    largest, largest_relative, same, most = 0.0, 0.0, True, 0
    for group in groups:
        most = max(most, len(group))
        try:
            together = runner.run(take_rows(rows, group))
        except RunFailed:
            raise _NotBatchable(f"{len(group)} rows that run by themselves fail together") from None
        for name, answers in together.items():
            expected = alone[name][group]
            if answers.shape != expected.shape:
                seen = f"output {name!r} of {len(group)} rows has shape {list(answers.shape)}"
                raise _NotBatchable(f"{seen}, expected {list(expected.shape)}")
            if _bits_equal(expected, answers):
                continue
            same = False
            difference, relative = _difference(expected, answers, scales[name][group])
            largest, largest_relative = max(largest, difference), max(largest_relative, relative)
            if relative > _tolerance(answers):
                company = f"the {len(group) - 1} rows beside it" if len(group) > 1 else "every run"
                reason = f"output {name!r} of a row changes with {company}"
                return Batching("dependent", _finite(largest), _finite(largest_relative), count, reason)
    if same:
        reason = "a row has the same answer, bit for bit, in any company"
        return Batching("equal", rows=count, reason=reason, most_rows=most)
    tolerance = max(map(_tolerance, alone.values()))
    reason = f"a row's answer differs by rounding with its company, by no more than {tolerance:g} of its size"
    return Batching("within", largest, largest_relative, count, reason, tolerance, most)


def _worse(one: Batching, other: Batching) -> Batching:
    """The verdict that both allow; its differences are the largest of both."""
    worse = max(one, other, key=lambda seen: ("equal", "within", "dependent").index(seen.verdict))
    return msgspec.structs.replace(
        worse,
        max_difference=max(one.max_difference, other.max_difference),
        max_relative_difference=max(one.max_relative_difference, other.max_relative_difference),
        rows=one.rows + other.rows,
        most_rows=min(one.most_rows, other.most_rows),
    )


def _groups(rows: dict[str, Array], *, briefly: bool = False) -> Iterator[Array]:
    """Row numbers to be run together: all in three orders, by one, two and seven in two, and one large batch.

    Briefly: all in one order, by two and seven in one, and the large batch.
    """
    generator, count = np.random.default_rng(SEED), _count(rows)
    natural = np.arange(count)
    shuffled = generator.permutation(count)
    yield from (shuffled,) if briefly else (natural, natural[::-1], shuffled)
    for size in (2, 7) if briefly else (1, 2, 7):
        for order in (shuffled,) if briefly else (natural, shuffled):
            yield from (order[start : start + size] for start in range(0, count, size))
    if _row_bytes(rows) * TRIED_ROWS <= LARGE_BATCH_BYTES:
        yield generator.integers(count, size=TRIED_ROWS)


def _scales(answers: Array) -> Array:
    """The size of each row's answer, shape [rows]; no smaller than is usual, so that a zero is no infinite change."""
    if answers.dtype.kind not in "fiu":
        return np.ones(len(answers))
    flat = np.abs(answers.astype(np.float64).reshape(len(answers), -1))
    largest = np.where(np.isfinite(flat), flat, 0).max(axis=1, initial=0)
    scales: Array = np.maximum(np.maximum(largest, np.median(largest)), np.finfo(np.float32).tiny)
    return scales


def _difference(expected: Array, answers: Array, scales: Array) -> tuple[float, float]:
    """Largest absolute and relative difference of answers whose bits differ; what has no distance is infinitely far.

    Zeros of either sign are as far from each other as any missing values: not at all.
    """
    if expected.dtype.kind not in "fiu":
        return np.inf, np.inf
    left, right = (_flat(values) for values in (expected, answers))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        distances = np.where(same, 0, np.abs(left - right))
    distances[~np.isfinite(distances)] = np.inf
    if not distances.size:
        return 0.0, 0.0
    return float(distances.max()), float((distances / scales[:, np.newaxis]).max())


def _bits_equal(one: Array, other: Array) -> bool:
    if one.dtype == object:
        return np.array_equal(one, other)
    return one.tobytes() == other.tobytes()


def _tolerance(answers: Array) -> float:
    return _ROUNDING[answers.dtype.itemsize] if answers.dtype.kind == "f" else 0.0


def _flat(values: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    return values.astype(np.float64).reshape(len(values), -1)


def _finite(number: float) -> float:
    return min(number, sys.float_info.max)  # JSON has no infinity
