"""What can go wrong between a caller of an engine and the engine."""

from __future__ import annotations

__all__ = ("EngineError", "EngineGone", "EngineStartFailed", "RunFailed", "RunStopped", "WireError")


class EngineError(Exception):
    """Base of everything an engine's client raises."""


class EngineStartFailed(EngineError):
    """Raised when an engine did not become ready: a file that is no model, or no answer in time."""


class EngineGone(EngineError):
    """Raised when the engine ended, or did not answer in time, while something was asked of it."""


class RunFailed(EngineError):
    """Raised when the model itself failed on these inputs; the text is the runtime's own and not for callers."""


class RunStopped(EngineError):
    """Raised when a run was stopped at its deadline, or was not begun since that was past; nobody is to blame yet."""


class WireError(EngineError):
    """Raised when bytes on the engine's socket are no frame, or what shall be sent makes none."""
