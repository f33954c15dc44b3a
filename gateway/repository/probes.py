"""Rows to try a model with: reference rows, and rows made to differ widely from them and from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from gateway.protocol.datatypes import FREE, NUMPY_OF, TensorSpec, bfloat16_of
from gateway.repository.runner import Array

__all__ = ("PROBE_ROWS", "made_up_rows", "other_lengths", "take_rows", "widened_rows")

PROBE_ROWS = 32

_FREE_LENGTHS = (1, 8, 32, 64, 224)
_OTHER_LENGTHS = (1, 3, 16, 50)
_MAX_OTHER_ELEMENTS = 2**20  # of a tensor of other lengths: images and the like are not made larger than this
_WORDS = ("a", "b", "hello", "")


def take_rows(tensors: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """The given rows, in the given order, of every tensor."""
    return {name: np.ascontiguousarray(tensor[rows]) for name, tensor in tensors.items()}


def widened_rows(reference: Mapping[str, Array], generator: np.random.Generator) -> dict[str, Array]:
    """Half the rows as they are, spread over the reference; half with values exchanged between rows and stretched.

    Reference rows may be so alike that a mean over them hardly differs from each. So floats are stretched, some by up
    to three times their spread, some by up to three times their size, to both sides; then any dependence on a
    neighbour is large. Whole numbers and strings are only exchanged, since they may be indices or categories that
    must exist. Some zeros are put where zeros can be: what becomes of them has a sign, which kernels may choose by the
    place of a row.
    """
    count = len(next(iter(reference.values())))
    spread = np.unique(np.linspace(0, count - 1, PROBE_ROWS // 2).astype(np.intp))
    made = {name: _stretched(tensor, generator) for name, tensor in reference.items()}
    _put_zeros(made, reference)
    return {name: np.concatenate([tensor[spread], made[name]]) for name, tensor in reference.items()}


def made_up_rows(inputs: tuple[TensorSpec, ...], generator: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Rows from the signature alone, one set for each guess at the length of free axes behind the first."""
    free = any(FREE in spec.shape[1:] for spec in inputs)
    for length, wide in product(_FREE_LENGTHS if free else (1,), (True, False)):
        made = {spec.name: _made_up(spec, length, generator, wide=wide) for spec in inputs}
        _put_zeros(made, None)
        yield made


def _put_zeros(made: Mapping[str, Array], reference: Mapping[str, Array] | None) -> None:
    # Into other rows of each input; of a reference only into columns that have a zero, or floats on both sides of it.
    for place, (name, tensor) in enumerate(made.items()):
        if tensor.dtype.kind in "fiu":
            known = tensor[:1] * 0 if reference is None else reference[name]
            fits = (known <= 0).any(axis=0) & (known >= 0).any(axis=0)
            if tensor.dtype.kind != "f":
                fits = (known == 0).any(axis=0)
            rows = slice(place, None, max(8, len(made)))
            tensor[rows] = np.where(fits, 0, tensor[rows])


def other_lengths(rows: Mapping[str, Array], inputs: tuple[TensorSpec, ...]) -> Iterator[dict[str, Array]]:
    """The rows again with their free axes behind the first cut, or filled up by repeating them.

    Axes that have the same length in the rows keep having the same, since they may be one axis of the model.
    """
    known = sorted(
        {rows[s.name].shape[place] for s in inputs for place in range(1, len(s.shape)) if s.shape[place] < 0}
    )
    for length in _OTHER_LENGTHS if known else ():
        wanted = {old: length + step for step, old in enumerate(known)}
        made = {spec.name: _with_lengths(rows[spec.name], spec, wanted) for spec in inputs}
        if all(tensor.size <= _MAX_OTHER_ELEMENTS for tensor in made.values()):
            yield made


def _with_lengths(tensor: Array, spec: TensorSpec, wanted: Mapping[int, int]) -> Array:
    for place, axis in enumerate(spec.shape):
        length = tensor.shape[place]
        if place and axis == FREE and length:
            tensor = np.take(tensor, np.arange(wanted[length]) % length, axis=place)
    return tensor


def _stretched(tensor: Array, generator: np.random.Generator) -> Array:
    count = PROBE_ROWS - PROBE_ROWS // 2
    flat = tensor.reshape(len(tensor), -1)
    drawn = flat[generator.integers(len(flat), size=(count, flat.shape[1])), np.arange(flat.shape[1])]
    if tensor.dtype.kind == "f" and flat.size:
        low, high = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
        size = np.maximum(np.abs(low), np.abs(high))
        scale = np.repeat([high - low, np.where(size > 0, size, 1)], (count // 2, count - count // 2), axis=0)
        limit = float(np.finfo(tensor.dtype).max)
        with np.errstate(over="ignore"):
            drawn = np.clip(drawn + generator.uniform(-3, 3, size=drawn.shape) * scale, -limit, limit)
    return drawn.astype(tensor.dtype).reshape(count, *tensor.shape[1:])


def _made_up(spec: TensorSpec, length: int, generator: np.random.Generator, *, wide: bool) -> Array:
    shape = (PROBE_ROWS, *(length if axis == FREE else axis for axis in spec.shape[1:]))
    dtype = NUMPY_OF[spec.datatype]
    if spec.datatype == "BYTES":
        return generator.choice(np.array(_WORDS, dtype=object), size=shape)
    if spec.datatype == "BOOL":
        return generator.integers(2, size=shape).astype(dtype)
    if dtype.kind in "iu":
        # The narrow guess is for models that take a whole number as an index into something small.
        return generator.integers(100 if wide else 2, size=shape).astype(dtype)
    drawn = generator.normal(size=shape) * (10 if wide else 1)
    return bfloat16_of(drawn) if spec.datatype == "BF16" else drawn.astype(dtype)
