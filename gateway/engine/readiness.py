"""Waiting until sockets can be read from or written to, on whatever the system has for it."""

from __future__ import annotations

import math
import select
from typing import Protocol

__all__ = ("READABLE", "WRITABLE", "Readiness", "open_readiness")

READABLE, WRITABLE = select.POLLIN, select.POLLOUT  # epoll's numbers are the same


class Readiness(Protocol):
    """What is used of `select.epoll`, which tells of descriptors in the order in which they became ready."""

    def register(self, fd: int, eventmask: int) -> None: ...
    def modify(self, fd: int, eventmask: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        """Descriptors and their events, or none after so many seconds; errors and ends are told unasked."""


def open_readiness() -> Readiness:
    """`select.epoll`, or where there is none `select.poll` in its place."""
    return select.epoll() if hasattr(select, "epoll") else _Poll()


class _Poll:
    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        return self._poll.poll(math.ceil(1000 * timeout))
