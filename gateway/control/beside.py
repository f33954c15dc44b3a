"""One comparison with a previous version, run beside the watch: it may take half a minute, and holds up nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from gateway.control.compare import Rerun, compare
from gateway.control.decisions import Comparison
from gateway.control.join import LabelledRow
from gateway.control.model import Harm, ModelWatch
from gateway.events.records import PredictionRecord
from gateway.repository.policy import ModelPolicy

__all__ = ("Compared", "ComparisonBeside")

_COMPARE_SECONDS = 30.0


class Compared(NamedTuple):
    """A comparison that is done, of the first `rows` rows of a harm."""

    model: ModelWatch
    harm: Harm
    previous: int
    rows: int
    comparison: Comparison


class ComparisonBeside:
    """Runs one comparison at a time in a thread; what it came to waits until it is taken.

    Parameters
    ----------
    rerun : Rerun
        Runs the previous version on logged rows.
    lookup : callable
        Finds a prediction whose payload is no longer in memory.
    monotonic : callable
        Seconds that never go back.
    """

    def __init__(
        self,
        rerun: Rerun,
        *,
        lookup: Callable[[str], PredictionRecord | None],
        monotonic: Callable[[], float],
    ) -> None:
        self._rerun = rerun
        self._lookup = lookup
        self._monotonic = monotonic
        self._running: asyncio.Task[Compared] | None = None
        self._given_up = False

    def __repr__(self) -> str:
        return f"<ComparisonBeside {'idle' if self._running is None else 'running'}>"

    @property
    def busy(self) -> bool:
        """Whether one runs, or is done and was not taken yet."""
        return self._running is not None

    def start(self, model: ModelWatch, harm: Harm, previous: int) -> None:
        """Compare the rows that the harm has now; does nothing while busy."""
        if self._running is None and not self._given_up:
            self._running = asyncio.create_task(self._compare(model, harm, previous))

    def take(self) -> Compared | None:
        """What has been compared since the last call, once."""
        if self._running is None or not self._running.done():
            return None
        done, self._running = self._running, None
        return done.result()

    async def settle(self, seconds: float) -> None:
        """Wait for what runs, at most `seconds`; what is not done by then ends at its next row and is never taken."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=seconds)
        self._given_up = True
        if self._running is not None and not self._running.done():
            self._running.cancel()
            self._running = None

    async def _compare(self, model: ModelWatch, harm: Harm, previous: int) -> Compared:
        rows = list(harm.rows)
        comparison = await asyncio.to_thread(self._run, model.policy, harm, rows, previous)
        return Compared(model, harm, previous, len(rows), comparison)

    def _run(self, policy: ModelPolicy, harm: Harm, rows: list[LabelledRow], previous: int) -> Comparison:
        until = self._monotonic() + _COMPARE_SECONDS
        try:
            return compare(
                rows,
                self._rerun,
                model=harm.alarm.model,
                version=previous,
                earlier=harm.pairs,
                policy=policy.quality,
                miss_above=harm.miss_above,
                false_rollback=policy.rollout.false_rollback,
                lookup=self._lookup,
                in_time=lambda: not self._given_up and self._monotonic() < until,
            )
        except Exception as error:  # whatever a model answers must not end the monitor
            return Comparison(previous, None, 0, f"it failed with {error!r}")
