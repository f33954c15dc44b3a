"""The monitor: reads the log, keeps evidence, and turns it into decisions."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.control.act import Actor
from gateway.control.beside import ComparisonBeside
from gateway.control.block import BlockReader
from gateway.control.checkpoint import CheckpointFile, replace_file
from gateway.control.compare import Rerun
from gateway.control.decisions import Comparison, Move
from gateway.control.engines import Engines
from gateway.control.following import ControlStore, StoreView
from gateway.control.gauges import Metrics, NoMetrics
from gateway.control.history import Trials
from gateway.control.join import JoinState, LabelJoin, LabelledRow
from gateway.control.lock import held_lock
from gateway.control.logged import read_prediction
from gateway.control.model import Harm, ModelState, ModelWatch
from gateway.control.outbox import Outbox
from gateway.control.status import describe_model
from gateway.control.versions import Versions
from gateway.events.blocks import BlockError
from gateway.events.encoding import RecordError, decode, seconds_of
from gateway.events.records import KIND_BLOCK, KIND_DECISION, KIND_PREDICTION, SCHEMA, FeedbackRecord, PredictionRecord
from gateway.predictions.segments import LogRecord, expanded
from gateway.predictions.source import LogSource
from gateway.predictions.spool import SpoolError
from gateway.repository.policy import ModelPolicy
from gateway.routing.table import Route
from gateway.settings import MonitorSettings

__all__ = ("Checkpoint", "Monitor", "OpenSource")

OpenSource = Callable[[dict[str, Any] | None, Literal["earliest", "latest"]], Awaitable[LogSource]]
"""Opens the log at a position, or at one of its ends when there is none."""

_READ_AT_ONCE = 256
"""Records that are read in one turn, so that a turn is over in milliseconds: others answer requests on these cores."""

_BREATH_SECONDS = 0.0005
"""Between two turns: who waits for a core need not wait for a time slice of ours to end."""

_GATHER_SECONDS = 0.02
"""Before the next turn where all has been read: many records cost little more than one."""

_STATUS_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
"""The longest that closing waits for a comparison; one that is given up begins again at the next start."""

_LOOKUP_SECONDS = 0.05
"""The longest that one flush looks in the log for predictions that labels name; who sends labels may invent ids."""


class Checkpoint(msgspec.Struct):
    """Where reading of which log goes on, and everything that was known there."""

    position: dict[str, Any]
    models: dict[str, ModelState]
    join: JoinState
    trials: Trials
    pending: list[Move]
    skipped: dict[str, int]
    source: str = ""


class Monitor:
    """One process's watch over all models.

    Parameters
    ----------
    open_source : callable
        Opens the log where the checkpoint says.
    source : str
        Which log that is; what a checkpoint says of another one does not count.
    store : ControlStore
        Routes, rollouts and decisions.
    versions : Versions
        Policies and reference profiles.
    state_dir : Path
        Checkpoint, lock and status lie in `monitor/` below it.
    settings : MonitorSettings
    rerun : Rerun
        Runs a previous version on logged rows.
    lookup : callable
        Finds a prediction by its id in the log; None when it is not there.
    engines : Engines, optional
        Tells which versions are out of service.
    outbox : Outbox, optional
        Brings the store's decisions to the log.
    metrics : Metrics
    note : callable
        Takes one sentence for the process log.
    clock, monotonic : callable
        Seconds since 1970, and seconds that never go back.
    """

    def __init__(
        self,
        open_source: OpenSource,
        store: ControlStore,
        *,
        source: str,
        versions: Versions,
        state_dir: Path,
        settings: MonitorSettings,
        rerun: Rerun,
        lookup: Callable[[str], PredictionRecord | None],
        engines: Engines | None = None,
        outbox: Outbox | None = None,
        metrics: Metrics | None = None,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_source = open_source
        self._source_name = source
        self._store = store
        self._versions = versions
        self._folder = state_dir / "monitor"
        self._settings = settings
        self._lookup = lookup
        self._engines = engines
        self._outbox = outbox
        self._metrics = metrics or NoMetrics()
        self._note = note
        self._clock = clock
        self._monotonic = monotonic
        self._beside = ComparisonBeside(rerun, lookup=self._look_up, monotonic=monotonic)
        self._checkpoints = CheckpointFile(self._folder / "checkpoint.msgpack", Checkpoint)
        self._actor = Actor(store, note=note)
        self._blocks = BlockReader()
        self._join = LabelJoin(self._quality_output, max_predictions=settings.join_predictions)
        self._following = StoreView(store, metrics=self._metrics, note=note)
        self._restored: dict[str, ModelState] = {}
        self._unfollowed: dict[str, str] = {}
        self._source: LogSource | None = None
        self._found: list[tuple[str, PredictionRecord | None]] = []
        self._delays: dict[str, list[float]] = {}
        self._counted_feedback: dict[str, dict[str, int]] = {}
        self.models: dict[str, ModelWatch] = {}
        self.skipped: dict[str, int] = {}
        self.read = 0

    def __repr__(self) -> str:
        return f"<Monitor read={self.read} models={sorted(self.models)} skipped={self.skipped} {self._actor!r}>"

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set; waits first while another monitor holds the lock.

        Raises
        ------
        OSError
            The state directory cannot be written at all.
        """
        async with held_lock(self._folder / "lock", stop) as ours:
            if not ours:
                return
            with _rare_collections():
                await self.start(stop)
                try:
                    await self._watch(stop)
                finally:
                    await self.close()

    async def start(self, stop: asyncio.Event) -> None:
        """Read the checkpoint, wait for the store, open the log."""
        checkpoint, note = self._checkpoints.read()
        if note:
            self._note(note)
        if checkpoint is not None and checkpoint.source != self._source_name:
            note = f"the log is read from {self._source_name} now, from its end on, and evidence is collected anew"
            self._note(note)
            checkpoint = _without_evidence(checkpoint)
        if checkpoint is not None:
            self._take_over(checkpoint)
        while not await self.refresh() and not stop.is_set():
            await _wait(stop, self._settings.flush_seconds)
        position = checkpoint.position if checkpoint is not None and checkpoint.source == self._source_name else None
        self._source = await self._open_source(position, "latest" if note else "earliest")

    async def step(self, timeout_seconds: float) -> int:
        """Read once, 256 records at most and what is left of a block; returns how many came."""
        if self._source is None:
            raise RuntimeError("the monitor was not started")
        records = await self._source.read(_READ_AT_ONCE, timeout_seconds)
        before = self.read
        self.take(records)
        return self.read - before

    def take(self, records: Iterable[LogRecord]) -> None:
        """Take records of the log; one that cannot be used is counted and passed over."""
        for record in records:
            numbers = 1
            try:
                if record.kind == KIND_BLOCK:
                    numbers = record.numbers
                    reason = self._take_block(record)
                else:
                    reason = self._take_one(record)
            except (RecordError, BlockError):
                reason = "not a record"
            except Exception as error:  # a record must never end the monitor, whatever is in it
                reason = "failed"
                self._note(f"record {record.boot}-{record.sequence:010x} was passed over: {error!r}")
            self.read += numbers
            if reason:
                self.skipped[reason] = self.skipped.get(reason, 0) + numbers

    async def flush(self) -> None:
        """Look at the evidence, and act on it; only then look for the predictions of labels that waited too long."""
        await self.refresh()
        self._take_found()
        harms: list[tuple[ModelWatch, Harm]] = []
        for model in list(self.models.values()):
            try:
                findings = model.flush(self._hours_since, previous=self._previous_of(model))
            except Exception as error:  # one model's evidence must not end the watch over the others
                self._note(f"{model.route.model} is watched anew: {error!r}")
                del self.models[model.route.model]
                self._follow_routes()
                continue
            for note in findings.notes:
                self._note(note)
            for alarm in findings.alarms:
                self._metrics.alarm(alarm)
            self._actor.add(findings.moves)
            harms += [(model, harm) for harm in findings.harms]
        self._take_compared()
        for model, harm in harms:
            if not self._beside.busy:
                self._compare(model, harm)
        await self._act()
        await self.publish()
        await self._look_for_overdue()

    async def refresh(self) -> bool:
        """Follow the store; False while it is away and was never read."""
        if await asyncio.to_thread(self._following.read):
            self._follow_routes()
        return self._following.snapshot is not None

    def checkpoint(self) -> None:
        """Write where we are; call it right after a flush, when no row is in between."""
        if self._source is None:
            return
        # What was restored waits for the store, and longer where a model cannot be followed: it is still known.
        models = self._restored | {name: model.state() for name, model in self.models.items()}
        state = Checkpoint(
            self._source.position(),
            models,
            self._join.state(),
            self._following.trials,
            self._actor.pending,
            self.skipped,
            self._source_name,
        )
        try:
            self._checkpoints.write(state)
        except OSError as error:
            self._note(f"the checkpoint could not be written: {error.strerror}")

    def write_status(self) -> None:
        """Write `status.json`, and the gauges."""
        self._show_feedback()
        self._metrics.show(self.models.values(), lag_events=self._source.lag_events() if self._source else 0)
        status = {
            "time": self._clock(),
            "read": self.read,
            "skipped": self.skipped,
            "feedback": self._join.counts,
            "waiting_labels": self._join.waiting,
            "pending_decisions": len(self._actor.pending),
            "store_away": self._following.away,
            "models": {
                name: describe_model(model, notes=self._versions.notes(name), feedback=self._join.counts.get(name, {}))
                for name, model in sorted(self.models.items())
            },
        }
        try:
            replace_file(self._folder / "status.json", msgspec.json.encode(status))
        except OSError as error:
            self._note(f"the status could not be written: {error.strerror}")

    async def close(self) -> None:
        """Flush, checkpoint and let go of the log."""
        if self._source is None:
            return
        await self.flush()
        if self._beside.busy:
            await self._beside.settle(_CLOSE_SECONDS)
            await self.flush()
        self.checkpoint()
        self.write_status()
        await self._source.commit()
        await self._source.close()
        self._source = None

    async def _watch(self, stop: asyncio.Event) -> None:
        settings = self._settings
        now = self._monotonic()
        flush_at, checkpoint_at, status_at = now + settings.flush_seconds, now + settings.checkpoint_seconds, now
        while not stop.is_set():
            try:
                read = await self.step(min(max(flush_at - self._monotonic(), 0.0), settings.flush_seconds))
                if read:
                    await asyncio.sleep(_BREATH_SECONDS if read >= _READ_AT_ONCE else _GATHER_SECONDS)
            except (SpoolError, OSError) as error:
                self._note(f"the log cannot be read, trying again: {error}")
                await _wait(stop, _STATUS_SECONDS)
            now = self._monotonic()
            if now < flush_at:
                continue
            await self.flush()
            flush_at = self._monotonic() + settings.flush_seconds
            if now >= checkpoint_at:
                self.checkpoint()
                if self._source is not None:
                    await self._source.commit()
                checkpoint_at = now + settings.checkpoint_seconds
            if now >= status_at:
                self.write_status()
                status_at = now + _STATUS_SECONDS

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self._restored = checkpoint.models
        self._join.restore(checkpoint.join, self._monotonic())
        self._counted_feedback = {model: dict(counts) for model, counts in checkpoint.join.counts.items()}
        self._following.trials = checkpoint.trials
        self._actor.add(checkpoint.pending)
        self.skipped = checkpoint.skipped

    def _take_one(self, record: LogRecord) -> str:
        if record.kind == KIND_DECISION:
            return ""
        event = (
            read_prediction(record.payload) if record.kind == KIND_PREDICTION else decode(record.kind, record.payload)
        )
        if event.schema > SCHEMA:
            return "schema of a later version"
        model = self.models.get(event.model)
        if model is None:
            return "unknown model"
        if isinstance(event, PredictionRecord):
            return self._take_prediction(model, event, record.payload)
        if isinstance(event, FeedbackRecord):
            joined = self._join.add_feedback(event, self._monotonic())
            self._take_labels([joined] if joined is not None else [])
        return ""

    def _take_block(self, record: LogRecord) -> str:
        block = self._blocks.read(record)
        if block is None:
            self.take(expanded(record))
            self.read -= record.numbers
            return ""
        head = block.head
        if head.schema > SCHEMA:
            return "schema of a later version"
        model = self.models.get(head.model)
        if model is None:
            return "unknown model"
        if not self._following.knows(head.model, head.version):
            return "unknown version"
        model.add_block(block)
        self._take_labels(self._join.add_block(block))
        return ""

    def _take_prediction(self, model: ModelWatch, event: PredictionRecord, payload: bytes) -> str:
        if not self._following.knows(event.model, event.version):
            return "unknown version"
        model.add_prediction(event)
        self._take_labels(self._join.add_prediction(event, payload))
        return ""

    def _take_labels(self, rows: list[LabelledRow]) -> None:
        for row in rows:
            model = self.models.get(row.model)
            if model is not None:
                model.add_label(row)
                self._delays.setdefault(row.model, []).append(row.delay_seconds)

    async def _look_for_overdue(self) -> None:
        """Look up what fits into the time; it is taken at the next flush, until then its labels still wait."""
        overdue = self._join.overdue(self._monotonic())
        if overdue:
            self._found = await asyncio.to_thread(self._look_up_in_time, overdue)

    def _look_up_in_time(self, overdue: list[str]) -> list[tuple[str, PredictionRecord | None]]:
        until = self._monotonic() + _LOOKUP_SECONDS
        found = []
        for prediction_id in overdue:
            found.append((prediction_id, self._look_up(prediction_id)))
            if self._monotonic() >= until:
                break
        return found

    def _take_found(self) -> None:
        found, self._found = self._found, []
        for prediction_id, record in found:
            self._take_labels(self._join.resolve(prediction_id, record))

    def _look_up(self, prediction_id: str) -> PredictionRecord | None:
        try:
            return self._lookup(prediction_id)
        except (ValueError, OSError):
            return None

    def _follow_routes(self) -> None:
        following = self._following
        if following.snapshot is None:
            return
        self._versions.follow(following.snapshot.versions.values())
        routes = following.snapshot.routes
        for name, route in routes.items():
            try:
                self._follow(name, route)
            except Exception as error:  # one model's policy or plan must not end the watch over the others
                if self._unfollowed.get(name) != repr(error):
                    self._unfollowed[name] = repr(error)
                    self._note(f"{name} cannot be followed, it is watched as before: {error!r}")
            else:
                self._unfollowed.pop(name, None)
        for known in (self.models, self._restored):
            for name in known.keys() - routes.keys():
                del known[name]
        for note in self._versions.news():
            self._note(note)

    def _follow(self, name: str, route: Route) -> None:
        """Follow one model's route and policy; where the policy cannot be followed, the one before stays."""
        policy, watched, news = self._versions.policy(name), self.models.get(name), ""
        if watched is not None:
            if watched.policy != policy:
                news = f"model.toml of {name} has changed"
            elif any(self._versions.profile(name, version) for version in watched.without_profile):
                news = f"a profile of {name} that was missing is there"
            else:
                self._tell(watched, route)
                return
        try:
            model = self._watch_over(route, policy)
        except Exception:
            if watched is not None:
                self._tell(watched, route)
            raise
        if news:
            self._note(f"{news}; its evidence is collected anew")
        self.models[name] = model

    def _watch_over(self, route: Route, policy: ModelPolicy) -> ModelWatch:
        model = ModelWatch(
            route,
            policy=policy,
            versions=self._versions,
            flush_seconds=self._settings.flush_seconds,
            engines=self._engines,
        )
        notes = model.restore(self._restored.get(route.model, ModelState()), approved=self._approved(route.model))
        self._tell(model, route)
        self._restored.pop(route.model, None)
        for note in notes:
            self._note(note)
        return model

    def _tell(self, model: ModelWatch, route: Route) -> None:
        following, name = self._following, route.model
        model.follow(
            route,
            rollout=following.rollouts.get(name),
            start=following.trials.starts.get(name),
            plan=following.plans.get(name),
            approved=self._approved(name),
        )

    def _approved(self, model: str) -> Callable[[int], bool]:
        return lambda version: self._following.approved(model, version)

    def _previous_of(self, model: ModelWatch) -> int | None:
        previous = model.route.previous
        if previous is None or not self._following.approved(model.route.model, previous):
            return None
        return previous

    async def _act(self) -> None:
        if not self._actor.pending:
            return
        done = await asyncio.to_thread(self._actor.act)
        if done or not self._actor.pending:
            for decision in done:
                self._note(f"{decision.kind} of {decision.model}: {decision.reason}")
            await self.refresh()
            # What has been decided is never decided again after a crash, so it is written down at once.
            self.checkpoint()

    async def publish(self) -> None:
        """Bring the store's decisions to the log."""
        if self._outbox is not None:
            await asyncio.to_thread(self._outbox.publish)

    def _compare(self, model: ModelWatch, harm: Harm) -> None:
        previous = self._previous_of(model)
        if previous is None or harm.alarm.version != model.route.stable:
            self._decide_unchanged(model, harm)
        else:
            self._beside.start(model, harm, previous)

    def _take_compared(self) -> None:
        done = self._beside.take()
        if done is None or self.models.get(done.model.route.model) is not done.model:
            return
        model, harm, previous = done.model, done.harm, self._previous_of(done.model)
        if previous != done.previous or harm.alarm.version != model.route.stable:
            self._decide_unchanged(model, harm)
        else:
            self._actor.add(model.decide_compared(harm, done.comparison, rows=done.rows, previous=previous))

    def _decide_unchanged(self, model: ModelWatch, harm: Harm) -> None:
        changed = Comparison(0, None, 0, "the route has changed")
        self._actor.add(model.decide_compared(harm, changed, rows=len(harm.rows), previous=None))

    def _quality_output(self, model: str) -> str:
        # Asked for each prediction: the policy that is followed, not the file it came from.
        watched = self.models.get(model)
        return (watched.policy if watched is not None else self._versions.policy(model)).quality.output

    def _hours_since(self, time_text: str) -> float:
        try:
            return max(0.0, self._clock() - seconds_of(time_text)) / 3600.0
        except RecordError:
            return 0.0

    def _show_feedback(self) -> None:
        for model, counts in self._join.counts.items():
            shown = self._counted_feedback.setdefault(model, {})
            for state, count in counts.items():
                if count > shown.get(state, 0):
                    self._metrics.feedback(model, state, count - shown.get(state, 0))
                    shown[state] = count
        delays, self._delays = self._delays, {}
        for model, seconds in delays.items():
            self._metrics.delays(model, seconds)


def _without_evidence(checkpoint: Checkpoint) -> Checkpoint:
    """What still holds when another log is read: what the store said, and what waits for it."""
    join = JoinState([], [], [], checkpoint.join.counts)
    return msgspec.structs.replace(checkpoint, position={}, models={}, join=join)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the collector of cycles run rarely: records make none, and looking for some costs as much as decoding."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
