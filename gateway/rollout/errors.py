"""What can go wrong in a rollout; the caller is at fault and nothing was changed."""

from __future__ import annotations

__all__ = ("EvidenceError", "IllegalMove", "PlanError", "RolloutError")


class RolloutError(Exception):
    """The root of this package's errors."""


class PlanError(RolloutError):
    """A plan that cannot be carried out; the text names the field, what came and what is expected."""


class IllegalMove(RolloutError):
    """A move that the table does not have; the text names the phase and the event."""


class EvidenceError(RolloutError):
    """An observation or a stored state that the evidence cannot take."""
