"""The reference profile of a model version: what its inputs, outputs and losses looked like when it was made.

It is counts over bins, so profiles and live traffic compare bin by bin, and counts of several workers add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.drift.columns import column_names, columns_of
from gateway.drift.errors import ProfileError
from gateway.drift.feature import (
    FeatureProfile,
    bin_counts,
    bin_indices,
    build_feature,
    check_feature,
    mean_of,
    out_of_range,
    psi,
)

__all__ = (
    "FeatureProfile",
    "LossProfile",
    "Profile",
    "ProfileError",
    "bin_counts",
    "bin_indices",
    "build_feature",
    "build_loss",
    "build_profile",
    "columns_of",
    "decode_profile",
    "encode_profile",
    "out_of_range",
    "psi",
)

Values = np.ndarray[Any, Any]


class LossProfile(msgspec.Struct, frozen=True):
    """The loss of `output` on the reference: a row with a loss above `miss_above` is a miss."""

    output: str
    loss: str
    miss_above: float
    rows: int
    misses: int
    mean: float


class Profile(msgspec.Struct, frozen=True):
    """The whole reference; `columns` maps a tensor's name to the names of its scalar columns."""

    rows: int
    columns: dict[str, tuple[str, ...]]
    features: dict[str, FeatureProfile]
    outputs: dict[str, FeatureProfile]
    loss: LossProfile | None = None


def build_profile(
    *,
    inputs: Mapping[str, Values],
    outputs: Mapping[str, Values],
    columns: Mapping[str, Sequence[str]],
    loss: LossProfile | None = None,
) -> Profile:
    """Profile the reference rows of a version and what the version answered for them.

    Parameters
    ----------
    inputs, outputs : mapping of str to ndarray
        Tensors whose first axis is the row. See `columns_of` for how they become scalar columns, and for what
        is kept of wide tensors (row means, minima, maxima and shares of zeros).
    columns : mapping of str to sequence of str
        Names of the scalar columns of some tensors; the others get ``name`` or ``name[j]``.
    loss : LossProfile or None
        See `build_loss`.

    Raises
    ------
    ProfileError
        There are no rows, or names and columns do not agree.

    >>> profile = build_profile(inputs={"x": np.arange(8.0)}, outputs={"y": np.array(["a", "b"] * 4)}, columns={})
    >>> profile.rows, profile.features["x"].counts, profile.outputs["y"].categories
    (8, (1, 1, 1, 1, 1, 1, 1, 1, 0), ('a', 'b'))
    """
    tensors = {**inputs, **outputs}
    unknown = sorted(set(columns) - set(tensors))
    if unknown:
        raise ProfileError(f"columns are named for {unknown[0]!r}, which is no tensor here: {', '.join(tensors)}")
    rows = max((tensor.shape[0] if tensor.ndim else 1 for tensor in tensors.values()), default=0)
    if rows == 0:
        raise ProfileError("the reference has no rows; expected at least one")
    return Profile(
        rows=rows,
        columns={name: column_names(name, tensor, columns.get(name, ())) for name, tensor in tensors.items()},
        features={name: build_feature(values) for name, values in columns_of(inputs, columns).items()},
        outputs={name: build_feature(values) for name, values in columns_of(outputs, columns).items()},
        loss=loss,
    )


def build_loss(*, output: str, loss: str, losses: Values, miss_above: float | None = None) -> LossProfile:
    """Profile the losses of the reference, shape [n]; `miss_above` defaults to their 0.9 quantile.

    Raises
    ------
    ProfileError
        There is no finite loss.

    >>> build_loss(output="y", loss="absolute_error", losses=np.arange(10.0)).misses
    1
    """
    finite = np.asarray(losses, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        raise ProfileError(f"the reference has no finite loss for {output!r}; expected at least one")
    limit = float(np.quantile(finite, 0.9, method="inverted_cdf")) if miss_above is None else float(miss_above)
    return LossProfile(
        output=output,
        loss=loss,
        miss_above=limit,
        rows=int(finite.size),
        misses=int((finite > limit).sum()),
        mean=mean_of(finite),
    )


def encode_profile(profile: Profile) -> bytes:
    """`profile.json`: readable, and the same bytes for the same profile."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def decode_profile(raw: bytes) -> Profile:
    """Read `profile.json` and check that it holds together.

    Raises
    ------
    ProfileError
        Not JSON of a profile, or sizes disagree, a count is negative, edges do not rise, a number is not finite.
    """
    try:
        profile = msgspec.json.decode(raw, type=Profile)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"not a profile: {error}") from None
    if profile.rows < 1:
        raise ProfileError(f"rows is {profile.rows}; expected at least 1")
    for name, feature in (*profile.features.items(), *profile.outputs.items()):
        check_feature(name, feature)
    named = {name for names in profile.columns.values() for name in names}
    for name in (*profile.features, *profile.outputs):
        if name not in named:
            raise ProfileError(f"feature {name!r} is a column of no tensor in columns")
    if profile.loss is not None:
        _check_loss(profile.loss)
    return profile


def _check_loss(loss: LossProfile) -> None:
    if not 0 <= loss.misses <= loss.rows or loss.rows < 1:
        raise ProfileError(f"loss has {loss.misses} misses of {loss.rows} rows; expected 0 to rows, and rows above 0")
    if not math.isfinite(loss.miss_above) or not math.isfinite(loss.mean):
        raise ProfileError("loss has a miss_above or mean that is not finite")
