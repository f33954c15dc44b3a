"""Two versions on the same labelled inputs: does the previous one do better?"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.rollout.errors import EvidenceError
from gateway.rollout.evidence import Bet, Tally

__all__ = ("PairedTest",)

_ODDS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
_BETS = tuple(Bet(1.0 / len(_ODDS), null=1.0, alternative=odds) for odds in _ODDS)


class PairedTest:
    """McNemar's test as an e-process.

    Pairs on which both versions are right, or both wrong, say nothing. Where they differ, a previous version that is
    no better is the right one with probability at most 1/2, so bets on higher odds form a supermartingale: the chance
    that the evidence for a previous version that is no better ever reaches c is at most 1 / c.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).

    >>> pairs = PairedTest()
    >>> for _ in range(20):
    ...     pairs.update(previous_right=True, current_right=False)
    >>> pairs
    <PairedTest previous_only=20 current_only=0 pairs=20 log_evidence=10.347>
    """

    def __init__(self) -> None:
        self._tally = Tally()
        self.pairs = 0

    def __repr__(self) -> str:
        return (
            f"<PairedTest previous_only={self.previous_only} current_only={self.current_only} pairs={self.pairs} "
            f"log_evidence={self.log_evidence:.3f}>"
        )

    @property
    def previous_only(self) -> int:
        """Return on how many pairs only the previous version was right."""
        return self._tally.canary

    @property
    def current_only(self) -> int:
        """Return on how many pairs only the current version was right."""
        return self._tally.stable

    @property
    def log_evidence(self) -> float:
        """Return the natural logarithm of the evidence that the previous version does better."""
        return self._tally.log_wealth(_BETS)

    def update(self, *, previous_right: bool, current_right: bool) -> None:
        """Take in one labelled input that both versions have answered."""
        self.pairs += 1
        if previous_right != current_right:
            self._tally.add(previous_right, 0.5)

    def state(self) -> dict[str, int]:
        """Return everything that is remembered, as plain values."""
        return {"pairs": self.pairs, "previous_only": self.previous_only, "current_only": self.current_only}

    def restore(self, state: Mapping[str, int]) -> None:
        """Take over what `state` gave.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives; nothing is changed.
        """
        try:
            pairs, previous_only, current_only = state["pairs"], state["previous_only"], state["current_only"]
        except (KeyError, TypeError) as error:
            raise EvidenceError(f"state of a paired test lacks {error}: expected what state() gives") from None
        if pairs < previous_only + current_only:
            raise EvidenceError(f"pairs is {pairs}: expected at least {previous_only + current_only}")
        self._tally = Tally.restore([[0.5, current_only, previous_only]])
        self.pairs = pairs
