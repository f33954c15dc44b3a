"""Work in the background that must not end by a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ("lasting",)

PAUSE_SECONDS = 1.0


async def lasting(name: str, work: Callable[[], Awaitable[None]], *, note: Callable[[str], None]) -> None:
    """Run `work` for ever: what fails is noted and begun again a second later; cancelling ends it.

    Parameters
    ----------
    name : str
        For the note.
    work : callable
        Returns only when there is nothing left to do.
    """
    while True:
        try:
            await work()
        except Exception as error:  # whatever it is, the process must not go on without this work
            note(f"{name} failed and is begun again: {error!r}")
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return
