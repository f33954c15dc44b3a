"""Ties a child process to the one that started it, and says how one has ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

__all__ = ("PARENT_VARIABLE", "ctrl_c_blocked", "die_with_parent", "ended_how", "follow")

PARENT_VARIABLE = "_GATEWAY_PARENT"
"""In the environment of a child: the process id of whoever started it, which may be gone before the child can ask."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to end this process when its parent ends (Linux, prctl(2)); elsewhere nothing is done.

    Parameters
    ----------
    parent : int, optional
        Process id the caller expects as its parent; when it is gone already, this process ends at once.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def ended_how(status: int) -> str:
    """How a process has ended, by the status that `subprocess` gives it: below 0, a signal ended it.

    >>> ended_how(1), ended_how(-11)
    ('with status 1', 'by SIGSEGV')
    """
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # one of those for real-time use, which have no name
        return f"by signal {-status}"


@contextlib.contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Whatever this thread starts meanwhile gets no Ctrl-C until it follows: what is blocked stays so in a child."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def follow(parent: int) -> None:
    """End with the process that started this one, and leave it Ctrl-C, which reaches every process of a terminal.

    Parameters
    ----------
    parent : int
        Process id; when it is gone already, this process ends at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    die_with_parent(parent)
