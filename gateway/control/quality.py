"""The loss of a labelled row, and what has been counted of a version's losses."""

from __future__ import annotations

import msgspec

from gateway.drift.profile import Profile
from gateway.repository.policy import QualityPolicy

__all__ = ("NO_MISS", "NO_MISS_NEEDS", "QualityCounts", "loss_of", "miss_above", "reference_miss")

NO_MISS = "quality is required, but nothing says what a miss is, so no label can show it"
NO_MISS_NEEDS = '[quality] miss_above in model.toml, or a rollout with [rollout] require = ["errors"]'


class QualityCounts(msgspec.Struct):
    """Labelled rows of one version, how many missed, and the sum of their losses."""

    rows: int = 0
    misses: int = 0
    loss_sum: float = 0.0

    def add(self, loss: float, missed: bool) -> None:
        self.rows += 1
        self.misses += missed
        self.loss_sum += loss

    @property
    def mean_loss(self) -> float | None:
        return self.loss_sum / self.rows if self.rows else None


def loss_of(policy: QualityPolicy, outputs: tuple[float, ...], label: float) -> float:
    """The loss of one row.

    `absolute_error` is the distance of the first value to the label. `zero_one` is 0 where the predicted class is the
    label: the position of the largest of several values, or one value rounded to a whole number.

    Parameters
    ----------
    outputs : tuple of float
        The row's values of the quality output, finite, at least one.

    >>> loss_of(QualityPolicy(), (3.0,), 5.0), loss_of(QualityPolicy(loss="zero_one"), (0.1, 0.7, 0.2), 1.0)
    (2.0, 0.0)
    """
    if policy.loss == "absolute_error":
        return abs(outputs[0] - label)
    predicted = outputs.index(max(outputs)) if len(outputs) > 1 else round(outputs[0])
    return float(predicted != label)


def miss_above(policy: QualityPolicy, reference: float | None) -> float | None:
    """The loss above which a row is a miss: as the policy says, else as the reference had it.

    None for an absolute error that neither knows; then no row is a miss and nothing is judged by labels.
    """
    if policy.miss_above is not None:
        return policy.miss_above
    if policy.loss == "zero_one":
        return 0.5
    return reference


def reference_miss(stable: Profile | None, canary: Profile | None) -> float | None:
    """The loss above which a row is a miss in a trial, as the stable version's reference had it, else the canary's."""
    for profile in (stable, canary):
        if profile is not None and profile.loss is not None:
            return profile.loss.miss_above
    return None
