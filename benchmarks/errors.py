"""What can go wrong in a run of the suite."""

from __future__ import annotations

__all__ = ("BenchmarkError", "ServerFailed", "WrongAnswer")


class BenchmarkError(Exception):
    """Raised when the suite cannot go on; the text says what to do."""


class ServerFailed(Exception):
    """Raised when a server cannot be installed or started; the others are measured without it."""


class WrongAnswer(Exception):
    """Raised when a server's answer is not what onnxruntime says, or is no answer."""
