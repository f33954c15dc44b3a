"""The one error of this package."""

from __future__ import annotations

__all__ = ("ProfileError",)


class ProfileError(ValueError):
    """A reference profile, or a tensor held against one, is not what it must be; the text says what came."""
