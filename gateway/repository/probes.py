"""Rows to try a model with: reference rows, and rows made to differ widely from them and from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from gateway.protocol.datatypes import FREE, NUMPY_OF, TensorSpec, bfloat16_of
from gateway.repository.runner import Array

__all__ = ("PROBE_ROWS", "made_up_rows", "take_rows", "widened_rows")

PROBE_ROWS = 32

_FREE_LENGTHS = (1, 8, 32, 64, 224)
_WORDS = ("a", "b", "hello", "")


def take_rows(tensors: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """The given rows, in the given order, of every tensor."""
    return {name: np.ascontiguousarray(tensor[rows]) for name, tensor in tensors.items()}


def widened_rows(reference: Mapping[str, Array], generator: np.random.Generator) -> dict[str, Array]:
    """Half the rows as they are, spread over the reference; half with values exchanged between rows and stretched.

    Reference rows may be so alike that a mean over them hardly differs from each. So floats are stretched, some by up
    to three times their spread, some by up to three times their size, to both sides; then any dependence on a
    neighbour is large. Whole numbers and strings are only exchanged, since they may be indices or categories that
    must exist.
    """
    count = len(next(iter(reference.values())))
    spread = np.unique(np.linspace(0, count - 1, PROBE_ROWS // 2).astype(np.intp))
    made = {name: _stretched(tensor, generator) for name, tensor in reference.items()}
    return {name: np.concatenate([tensor[spread], made[name]]) for name, tensor in reference.items()}


def made_up_rows(inputs: tuple[TensorSpec, ...], generator: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Rows from the signature alone, one set for each guess at the length of free axes behind the first."""
    free = any(FREE in spec.shape[1:] for spec in inputs)
    for length, wide in product(_FREE_LENGTHS if free else (1,), (True, False)):
        yield {spec.name: _made_up(spec, length, generator, wide=wide) for spec in inputs}


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
