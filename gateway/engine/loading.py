"""From a model file to a session that is warm and held within its memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gateway.drift.profile import Profile
from gateway.engine.errors import EngineStartFailed, RunFailed, RunStopped
from gateway.engine.memory import limit_growth, resident_bytes
from gateway.engine.providers import CPU, Provider
from gateway.engine.session import ModelSession
from gateway.engine.warmup import ROWS, reference_rows, take_rows, zero_row

__all__ = ("WarmUp", "hold_memory", "load_session", "warm_up")

Array = np.ndarray[Any, np.dtype[Any]]

WARM_UP_SECONDS = 2.0
WARM_UP_BYTES = 2**22
"""A warm-up ends before a run that would take longer, or bring more in, than this."""


def load_session(
    model_file: Path,
    *,
    threads: int,
    providers: Sequence[Provider] = (Provider(CPU, {}),),
    max_resident_bytes: int | None = None,
) -> ModelSession:
    """Load a model; where `max_resident_bytes` is given, within it.

    Raises
    ------
    EngineStartFailed
        The file is no model that can be served, or it needs more than `max_resident_bytes` to be loaded.
    """
    if max_resident_bytes is None:
        return ModelSession(model_file, threads=threads, providers=providers)
    _check(max_resident_bytes, "before the model is loaded")
    limit_growth(max_resident_bytes - resident_bytes())
    try:
        return ModelSession(model_file, threads=threads, providers=providers)
    except (EngineStartFailed, MemoryError, RuntimeError) as error:
        if isinstance(error, EngineStartFailed) and "alloc" not in str(error):
            raise
        raise EngineStartFailed(f"{error}; {_limit(max_resident_bytes)}, and loading needs more") from None


def hold_memory(max_resident_bytes: int) -> None:
    """Refuse the model, now that it is loaded and warm, memory beyond `max_resident_bytes`.

    A run that asks for more fails; the engine and what else it is asked stay as they are.

    Raises
    ------
    EngineStartFailed
        It holds more already.
    """
    _check(max_resident_bytes, "with the model")
    limit_growth(max_resident_bytes - resident_bytes())


class WarmUp(NamedTuple):
    """A model that has run: what on, in a few words, and one row to run it on again."""

    said: str
    row: dict[str, Array]


def warm_up(session: ModelSession, *, profile: Profile | None, max_rows: int, max_seconds: float) -> WarmUp:
    """Run the model a few times before anyone asks for it, so that the first who does need not wait.

    Where there is a profile, each of a few rows like the reference runs by itself, then batches of 2, 4, 8, ... of them
    up to `max_rows`, for `WARM_UP_SECONDS` in all; else a row of zeros, which a model may refuse.

    Parameters
    ----------
    session : ModelSession
    profile : Profile, optional
    max_rows : int
        Rows that may share a run; 1 where they may not.
    max_seconds : float
        Bound of all of it.

    Raises
    ------
    EngineStartFailed
        None of the rows like the reference, on which the model ran when it was added, runs here.
    """
    started = time.monotonic()
    end = started + max_seconds
    rows = reference_rows(session.signature, profile) if profile is not None else None
    if rows is None:
        zeros = zero_row(session.signature)
        try:
            session.run(zeros, until=end)
        except (RunFailed, RunStopped):
            return WarmUp("zeros, which the model refuses", zeros)
        return WarmUp("zeros", zeros)
    row = _run_singly(session, rows, until=end)
    count = 1
    while 2 * count <= max_rows:
        before = time.monotonic()
        batch = take_rows(rows, 0, 2 * count)
        if sum(tensor.nbytes for tensor in batch.values()) > WARM_UP_BYTES:
            break
        try:
            session.run(batch, until=end)
        except (RunFailed, RunStopped):
            break
        count *= 2
        now = time.monotonic()
        if now - started + 2 * (now - before) > min(WARM_UP_SECONDS, max_seconds):
            break
    return WarmUp("rows like the reference" + (f", up to {count} at once" if count > 1 else ""), row)


def _run_singly(session: ModelSession, rows: dict[str, Array], *, until: float) -> dict[str, Array]:
    """Run the rows one by one; returns the first that runs."""
    runs: list[dict[str, Array]] = []
    reason = ""
    for number in range(ROWS):
        row = take_rows(rows, number, 1)
        try:
            session.run(row, until=until)
            runs.append(row)
        except (RunFailed, RunStopped) as error:
            reason = str(error)
    if not runs:
        raise EngineStartFailed(f"the model fails on rows like its reference: {reason}")
    return runs[0]


def _check(max_resident_bytes: int, when: str) -> None:
    held = resident_bytes()
    if held >= max_resident_bytes:
        raise EngineStartFailed(f"the engine holds {held} bytes {when}; {_limit(max_resident_bytes)}")


def _limit(max_resident_bytes: int) -> str:
    return f"engine.max_resident_bytes is {max_resident_bytes}"
