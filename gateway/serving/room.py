"""How much of large request bodies, and of answers, one front holds at a time, over all of its connections."""

from __future__ import annotations

__all__ = ("LARGE_BODY_BYTES", "Held", "Room")

LARGE_BODY_BYTES = 64 * 1024
"""Bodies up to this are not counted; what else bounds them (connections, queues) keeps them small together."""


class Room:
    """Counts bytes from when they are there until nobody needs them any more.

    Parameters
    ----------
    max_bytes : int
        Of all that is held together.
    full : str
        Why something was refused, for its caller.

    >>> room = Room(100, full="no more")
    >>> body = room.open()
    >>> body.grow(80), room.open().grow(30), room
    (True, False, <Room 80 of 100 bytes>)
    >>> body.close()
    >>> room
    <Room 0 of 100 bytes>
    """

    def __init__(self, max_bytes: int, *, full: str) -> None:
        self.max_bytes = max_bytes
        self.full = full
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Room {self.held_bytes} of {self.max_bytes} bytes>"

    def open(self) -> Held:
        """A share of which nothing is held yet."""
        return Held(self)


class Held:
    """A share of the room, given back when it is closed or nobody has it any more."""

    __slots__ = ("_room", "_size")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size = 0

    def __del__(self) -> None:
        self.close()

    def grow(self, size: int) -> bool:
        """Hold `size` bytes in all; False where there is no room for them, and what was held stays held."""
        room = self._room
        if room.held_bytes + size - self._size > room.max_bytes:
            return False
        room.held_bytes += size - self._size
        self._size = size
        return True

    def close(self) -> None:
        """Hold nothing any more."""
        self._room.held_bytes -= self._size
        self._size = 0
