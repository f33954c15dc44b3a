"""E-processes on one fact: given that an event happened, it fell on the canary with a known probability.

The gateway draws the arm of each request itself, so when the arms do not differ, an event (a failure, a wrong label,
an output in some bin) falls on the canary with probability `share` = weight / 100, whatever the traffic does. When the
canary has `ratio` times as many, the odds are `ratio` times as large: theta = share ratio / (share ratio + 1 - share).

Each test bets on a grid of ratios against the nearest ratio that its null allows. A bet's wealth is multiplied by
theta_bet / theta_null on the canary and by (1 - theta_bet) / (1 - theta_null) on stable, which is at most 1 in
expectation for every ratio of the null, so the mixture of all bets is a supermartingale that starts at 1: the chance
that it ever reaches c is at most 1 / c (Ville), whenever and however often one looks, and whatever weights came.

Everything here is a function of counts by weight. Counts add, the order does not matter, and whoever has the counts
gets the same evidence, to the bit. A weight of 0 or 100 percent leaves nothing to draw and gives no evidence.

Sources: Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022, arXiv 2011.03567);
Gruenwald, de Heide and Koolen, "Safe testing" (arXiv 1906.07801).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gateway.rollout.errors import EvidenceError

__all__ = (
    "MAX_BINS",
    "MAX_SHARES",
    "ArmBalance",
    "Bet",
    "BinShift",
    "NonInferiority",
    "OddsTest",
    "RateRatio",
    "Tally",
    "log_factors",
    "log_mixture",
    "log_rate_above",
    "log_rate_below",
)

MAX_SHARES = 1024
"""Different weights that one tally tells apart; what comes at yet another weight is not counted."""

MAX_BINS = 256
"""A reference profile has some 10 to 25 bins."""

_WORSE = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
_BETTER = (1.0, 0.9, 0.8, 0.65, 0.5, 0.3)
_EITHER = (0.1, 0.3, 0.6, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.6, 3.0, 10.0)

_SPREADS = (0.15, 0.4, 1.0)
_POINTS = (-2.1, -1.3, -0.6, 0.0, 0.6, 1.3, 2.1)


class Bet(NamedTuple):
    """A share of the starting wealth that is put on one ratio, against one ratio of the null."""

    mass: float
    null: float
    alternative: float


def log_factors(bet: Bet, share: float) -> tuple[float, float]:
    """Return by what one event multiplies the bet's wealth: logarithms, (on the canary, on stable).

    >>> canary, stable = log_factors(Bet(1.0, null=1.0, alternative=2.0), share=0.5)
    >>> round(math.exp(canary), 6), round(math.exp(stable), 6)
    (1.333333, 0.666667)
    """
    on_stable = math.log1p(share * (bet.null - 1.0)) - math.log1p(share * (bet.alternative - 1.0))
    return math.log(bet.alternative / bet.null) + on_stable, on_stable


def log_mixture(terms: Sequence[tuple[float, float]]) -> float:
    """Return log of the sum of mass times exp(log wealth) over (mass, log wealth)."""
    highest = max(wealth for _, wealth in terms)
    return highest + math.log(math.fsum(mass * math.exp(wealth - highest) for mass, wealth in terms))


def log_rate_below(units: int, events: int, *, floor: float) -> float:
    """Return the log evidence that fewer than a `floor` share of the units have an event (null: at least that share).

    Valid at any time when, given the past, each unit of the null has its event with probability `floor` or more.
    """
    return _log_rate(units, events, floor=floor, rates=[floor * part for part in (0.01, 0.1, 0.25, 0.5)])


def log_rate_above(units: int, events: int, *, floor: float) -> float:
    """Return the log evidence that more than a `floor` share of the units have an event (null: at most that share)."""
    return _log_rate(units, events, floor=floor, rates=[floor + (1.0 - floor) * part for part in (0.1, 0.3, 0.6, 0.9)])


def _log_rate(units: int, events: int, *, floor: float, rates: Sequence[float]) -> float:
    clear = max(units - events, 0)
    mass = 1.0 / len(rates)
    return log_mixture(
        [(mass, events * math.log(rate / floor) + clear * (math.log1p(-rate) - math.log1p(-floor))) for rate in rates]
    )


class Tally:
    """Events by arm and by the share at which they were drawn."""

    __slots__ = ("_counts", "canary", "stable")

    def __init__(self) -> None:
        self._counts: dict[float, list[int]] = {}
        self.stable = 0
        self.canary = 0

    def __repr__(self) -> str:
        return f"<Tally stable={self.stable} canary={self.canary} weights={len(self._counts)}>"

    def add(self, on_canary: bool, share: float, *, times: int = 1) -> None:
        """Count one event, or as many as `times`.

        Raises
        ------
        EvidenceError
            When the share is not a probability.
        """
        counts = self._counts.get(share)
        if counts is None:
            if not 0.0 <= share <= 1.0:
                raise EvidenceError(f"share is {share}: expected a probability from 0 to 1")
            if share in (0.0, 1.0) or len(self._counts) == MAX_SHARES:
                return
            counts = self._counts[share] = [0, 0]
        if on_canary:
            counts[1] += times
            self.canary += times
        else:
            counts[0] += times
            self.stable += times

    def at(self, share: float) -> tuple[int, int]:
        """Return how many events were drawn at this share: (on stable, on the canary)."""
        stable, canary = self._counts.get(share, (0, 0))
        return stable, canary

    def log_wealth(self, bets: Sequence[Bet]) -> float:
        """Return the log wealth of the mixture of bets after the counted events."""
        return log_mixture([(bet.mass, self._log_wealth_of(bet)) for bet in bets])

    def _log_wealth_of(self, bet: Bet) -> float:
        parts: list[float] = []
        for share, (stable, canary) in self._counts.items():
            on_canary, on_stable = log_factors(bet, share)
            parts += (canary * on_canary, stable * on_stable)
        return math.fsum(parts)

    def state(self) -> list[list[float]]:
        """Return the counts as plain values: [share, stable, canary] each, by share."""
        return [[share, *counts] for share, counts in sorted(self._counts.items())]

    @classmethod
    def restore(cls, state: Sequence[Sequence[float]]) -> Tally:
        """Return the tally that gave this state.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives.
        """
        tally = cls()
        try:
            for share, stable, canary in state:
                if not (0.0 < share < 1.0 and stable >= 0 and canary >= 0 and stable % 1 == canary % 1 == 0):
                    raise EvidenceError(f"counts are {[share, stable, canary]}: expected [share, stable, canary]")
                tally._counts[float(share)] = [int(stable), int(canary)]
                tally.stable += int(stable)
                tally.canary += int(canary)
        except (TypeError, ValueError):
            raise EvidenceError(f"counts are {state!r}: expected a list of [share, stable, canary]") from None
        return tally


class OddsTest:
    """A mixture of bets on how many times as often events fall on the canary.

    Parameters
    ----------
    bets : sequence of Bet
        Masses add up to 1; each null is the ratio of the null that is nearest to the alternative.
    """

    def __init__(self, bets: Sequence[Bet]) -> None:
        self.bets = tuple(bets)
        self._tally = Tally()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} stable={self.stable} canary={self.canary} log_evidence={self.log_evidence:.3f}>"

    @property
    def stable(self) -> int:
        """Return how many events fell on stable."""
        return self._tally.stable

    @property
    def canary(self) -> int:
        """Return how many events fell on the canary."""
        return self._tally.canary

    @property
    def log_evidence(self) -> float:
        """Return the natural logarithm of the e-value; 0 before the first event."""
        return self._tally.log_wealth(self.bets)

    def at(self, share: float) -> tuple[int, int]:
        """Return how many events were drawn at this share: (on stable, on the canary)."""
        return self._tally.at(share)

    def update(self, on_canary: bool, share: float, *, times: int = 1) -> None:
        """Count one event, or as many as `times`, that the gateway would put on the canary with probability `share`.

        Raises
        ------
        EvidenceError
            When the share is not a probability.
        """
        self._tally.add(on_canary, share, times=times)

    def gain(self, share: float, *, ratio: float = 1.0) -> float:
        """Forecast the growth of the log evidence per event if the canary has `ratio` times as many; at least 0."""
        if not 0.0 < share < 1.0:
            return 0.0
        canary = share * ratio / (share * ratio + 1.0 - share)
        factors = [log_factors(bet, share) for bet in self.bets]
        return max(0.0, *(canary * on_canary + (1.0 - canary) * on_stable for on_canary, on_stable in factors))

    def state(self) -> list[list[float]]:
        """Return everything that is remembered, as plain values."""
        return self._tally.state()

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Take over what `state` gave.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives; nothing is changed.
        """
        self._tally = Tally.restore(state)


