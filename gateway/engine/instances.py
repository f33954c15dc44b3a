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
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from gateway.engine.errors import EngineStartFailed
from gateway.engine.providers import CPU
from gateway.engine.session import ModelSession
from gateway.parent import die_with_parent, ended_how

__all__ = ("Others", "choose_instances", "run_instances")

LOOK_SECONDS = 0.002


def choose_instances(asked: int, session: ModelSession) -> tuple[int, str]:
    """How many instances a model can have, and a few words on why."""
    if asked < 2:
        return 1, "1: engine.instances, fronts and cores allow no more"
    if session.providers != [CPU]:
        return 1, f"1: what {', '.join(session.providers)} have cannot be forked"
    if session.has_threads:
        return 1, "1: the model runs on several threads"
    if not _can_wait():
        return 1, "1: this system does not tell when one ends"
    return asked, f"{asked}: as many as engine.instances, fronts and cores allow"


class Others:
    """The other instances of an engine: all of them to the first, and the first alone to any other.

    Parameters
    ----------
    pids : sequence of int
        Whom the first knows.
    first : int, optional
        Whom any other knows.
    warn : callable, optional
        Is told which of them has ended.
    """

    def __init__(
        self, pids: Sequence[int] = (), *, first: int | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self._pids = {os.pidfd_open(pid): pid for pid in pids}
        self._first = first
        self._warn = warn
        self._are_to_end = False

    def __repr__(self) -> str:
        return f"<Others {', '.join(map(str, self._pids.values())) or 'none'}>"

    def __len__(self) -> int:
        return len(self._pids)

    def watch(self) -> None:
        """End this process as soon as one of them has ended, be it in the middle of a run."""
        if self._pids:
            threading.Thread(target=self._watch, name="instances", daemon=True).start()

    def await_files(self, paths: Sequence[Path], *, seconds: float) -> None:
        """Wait until all of them are there; end this process when an instance has ended before.

        Raises
        ------
        EngineStartFailed
            They are not in time.
        """
        deadline = time.monotonic() + seconds
        while not all([path.exists() for path in paths]):
            if ended := _readable(list(self._pids), 0.0):
                self._end_as(ended[0])
            if time.monotonic() > deadline:
                raise EngineStartFailed(f"its instances were not ready within {seconds:g} s")
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Tell them to end, whichever was told first: so all go on for those that are connected, at the same time."""
        self._are_to_end = True
        if self._first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGTERM)
        for descriptor in self._pids:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait for them, so long at most: who is left ends with this process."""
        deadline = time.monotonic() + seconds
        left = list(self._pids)
        while left and (ended := _readable(left, max(0.0, deadline - time.monotonic()))):
            for descriptor in ended:
                left.remove(descriptor)
                with contextlib.suppress(ChildProcessError):  # the one that was seen to end has been waited for
                    os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)

    def _watch(self) -> None:
        ended = _readable(list(self._pids), None)
        if not self._are_to_end:
            self._end_as(ended[0])

    def _end_as(self, descriptor: int) -> None:
        """End this process in the way in which an instance did: at once, or in order where it ended so."""
        told = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
        if told is None or (told.si_code == os.CLD_EXITED and told.si_status == 0):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        has_exited = told.si_code == os.CLD_EXITED
        if self._warn is not None:
            number = 1 + list(self._pids).index(descriptor)
            how = ended_how(told.si_status if has_exited else -told.si_status)
            self._warn(f"its instance {number} ended {how}, and so does the engine")
        if has_exited:
            os._exit(told.si_status)
        # To this thread, so that nothing comes between. It returns from a signal that this process does not end from.
        signal.pthread_kill(threading.get_ident(), told.si_status)
        if told.si_status != signal.SIGTERM:
            os._exit(1)


def run_instances(count: int, serve: Callable[[int, Others], None], *, warn: Callable[[str], None]) -> None:
    """Call `serve` in so many processes, each with its number: in this one, which is the first, and in forks of it.

    Where the system refuses one there are fewer, and `warn` is told; fronts go to the first where theirs is not there.
    """
    # What is there now is for all of them: a collection would write to its pages, and each would have its own.
    gc.collect()
    gc.freeze()
    parent = os.getpid()
    pids: list[int] = []
    for number in range(1, count):
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of other threads. The session has none, and what watches its runs is made again.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as error:
            warn(f"it has {number} of {count} instances: {error.strerror}")
            break
        if pid == 0:
            _be(number, serve, parent=parent)
        pids.append(pid)
    serve(0, Others(pids, warn=warn))


def _be(number: int, serve: Callable[[int, Others], None], *, parent: int) -> NoReturn:
    # A fork never returns to what it was forked from, and ends without a word to what it has from there.
    status = 1
    try:
        die_with_parent(parent)
        serve(number, Others(first=parent))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _can_wait() -> bool:
    try:
        descriptor = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # Linux before 5.3, or a sandbox
        return False
    try:
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return True
    except (AttributeError, OSError):
        return False
    finally:
        os.close(descriptor)
    return True


def _readable(descriptors: Sequence[int], seconds: float | None) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)]
