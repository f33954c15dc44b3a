"""Drift of many features at once: a tolerance-aware binned e-CUSUM.

Null hypothesis, for each feature: given the past, the probability of every bin b lies in ``[l_b, u_b]``, a confidence
band around the reference's share, stretched by the tolerance. Nothing is assumed about how rows depend on another.

A bet is a distribution q over the bins, fixed before the batch is seen. Its e-value for a row in bin b is
``q_b / r_b`` with ``r_b = clip(lambda * q_b, l_b, u_b)`` and lambda such that r sums to one. For every p of the null

    sum_b p_b q_b / r_b  =  1 + sum_b (p_b - r_b) (q_b / r_b - 1/lambda)  <=  1,

since both factors of a term have opposite signs where r is clipped and the second is zero elsewhere. So the product
over rows is a bet that cannot win on average while there is no drift, and the e-CUSUM ``M = max(M, 1) * e`` over
batches needs c batches on average to reach c. Averages over bets and features keep that bound.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.drift.bets import Floats, null_band, project, tilted
from gateway.drift.feature import FeatureProfile

__all__ = ("BinnedECusum", "threshold")

HALF_LIVES_ROWS = (128.0, 1024.0, 8192.0)
"""Memories of the bets that follow the traffic: sudden, ordinary and creeping drift."""
SHRINKAGE = 0.05
"""Share of the reference in each bet, so that no bin is ever thought impossible."""
MAX_COUNT = 2.0**53
"""Counts up to here are exact in a double."""
_MAX_LOG = 1e12
"""Far beyond any threshold; keeps sums finite whatever is counted."""
_STATE_SCHEMA = 1


def threshold(false_alarm_seconds: float, flush_seconds: float) -> float:
    """The logarithm of the evidence at which to alarm, for a promised mean time between false alarms.

    The promise is kept in batches: ``c = false_alarm_seconds / flush_seconds`` of them. It is kept in time when at
    most one batch is counted every `flush_seconds`.

    Raises
    ------
    ValueError
        A time is not positive and finite.

    >>> round(threshold(365 * 86_400, 0.25), 2), threshold(1.0, 60.0)
    (18.65, 0.0)
    """
    for name, seconds in (("false_alarm_seconds", false_alarm_seconds), ("flush_seconds", flush_seconds)):
        if not 0 < seconds < math.inf:
            raise ValueError(f"{name} is {seconds}; expected a positive number of seconds")
    return max(math.log(false_alarm_seconds) - math.log(flush_seconds), 0.0)


class BinnedECusum:
    """Watch the bin counts of many features and say how sure it is that any has drifted, and which.

    Each feature has nine bets: three follow the recent shares of its bins, six are fixed shifts and stretches of the
    reference. The evidence is a log of odds-like growth: 0 is none, `threshold` says how much is enough.

    Parameters
    ----------
    features : mapping of str to FeatureProfile
        At least one. Their names are those of the counts.
    tolerance : float
        Density ratios below ``1 + tolerance`` are no drift: 0.10 hides a shift of the mean by 0.15 standard
        deviations. Raising it makes the detector deaf to larger drifts, and safer where seasons come and go.
    half_lives : sequence of float
        Memories of the following bets, in rows.
    solve_every : int
        The following bets are fixed anew after every n-th batch. A stale bet is still a bet made before the batch,
        so any n is valid; a larger n is cheaper and, by n batches, later.

    >>> from gateway.drift.profile import bin_counts, build_feature
    >>> rng = np.random.default_rng(7)
    >>> feature = build_feature(rng.normal(size=20_000))
    >>> detector = BinnedECusum({"x": feature})
    >>> for batch in range(40):
    ...     detector.update({"x": bin_counts(feature, rng.normal(loc=0.5 if batch >= 30 else 0.0, size=64))})
    ...     if detector.evidence >= threshold(365 * 86_400, 1.0):
    ...         print(detector.batches, round(detector.evidence, 1), detector.drifted(17.3), detector.since)
    ...         break
    35 18.6 ['x'] {'x': 31}

    References
    ----------
    J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2023.
    S. Dandapanthula, A. Ramdas, "Multiple testing in multi-stream sequential change detection", 2025.
    """

    def __init__(
        self,
        features: Mapping[str, FeatureProfile],
        *,
        tolerance: float = 0.10,
        half_lives: Sequence[float] = HALF_LIVES_ROWS,
        solve_every: int = 1,
    ) -> None:
        if not features:
            raise ValueError("no features came; expected at least one")
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; expected a positive number")
        if not half_lives or not all(0 < rows < math.inf for rows in half_lives):
            raise ValueError(f"half_lives are {list(half_lives)}; expected positive numbers of rows")
        if solve_every < 1:
            raise ValueError(f"solve_every is {solve_every}; expected at least 1")
        self._names = tuple(features)
        self._index = {name: index for index, name in enumerate(self._names)}
        self._bins = tuple(len(feature.counts) for feature in features.values())
        self._half_lives = np.array(half_lives, dtype=np.float64)
        self._solve_every = solve_every
        self._reference, self._low, self._high = null_band(tuple(features.values()), tolerance)
        # Padding bets one on nothing: no reference, no band, and no count ever falls there.
        self._padding = np.where(self._high > 0, 0.0, 1.0)[:, None, :]
        self._fixed = self._log_e_values(tilted(self._reference, self._bins))
        self._fingerprint = zlib.crc32(b"".join(part.tobytes() for part in (self._low, self._high, self._half_lives)))
        self.reset()

    def reset(self) -> None:
        """Forget all evidence and all that the bets have followed, as after an alarm that was dealt with."""
        features, following = len(self._names), len(self._half_lives)
        self._batches = 0
        self._rows = 0
        self._shares = np.repeat(self._reference[:, None, :], following, axis=1)
        self._log_e = np.concatenate((np.zeros((features, following, max(self._bins))), self._fixed), axis=1)
        self._log_m = np.zeros(self._log_e.shape[:2])
        self._started = np.zeros(self._log_e.shape[:2], dtype=np.int64)

    def update(self, counts: Mapping[str, Any] | np.ndarray[Any, Any]) -> None:
        """Take the counts of one batch; a batch without rows changes nothing.

        Parameters
        ----------
        counts : mapping of str to ndarray of shape [bins], or ndarray of shape [features, widest bins]
            Rows in each bin. Features left out of the mapping had no rows.

        Raises
        ------
        ValueError
            A feature is not known, a shape is wrong, or a count is negative, not finite or beyond 2**53.
        """
        batch = self._batch(counts)
        rows = batch.sum(axis=1)
        if not rows.any():
            return
        self._batches += 1
        self._rows += int(rows.max())
        self._started[self._log_m <= 0.0] = self._batches
        gain = np.matmul(self._log_e, batch[:, :, None])[:, :, 0]
        self._log_m = np.clip(np.maximum(self._log_m, 0.0) + gain, -_MAX_LOG, _MAX_LOG)
        self._follow(batch, rows)

    def drifted(self, threshold_log: float) -> list[str]:
        """The features that drifted, by descending evidence: e-d-BH at the level of `threshold_log`.

        The k features of most evidence are named when each has ``F / k`` times the threshold, F being all features.
        It may be none though the average is above the threshold, when many features share the evidence unevenly.
        """
        evidence = self._feature_log_m()
        order = np.argsort(-evidence, kind="stable")
        needed = threshold_log + math.log(len(order)) - np.log(np.arange(1, len(order) + 1))
        passed = np.flatnonzero(evidence[order] >= needed)
        return [self._names[index] for index in order[: passed[-1] + 1]] if passed.size else []

    @property
    def evidence(self) -> float:
        """Logarithm of the mean over features and bets."""
        return float(_log_mean_exp(self._log_m.ravel()))

    @property
    def feature_evidence(self) -> dict[str, float]:
        """Logarithm of the mean over bets, per feature."""
        return dict(zip(self._names, self._feature_log_m().tolist(), strict=True))

    @property
    def since(self) -> dict[str, int]:
        """The batch (from 1) at which the evidence of a feature's leading bet last left zero; only where it has."""
        leading = self._log_m.argmax(axis=1)
        rows = np.arange(len(self._names))
        started, grown = self._started[rows, leading], self._log_m[rows, leading] > 0.0
        return {name: int(started[index]) for index, name in enumerate(self._names) if grown[index]}

    @property
    def batches(self) -> int:
        """Batches with at least one row."""
        return self._batches

    @property
    def rows(self) -> int:
        """Rows counted; of a batch in which features have different numbers of rows, the largest."""
        return self._rows

    @property
    def shape(self) -> tuple[int, int]:
        """Features and bins of the widest: the shape of counts as one array."""
        return self._low.shape[0], self._low.shape[1]

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on bit for bit: numbers, strings, lists and bytes."""
        return {
            "schema": _STATE_SCHEMA,
            "names": list(self._names),
            "reference": self._fingerprint,
            "batches": self._batches,
            "rows": self._rows,
            "log_m": self._log_m.tobytes(),
            "started": self._started.tobytes(),
            "shares": self._shares.tobytes(),
            "log_e": self._log_e[:, : len(self._half_lives)].tobytes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of a detector with the same reference, tolerance and half-lives.

        Raises
        ------
        ValueError
            The state is of another detector, or damaged. The detector is as it was.
        """
        expected = {"schema": _STATE_SCHEMA, "names": list(self._names), "reference": self._fingerprint}
        for key, value in expected.items():
            if state.get(key) != value:
                raise ValueError(f"the state is of another detector: {key} is {state.get(key)!r}, expected {value!r}")
        following = len(self._half_lives)
        log_m = _array(state, "log_m", self._log_m)
        started = _array(state, "started", self._started)
        shares = _array(state, "shares", self._shares)
        log_e = _array(state, "log_e", self._log_e[:, :following])
        self._batches, self._rows = _whole(state, "batches"), _whole(state, "rows")
        self._log_m, self._started, self._shares = log_m, started, shares
        self._log_e[:, :following] = log_e

    def __repr__(self) -> str:
        return (
            f"<BinnedECusum features={len(self._names)} batches={self._batches} rows={self._rows} "
            f"evidence={self.evidence:.2f}>"
        )

    def _batch(self, counts: Mapping[str, Any] | np.ndarray[Any, Any]) -> Floats:
        if isinstance(counts, np.ndarray):
            if counts.shape != self.shape:
                raise ValueError(f"counts of shape {list(counts.shape)} came; expected {list(self.shape)}")
            batch = counts.astype(np.float64)
            if batch[self._padding[:, 0, :] > 0].any():
                raise ValueError("a count is in a bin that its feature does not have")
        else:
            batch = np.zeros(self.shape)
            for name, row in counts.items():
                index = self._index.get(name)
                if index is None:
                    raise ValueError(f"counts came for {name!r}, which is no feature here")
                batch[index, : self._bins[index]] = _row(name, row, self._bins[index])
        # Written so that NaN fails too.
        if not (batch.min() >= 0.0 and batch.max() <= MAX_COUNT):
            raise ValueError("a count is negative, not finite or beyond 2**53; expected numbers of rows")
        return batch

    def _follow(self, batch: Floats, rows: Floats) -> None:
        """Let the following bets see the batch, now that it has been paid out."""
        kept = np.exp2(-rows[:, None] / self._half_lives)[:, :, None]
        batch_shares = batch / np.maximum(rows, 1.0)[:, None]
        self._shares = kept * self._shares + (1.0 - kept) * batch_shares[:, None, :]
        if self._batches % self._solve_every == 0:
            self._log_e[:, : len(self._half_lives)] = self._log_e_values(self._shares)

    def _log_e_values(self, shares: Floats) -> Floats:
        bets = (1.0 - SHRINKAGE) * shares + SHRINKAGE * self._reference[:, None, :] + self._padding
        null = project(bets, self._low[:, None, :], self._high[:, None, :])
        logs: Floats = np.log(bets / (null + self._padding))
        return logs

    def _feature_log_m(self) -> Floats:
        logs: Floats = _log_mean_exp(self._log_m)
        return logs


def _row(name: str, counts: Any, bins: int) -> Floats:
    try:
        row = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"counts for {name!r} are no numbers of rows: {counts!r:.80}") from None
    if row.shape != (bins,):
        raise ValueError(f"counts of shape {list(row.shape)} came for {name!r}; expected [{bins}]")
    return row


def _log_mean_exp(logs: Floats) -> Any:
    peak = logs.max(axis=-1)
    return peak + np.log(np.exp(logs - peak[..., None]).mean(axis=-1))


def _array(state: Mapping[str, Any], key: str, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raw = state.get(key)
    if not isinstance(raw, bytes) or len(raw) != like.nbytes:
        raise ValueError(f"the state is damaged: {key} has not the {like.nbytes} bytes that are expected")
    array = np.frombuffer(raw, dtype=like.dtype).reshape(like.shape).copy()
    if not np.isfinite(array).all():
        raise ValueError(f"the state is damaged: {key} has a value that is not finite")
    return array


def _whole(state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"the state is damaged: {key} is {value!r}, expected a whole number")
    return value