class RateRatio(OddsTest):
    """Evidence that the canary has more than `null_ratio` times the events of stable.

    >>> harm = RateRatio()
    >>> for _ in range(12):
    ...     harm.update(on_canary=True, share=0.1)
    >>> harm
    <RateRatio stable=0 canary=12 log_evidence=18.147>
    """

    def __init__(self, null_ratio: float = 1.0) -> None:
        super().__init__(_even_bets(null_ratio, [null_ratio * times for times in _WORSE]))


class NonInferiority(OddsTest):
    """Evidence that the canary has less than 1 + `margin` times the events of stable.

    >>> as_good = NonInferiority(margin=0.25)
    >>> for number in range(600):
    ...     as_good.update(on_canary=number % 2 == 0, share=0.5)
    >>> as_good
    <NonInferiority stable=300 canary=300 log_evidence=2.313>
    """

    def __init__(self, margin: float) -> None:
        super().__init__(_even_bets(1.0 + margin, _BETTER))


class ArmBalance(OddsTest):
    """Evidence that units do not fall on the canary with the probability that the route says."""

    def __init__(self) -> None:
        super().__init__(_even_bets(1.0, _EITHER))


def _even_bets(null: float, alternatives: Sequence[float]) -> list[Bet]:
    return [Bet(1.0 / len(alternatives), null, alternative) for alternative in alternatives]


