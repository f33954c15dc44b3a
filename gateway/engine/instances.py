"""Several processes of one engine, among which fronts are divided.

They are forked once the model is loaded and warm, so that its weights are in memory once however many there are. To the
supervisor an engine is one process all the same, the first instance: it ends when that ends, and that ends as any of
the others did.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from gateway.engine.errors import EngineStartFailed
from gateway.engine.providers import CPU
from gateway.engine.session import ModelSession
from gateway.parent import die_with_parent

__all__ = ("Others", "choose_instances", "run_instances")

LOOK_SECONDS = 0.002


def choose_instances(asked: int, session: ModelSession) -> tuple[int, str]:
    """How many instances a model can have, and a few words on why."""
    if asked < 2:
        return 1, "1"
    if session.provider != CPU:
        return 1, f"1: {session.provider} cannot be shared"
    if session.has_threads:
        return 1, "1: the model runs on several threads"
    if not hasattr(os, "pidfd_open"):
        return 1, "1: this system does not tell when one ends"
    return asked, f"{asked}: as many as fronts can be divided among"


class Others:
    """The instances besides the first, as the first knows them; none, as every other does.

    Attributes
    ----------
    descriptors : list of int
        One for each; it can be read from once that has ended.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = {os.pidfd_open(pid): pid for pid in pids}
        self.descriptors = list(self._pids)

    def __repr__(self) -> str:
        return f"<Others {', '.join(map(str, self._pids.values())) or 'none'}>"

    def await_files(self, paths: Sequence[Path], *, seconds: float) -> None:
        """Wait until all of them are there.

        Raises
        ------
        EngineStartFailed
            They are not in time, or an instance has ended.
        """
        deadline = time.monotonic() + seconds
        while not all([path.exists() for path in paths]):
            if self._ended(0.0) or time.monotonic() > deadline:
                raise EngineStartFailed("an instance of the engine did not become ready")
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Tell them to end, as the supervisor tells the first."""
        for descriptor in self.descriptors:
            _send(descriptor, signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait for them, so long at most; kill who is left."""
        deadline = time.monotonic() + seconds
        left = self.descriptors
        while left and time.monotonic() < deadline:
            ended = self._ended(max(0.0, deadline - time.monotonic()))
            left = [descriptor for descriptor in left if descriptor not in ended]
            if left:
                time.sleep(LOOK_SECONDS)
        for descriptor in left:
            _send(descriptor, signal.SIGKILL)

    def end_as(self, descriptor: int) -> None:
        """End this process in the way in which the instance did; return where that was in order."""
        told = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
        if told is None or (told.si_code == os.CLD_EXITED and told.si_status == 0):
            return
        if told.si_code == os.CLD_EXITED:
            os._exit(told.si_status)
        if told.si_status != signal.SIGKILL:
            signal.signal(told.si_status, signal.SIG_DFL)
        os.kill(os.getpid(), told.si_status)

    def _ended(self, seconds: float) -> list[int]:
        poll = select.poll()
        for descriptor in self.descriptors:
            poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(1000 * seconds)]


def run_instances(count: int, serve: Callable[[int, Others], None]) -> None:
    """Call `serve` in so many processes, each with its number: in this one, which is the first, and in forks of it."""
    # What is there now is for all of them: a collection would write to its pages, and each would have its own.
    gc.collect()
    gc.freeze()
    parent = os.getpid()
    pids = []
    for number in range(1, count):
        try:
            pid = os.fork()
        except OSError as error:
            # Fronts go to the first where theirs is not there.
            print(f"an instance of the engine could not be started: {error.strerror}", file=sys.stderr)
            break
        if pid == 0:
            _be(number, serve, parent=parent)
        pids.append(pid)
    serve(0, Others(pids))


def _be(number: int, serve: Callable[[int, Others], None], *, parent: int) -> NoReturn:
    # A fork never returns to what it was forked from, and ends without a word to what it has from there.
    status = 1
    try:
        die_with_parent(parent)
        serve(number, Others())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _send(descriptor: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)
