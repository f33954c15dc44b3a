"""Tensors of every datatype, for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.protocol.datatypes import NUMPY_OF

Array = np.ndarray[Any, np.dtype[Any]]

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def tensors(datatype: str, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> st.SearchStrategy[Array]:
    """Arrays that carry `datatype`, of any bits it has."""
    dtype = NUMPY_OF[datatype]
    if dtype.kind == "O":
        return hnp.arrays(object, shapes, elements=TEXTS)
    if dtype.kind == "V":
        return hnp.arrays("<u2", shapes).map(lambda bits: bits.view("V2"))
    return hnp.arrays(dtype, shapes)


def same(one: Array, other: Array) -> bool:
    """Whether two tensors are equal in shape, datatype and every bit."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.tolist() == other.tolist() if one.dtype.kind == "O" else one.tobytes() == other.tobytes()
