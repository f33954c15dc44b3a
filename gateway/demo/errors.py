"""What can end the demo early."""

from __future__ import annotations

__all__ = ("DemoError",)


class DemoError(Exception):
    """Raised when the demo cannot go on; the text is one line that says why and what to do."""