class BinShift:
    """Evidence that a value is distributed otherwise on the canary than on stable.

    Given the bin that a value fell in, the null says that the odds of the canary are within a factor 1 + `tolerance` of
    share / (1 - share). In each bin, bets lie beyond both edges of that band with the masses of a normal distribution,
    and the rest of the wealth is not bet. Bins multiply; three widths of that distribution are averaged, so that few
    strong shifts and many weak ones are found alike.

    Parameters
    ----------
    tolerance : float
        At least 0.
    """

    def __init__(self, tolerance: float) -> None:
        self.families = tuple(_band_bets(1.0 + tolerance, spread) for spread in _SPREADS)
        self._tallies: dict[int, Tally] = {}

    def __repr__(self) -> str:
        return (
            f"<BinShift bins={len(self._tallies)} stable={self.stable} canary={self.canary} "
            f"log_evidence={self.log_evidence:.3f}>"
        )

    @property
    def stable(self) -> int:
        """Return how many values fell on stable."""
        return sum(tally.stable for tally in self._tallies.values())

    @property
    def canary(self) -> int:
        """Return how many values fell on the canary."""
        return sum(tally.canary for tally in self._tallies.values())

    @property
    def log_evidence(self) -> float:
        """Return the natural logarithm of the e-value; 0 before the first value."""
        mass = 1.0 / len(self.families)
        return log_mixture(
            [(mass, math.fsum(tally.log_wealth(bets) for tally in self._tallies.values())) for bets in self.families]
        )

    def update(self, index: int, on_canary: bool, *, share: float, times: int = 1) -> None:
        """Count one value, or as many as `times`, that fell in bin `index`.

        Raises
        ------
        EvidenceError
            When the share is not a probability or the bin is not from 0 to MAX_BINS - 1.
        """
        tally = self._tallies.get(index)
        if tally is None:
            if not 0 <= index < MAX_BINS:
                raise EvidenceError(f"bin is {index}: expected 0 to {MAX_BINS - 1}")
            tally = self._tallies[index] = Tally()
        tally.add(on_canary, share, times=times)

    def state(self) -> list[list[object]]:
        """Return everything that is remembered, as plain values: [bin, counts] each, by bin."""
        return [[index, tally.state()] for index, tally in sorted(self._tallies.items())]

    def restore(self, state: Sequence[Sequence[object]]) -> None:
        """Take over what `state` gave.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives; nothing is changed.
        """
        tallies: dict[int, Tally] = {}
        try:
            for index, counts in state:
                if not (isinstance(index, int) and 0 <= index < MAX_BINS and isinstance(counts, Sequence)):
                    raise EvidenceError(f"bin is {index!r}: expected 0 to {MAX_BINS - 1} with its counts")
                tallies[index] = Tally.restore(counts)
        except (TypeError, ValueError):
            raise EvidenceError(f"bins are {state!r}: expected a list of [bin, counts]") from None
        self._tallies = tallies


def _band_bets(edge: float, spread: float) -> tuple[Bet, ...]:
    """Bets beyond the band from 1 / edge to edge; the middle point keeps its mass without a bet."""
    densities = [math.exp(-point * point / 2.0) for point in _POINTS]
    bets: list[Bet] = []
    for point, density in zip(_POINTS, densities, strict=True):
        null = edge if point > 0.0 else 1.0 / edge if point < 0.0 else 1.0
        bets.append(Bet(density / math.fsum(densities), null, null * math.exp(spread * point)))
    return tuple(bets)
