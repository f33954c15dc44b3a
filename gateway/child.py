"""One process of the gateway, started again with growing pauses while it keeps ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

from gateway.parent import PARENT_VARIABLE, ctrl_c_blocked

__all__ = ("ENDED_AS_TOLD", "HURRY_SIGNAL", "STOP_SECONDS", "Child")

STOP_SECONDS = 5.0
HURRY_SIGNAL = signal.SIGUSR1
"""Tells a front that has been told to stop not to wait for what it has not answered yet."""
ENDED_AS_TOLD = (0, -signal.SIGTERM)
"""Statuses of a child that somebody has told to end, in the second case before it could take the word."""
BACKOFF_SECONDS = (0.0, 0.2, 0.5, 1.0)
STEADY_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Child:
    """A Python program that is kept running.

    Parameters
    ----------
    name : str
    arguments : list of str
        Of `python -m`.
    ended : callable
        Called with the child and its status each time it ended without having been stopped; it may set `stopping`, and
        then the child is not started again until `start`.
    environment : mapping of str to str, optional
        Besides what this process has.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        *,
        ended: Callable[[Child, int], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.process: asyncio.subprocess.Process | None = None
        self.started = 0.0
        self.ends = 0
        self.stopping = False
        self._arguments = arguments
        self._ended = ended
        self._environment = {PARENT_VARIABLE: str(os.getpid()), **(environment or {})}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = f"pid {self.process.pid}" if self.process else "down"
        return f"<Child {self.name} {state} ends {self.ends}>"

    def start(self) -> None:
        self.stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, *, seconds: float, number: int = signal.SIGTERM) -> None:
        self.stopping = True
        if self.process is not None and self.process.returncode is None:
            self.signal(number)
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=seconds)
        if not done:
            self.signal(signal.SIGKILL)
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            self._task.cancel()

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def _run(self) -> None:
        environment, refused = os.environ | self._environment, False
        while not self.stopping:
            self.started = time.monotonic()
            try:
                with ctrl_c_blocked():
                    # -P: what lies in the current directory is no code of ours.
                    self.process = await asyncio.create_subprocess_exec(
                        sys.executable, "-P", "-m", *self._arguments, stdin=asyncio.subprocess.DEVNULL, env=environment
                    )
            except OSError as error:
                if not refused:
                    _log.warning("%s cannot be started, and is tried again: %s", self.name, error)
                refused = True
                await asyncio.sleep(BACKOFF_SECONDS[-1])
                continue
            refused = False
            if self.stopping:  # told so while it was being started
                self.signal(signal.SIGTERM)
            status = await self.process.wait()
            self.process = None
            if self.stopping:
                return
            self.ends = 1 if time.monotonic() - self.started > STEADY_SECONDS else self.ends + 1
            self._ended(self, status)
            if not self.stopping:
                await asyncio.sleep(BACKOFF_SECONDS[min(self.ends - 1, len(BACKOFF_SECONDS) - 1)])
