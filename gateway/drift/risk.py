"""Labelled quality: an e-CUSUM on misses, against the risk that the reference had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gateway.drift.bounds import upper_bounds

__all__ = ("RiskECusum",)

ODDS = (1.2, 1.5, 2.0, 3.0, 5.0)
"""Each bet says that the odds of a miss are this many times those at the bound."""
REFERENCE_ERROR = 1e-3
"""Probability, over the draw of the reference, that its risk is above the bound that is used."""
_MAX_LOG = 1e12
_STATE_SCHEMA = 1


class RiskECusum:
    """Watch labelled rows, each a miss or not, and say how sure it is that misses are more frequent than promised.

    Null hypothesis: given the past, the probability of a miss is at most `bound`, the upper confidence bound of the
    reference's risk plus the tolerance. A bet on the odds ratio w expects misses at
    ``q = w * bound / (1 - bound + w * bound)``; its e-value is ``q / bound`` for a miss and ``(1 - q) / (1 - bound)``
    for a hit, at most 1 on average for every risk up to the bound. It does not matter in which order labels arrive,
    as long as being late has nothing to do with being a miss.

    Parameters
    ----------
    reference_rows, reference_misses : int
        Labelled rows of the reference, and how many of them were misses.
    tolerance : float
        Increase of the risk that is no harm, as a probability. Where `bound` reaches 1 there is nothing left to
        watch and the evidence stays 0.

    >>> rng = np.random.default_rng(3)
    >>> detector = RiskECusum(reference_rows=5_000, reference_misses=500, tolerance=0.01)
    >>> for row in range(4_000):
    ...     detector.update(bool(rng.random() < (0.1 if row < 3_000 else 0.2)))
    ...     if detector.evidence >= math.log(1e6):
    ...         print(detector.rows, round(detector.evidence, 1), detector.since)
    ...         break
    3583 14.4 3165

    References
    ----------
    A. Podkopaev, A. Ramdas, "Tracking the risk of a deployed model and detecting harmful distribution shifts", 2022.
    J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2023.
    """

    def __init__(self, *, reference_rows: int, reference_misses: int, tolerance: float) -> None:
        if reference_rows < 1 or not 0 <= reference_misses <= reference_rows:
            raise ValueError(
                f"the reference has {reference_misses} misses in {reference_rows} rows; "
                "expected at least one row and no more misses than rows"
            )
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; expected a number of at least 0")
        risk = upper_bounds(np.array([reference_misses]), np.array([reference_rows]), REFERENCE_ERROR)
        self.bound = min(float(risk[0]) + tolerance, 1.0)
        self._log_miss, self._log_hit = _log_e_values(self.bound)
        self.reset()

    def reset(self) -> None:
        """Forget all evidence, as after an alarm that was dealt with."""
        self.rows = 0
        self.misses = 0
        self._log_m = [0.0] * len(ODDS)
        self._started = [0] * len(ODDS)

    def update(self, miss: bool) -> None:
        """Take one labelled row. The promise is then kept in rows."""
        self.update_batch(1, int(miss))

    def update_batch(self, rows: int, misses: int) -> None:
        """Take the labels of one flush. The promise is then kept in flushes, as that of `BinnedECusum`.

        Raises
        ------
        ValueError
            More misses than rows, or a negative number.
        """
        if not 0 <= misses <= rows:
            raise ValueError(f"{misses} misses in {rows} rows came; expected 0 to rows")
        if rows == 0:
            return
        for bet, log_m in enumerate(self._log_m):
            if log_m <= 0.0:
                self._started[bet] = self.rows + 1
            gain = misses * self._log_miss[bet] + (rows - misses) * self._log_hit[bet]
            self._log_m[bet] = min(max(max(log_m, 0.0) + gain, -_MAX_LOG), _MAX_LOG)
        self.rows += rows
        self.misses += misses

    @property
    def evidence(self) -> float:
        """Logarithm of the mean over bets; alarm at `threshold`."""
        peak = max(self._log_m)
        return peak + math.log(sum(math.exp(log_m - peak) for log_m in self._log_m) / len(ODDS))

    @property
    def since(self) -> int | None:
        """The row (from 1) at which the leading bet last left its floor; None while it has nothing."""
        leading = max(range(len(ODDS)), key=self._log_m.__getitem__)
        return self._started[leading] if self._log_m[leading] > 0.0 else None

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on bit for bit: numbers and lists."""
        return {
            "schema": _STATE_SCHEMA,
            "bound": self.bound,
            "rows": self.rows,
            "misses": self.misses,
            "log_m": list(self._log_m),
            "started": list(self._started),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of a detector with the same bound.

        Raises
        ------
        ValueError
            The state is of another detector, or damaged. The detector is as it was.
        """
        if state.get("schema") != _STATE_SCHEMA or state.get("bound") != self.bound:
            raise ValueError(
                f"the state is of another detector: its bound is {state.get('bound')!r}, expected {self.bound!r}"
            )
        try:
            rows, misses = int(state["rows"]), int(state["misses"])
            log_m, started = [float(log) for log in state["log_m"]], [int(row) for row in state["started"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the state is damaged: {error}") from None
        if len(log_m) != len(ODDS) or len(started) != len(ODDS) or not all(map(math.isfinite, log_m)):
            raise ValueError(f"the state is damaged: expected {len(ODDS)} finite numbers in log_m and started")
        self.rows, self.misses, self._log_m, self._started = rows, misses, log_m, started

    def __repr__(self) -> str:
        return f"<RiskECusum bound={self.bound:.4f} rows={self.rows} misses={self.misses} evidence={self.evidence:.2f}>"


def _log_e_values(bound: float) -> tuple[list[float], list[float]]:
    if bound >= 1.0:
        return [0.0] * len(ODDS), [0.0] * len(ODDS)
    norms = [1.0 - bound + odds * bound for odds in ODDS]
    log_miss = [math.log(odds) - math.log(norm) for odds, norm in zip(ODDS, norms, strict=True)]
    return log_miss, [-math.log(norm) for norm in norms]
