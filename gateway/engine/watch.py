"""Stops runs that last too long: a thread that looks at the clock while the model runs outside the interpreter."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ("RunWatch",)

LOOK_SECONDS = 0.05


class RunWatch:
    """Calls `stop` when the run under way is past its moment, and again each `LOOK_SECONDS` while it goes on.

    A run costs two attributes set and one read. While runs follow one another the thread looks at the clock each
    `LOOK_SECONDS`; once there are none it sleeps until the next begins.

    Parameters
    ----------
    stop : callable
        Called on the thread. It may come a moment late, when another run has begun: what it stops by mistake is to
        be run again.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._until = math.inf
        self._asleep = False
        self._wake = threading.Event()
        threading.Thread(target=self._look, name="run watch", daemon=True).start()

    def __repr__(self) -> str:
        return f"<RunWatch {'asleep' if self._asleep else 'awake'} until {self._until:.3f}>"

    def begin(self, until: float) -> None:
        """A run begins that shall be stopped at `until`, in seconds of `time.monotonic`."""
        self._until = until
        if self._asleep:
            self._wake.set()

    def end(self) -> None:
        """The run is over."""
        self._until = math.inf

    def _look(self) -> None:
        idle = False
        while True:
            left = self._until - time.monotonic()
            if left <= 0:
                self._stop()
            if left < math.inf:
                idle = False
                time.sleep(LOOK_SECONDS if left <= 0 else min(left, LOOK_SECONDS))
            elif not idle:
                idle = True
                time.sleep(LOOK_SECONDS)
            else:
                self._sleep()
                idle = False

    def _sleep(self) -> None:
        self._wake.clear()
        self._asleep = True
        # Whoever began before it read `_asleep` is seen here; whoever begins after it wakes the thread.
        if self._until == math.inf:
            self._wake.wait()
        self._asleep = False
