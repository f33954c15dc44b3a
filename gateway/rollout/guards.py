"""What needs no statistics, and what keeps one client from counting twice."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from gateway.rollout.errors import EvidenceError

__all__ = ("GUARD_SPAN", "GUARD_UNITS", "ErrorGuard", "SeenUnits")

GUARD_UNITS = 20
"""Each arm's units that the guard looks back on at least."""

GUARD_SPAN = 4096
"""Units of both arms that the guard looks back on at most; below a weight of 0.5 % it stays silent."""


class ErrorGuard:
    """Fires when more than half of the canary's latest units failed while less than a tenth of stable's did.

    Both shares are taken over one and the same stretch of time, the shortest that holds 20 units of each arm, so that
    an outage that hits both arms is never taken for the canary's fault.
    """

    def __init__(self) -> None:
        self._span: deque[tuple[bool, bool]] = deque()
        self._units = [0, 0]
        self._failed = [0, 0]

    def __repr__(self) -> str:
        return f"<ErrorGuard stable={self._failed[0]}/{self._units[0]} canary={self._failed[1]}/{self._units[1]}>"

    @property
    def fires(self) -> bool:
        """Return whether the canary fails and stable does not."""
        return (
            min(self._units) >= GUARD_UNITS
            and 2 * self._failed[1] > self._units[1]
            and 10 * self._failed[0] < self._units[0]
        )

    @property
    def reason(self) -> str:
        """Return what the guard saw, in one sentence."""
        return (
            f"{self._failed[1]} of the latest {self._units[1]} units on the canary failed, "
            f"{self._failed[0]} of {self._units[0]} on stable"
        )

    def unit(self, on_canary: bool, failed: bool = False) -> None:
        """Take in one unit."""
        self._append(on_canary, failed)
        self._forget()

    def units(self, on_canary: bool, count: int) -> None:
        """Take in many units of one arm that did not fail; the same as one by one, as more units forget no less."""
        self._span.extend([(on_canary, False)] * count)
        self._units[on_canary] += count
        self._forget()

    def fail(self, on_canary: bool) -> None:
        """Note that the latest unit failed; call it for no other unit's error."""
        if self._span and self._span[-1] == (on_canary, False):
            self._span[-1] = (on_canary, True)
            self._failed[on_canary] += 1

    def state(self) -> list[list[bool]]:
        """Return everything that is remembered, as plain values: [on canary, failed] each, oldest first."""
        return [list(unit) for unit in self._span]

    def restore(self, state: Sequence[Sequence[bool]]) -> None:
        """Take over what `state` gave.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives.
        """
        fresh = ErrorGuard()
        try:
            for on_canary, failed in state:
                fresh._append(bool(on_canary), bool(failed))
        except (TypeError, ValueError):
            raise EvidenceError(f"guard is {state!r}: expected a list of [on canary, failed]") from None
        self._span, self._units, self._failed = fresh._span, fresh._units, fresh._failed

    def _forget(self) -> None:
        while len(self._span) > GUARD_SPAN or self._dispensable(self._span[0][0]):
            arm, had_failed = self._span.popleft()
            self._units[arm] -= 1
            self._failed[arm] -= had_failed

    def _append(self, on_canary: bool, failed: bool) -> None:
        self._span.append((on_canary, failed))
        self._units[on_canary] += 1
        self._failed[on_canary] += failed

    def _dispensable(self, on_canary: bool) -> bool:
        return self._units[on_canary] > GUARD_UNITS and self._units[not on_canary] >= GUARD_UNITS


class SeenUnits:
    """The latest randomisation units and for which metrics they have counted.

    Parameters
    ----------
    limit : int
        Units remembered; beyond it the one that came first is forgotten and may count once more, so that a flood of
        keys costs memory no more than a quiet day and no key can count for more than one in `limit` others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counted: OrderedDict[str, int] = OrderedDict()
        self._bits: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<SeenUnits {len(self._counted)} of {self._limit}>"

    def first(self, unit_key: str | None, metric: str) -> bool:
        """Return whether this unit counts for this metric now; without a key each event is a unit of its own."""
        if unit_key is None:
            return True
        bit = self._bits.get(metric)
        if bit is None:
            bit = self._bits[metric] = 1 << len(self._bits)
        counted = self._counted.get(unit_key)
        if counted is None:
            if len(self._counted) == self._limit:
                self._counted.popitem(last=False)
            counted = 0
        self._counted[unit_key] = counted | bit
        return not counted & bit

    def state(self) -> dict[str, object]:
        """Return everything that is remembered, as plain values, oldest unit first."""
        return {"metrics": list(self._bits), "units": [[key, bits] for key, bits in self._counted.items()]}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` gave.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives.
        """
        metrics, units = state.get("metrics"), state.get("units")
        if not (isinstance(metrics, list) and isinstance(units, list)):
            raise EvidenceError(f"seen units have {sorted(state)}: expected 'metrics' and 'units'")
        self._bits = {str(metric): 1 << place for place, metric in enumerate(metrics)}
        self._counted = OrderedDict((str(key), int(bits)) for key, bits in units[-self._limit :])
