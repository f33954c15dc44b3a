"""What can go wrong with the store, said by who is at fault."""

from __future__ import annotations

__all__ = ("Conflict", "NotKnown", "Refused", "StoreAway", "StoreError")


class StoreError(Exception):
    """The store failed, or the tree below it: the text is one sentence for a person."""


class StoreAway(StoreError):
    """The store cannot be reached, or is locked for longer than a writer waits. Trying again later may help."""


class Refused(StoreError):
    """The change is not allowed as things stand; nothing was changed."""


class NotKnown(Refused):
    """The model, version or rollout that was named is not in the store."""


class Conflict(Refused):
    """Somebody else changed the route since the caller read it."""
