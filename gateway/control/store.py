"""The store: versions and their approvals, routes, rollouts, and why each of them is as it is.

Every change is one transaction with its decision, and raises the revision that fronts and the supervisor follow.
Several processes may write at once; they take turns on one row.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.control import schema
from gateway.control.approvals import judge_version, register_version
from gateway.control.audit import GENESIS, verify
from gateway.control.change import (
    Change,
    Status,
    VersionState,
    decision_of,
    head_number,
    read_json,
    rollout_facts,
    rollout_of,
    route_of,
    shown_text,
    version_of,
)
from gateway.control.database import Database
from gateway.control.errors import Conflict, NotKnown, Refused, StoreAway, StoreError
from gateway.control.moves import (
    TRAFFIC_KINDS,
    move_rollout,
    remove_route,
    roll_back,
    set_route_by_hand,
    start_rollout,
)
from gateway.control.standing import Standing
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import Event, Phase, RolloutState
from gateway.rollout.plan import Plan
from gateway.routing.table import Route

__all__ = (
    "AuditReport",
    "Conflict",
    "NotKnown",
    "Refused",
    "Snapshot",
    "Status",
    "Store",
    "StoreAway",
    "StoreError",
    "VersionState",
)

PAGE = 1000


class Snapshot(msgspec.Struct, frozen=True):
    """All that fronts and the supervisor read, as it stood at one revision."""

    revision: int
    routes: dict[str, Route]
    versions: dict[tuple[str, int], VersionState]


class AuditReport(msgspec.Struct, frozen=True):
    """What a walk over the whole chain found.

    `first_bad` is None when no decision was touched. `differences` tells then which versions, routes and rollouts
    are not as the decisions left them.
    """

    decisions: int
    first_bad: int | None
    head: str
    differences: list[str] = []

    @property
    def ok(self) -> bool:
        return self.first_bad is None and not self.differences


def _draw_salt() -> str:
    return secrets.token_hex(8)


class Store:
    """The store at one database URL.

    Parameters
    ----------
    url : str
        `sqlite:///path` or `postgresql+psycopg://user:password@host/name`.
    clock : callable
        Seconds since 1970, for the time of decisions.
    draw : callable
        A fresh random text, for the salt of a trial.

    Raises
    ------
    StoreError
        The URL is of another kind. Every method raises `StoreAway` when the database does not answer.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time, draw: Callable[[], str] = _draw_salt):
        self._database = Database(url)
        self._clock = clock
        self._draw = draw

    def __repr__(self) -> str:
        return f"<Store {self._database!r}>"

    def create(self) -> None:
        """Make the tables, or check that those that are there are of this version.

        Raises
        ------
        StoreError
            The tables are of another version.
        """
        self._database.prepare()
        with self._database.writing() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7203141)"))
            if not sa.inspect(connection).has_table("head"):
                schema.metadata.create_all(connection)
                for statement in schema.append_only(self._database.dialect):
                    connection.exec_driver_sql(statement)
                connection.execute(
                    sa.insert(schema.head).values(
                        id=1,
                        schema_version=schema.SCHEMA_VERSION,
                        store=secrets.token_hex(7),
                        revision=0,
                        last_seq=0,
                        last_hash=GENESIS,
                    )
                )
            found = connection.execute(sa.select(schema.head.c.schema_version)).scalar_one()
        if found != schema.SCHEMA_VERSION:
            raise StoreError(f"{self!r} has schema {found}; this gateway works with {schema.SCHEMA_VERSION}")

    def close(self) -> None:
        self._database.close()

    def revision(self) -> int:
        """The number that every change raises; cheap enough to be asked several times a second."""
        with self._database.reading() as connection:
            return head_number(connection.execute(sa.select(schema.head.c.revision)).scalar_one())

    def snapshot(self) -> Snapshot:
        """Routes and versions of one moment."""
        with self._database.reading() as connection:
            revision = head_number(connection.execute(sa.select(schema.head.c.revision)).scalar_one())
            routes = [route_of(row) for row in connection.execute(sa.select(schema.routes)).mappings()]
            versions = [version_of(row) for row in connection.execute(sa.select(schema.versions)).mappings()]
        return Snapshot(
            revision,
            {route.model: route for route in routes},
            {(state.model, state.version): state for state in versions},
        )

    def register(self, model: str, version: int, digest: str) -> VersionState:
        """Make a version known by the digest of its files. Doing it again changes nothing.

        Raises
        ------
        Refused
            The version is approved with another digest; the attempt is recorded, once for each digest.
        """
        with self._change() as change:
            state = register_version(change, model, version, digest)
        if state.digest != digest:
            raise Refused(
                f"{model} version {version} is approved with {state.digest}, but its files have {digest}; "
                "put the approved files back, or add the changed model as a new version"
            )
        return state

    def approve(self, model: str, version: int, *, actor: str, reason: str, digest: str | None = None) -> VersionState:
        """Let a version be loaded and carry traffic: exactly the bytes whose digest is registered.

        Raises
        ------
        Conflict
            `digest`, the one the approver has looked at, is no longer that of the version.
        """
        with self._change() as change:
            return judge_version(change, model, version, status="approved", actor=actor, reason=reason, digest=digest)

    def reject(self, model: str, version: int, *, actor: str, reason: str, digest: str | None = None) -> VersionState:
        """Bar a version from traffic.

        Raises
        ------
        Refused
            The version carries traffic, or a rollout of it is open.
        """
        with self._change() as change:
            return judge_version(change, model, version, status="rejected", actor=actor, reason=reason, digest=digest)

    def set_route(
        self,
        model: str,
        *,
        stable: int,
        canary: int | None = None,
        weight: float = 0.0,
        actor: str,
        reason: str,
        kind: str = "route_set",
        evidence: dict[str, Any] | None = None,
        expected_revision: int | None = None,
    ) -> DecisionRecord:
        """Set a route by hand; a rollout that is open is superseded.

        Parameters
        ----------
        weight : float
            The canary's share, percent.
        expected_revision : int, optional
            The revision of the route the caller has seen (0: none yet).

        Raises
        ------
        Conflict
            The route has another revision by now.
        Refused
            A version is not approved, or the route cannot be served.
        """
        with self._change() as change:
            return set_route_by_hand(
                change,
                model,
                stable=stable,
                canary=canary,
                weight=weight,
                salt=self._draw(),
                actor=actor,
                reason=reason,
                kind=kind,
                evidence=evidence,
                expected_revision=expected_revision,
            )

    def remove_route(
        self, model: str, *, actor: str, reason: str, expected_revision: int | None = None
    ) -> DecisionRecord:
        """Leave a model without traffic, so that all its versions can be rejected; an open rollout is superseded.

        Raises
        ------
        Conflict
            The route has another revision by now than `expected_revision`.
        NotKnown
            The model has no route.
        """
        with self._change() as change:
            return remove_route(change, model, actor=actor, reason=reason, expected_revision=expected_revision)

    def start_rollout(
        self, model: str, canary: int, *, plan: dict[str, Any], actor: str, reason: str
    ) -> DecisionRecord:
        """Start a rollout at the first step of its plan (the fields of `gateway.rollout.plan.Plan`).

        Raises
        ------
        Refused
            Another canary is under way, the version is not approved, or the plan cannot be carried out.
        """
        with self._change() as change:
            return start_rollout(change, model, canary, plan=plan, salt=self._draw(), actor=actor, reason=reason)

    def move_rollout(
        self,
        rollout_id: str,
        event: Event,
        *,
        actor: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        expected_step: int | None = None,
        expected_phase: Phase | None = None,
    ) -> DecisionRecord:
        """Move a rollout by the table of `gateway.rollout.machine`; the route moves in the same transaction.

        After promote the canary is stable, after rollback and abort it is off the route.

        Parameters
        ----------
        expected_step, expected_phase : optional
            Where the rollout stood when the move was decided. Who decides on evidence names them, so that a second
            call takes no second step.

        Raises
        ------
        Refused
            The table does not have the move, or the rollout stands elsewhere by now; nothing was changed.
        """
        with self._change() as change:
            return move_rollout(
                change,
                rollout_id,
                event,
                actor=actor,
                reason=reason,
                evidence=evidence,
                expected_step=expected_step,
                expected_phase=expected_phase,
            )

    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        version: int | None = None,
        expected_trial: int | None = None,
        expected_rollout: str | None = None,
        expected_revision: int | None = None,
    ) -> DecisionRecord:
        """Take the canary off the route (its open rollout is rolled back), or, without one, go back to `previous`.

        Parameters
        ----------
        version : int, optional
            The version that shall be taken back. Who decides on evidence names it, so that a second call, or one
            that comes late, takes nothing else back. Naming the stable version takes an open rollout down with it.
        expected_trial, expected_rollout : optional
            The trial, and the open rollout ("" for none), in which that was decided. Who decides on a trial's evidence
            names them, so that a call that comes late takes no later trial of the same version back.
        expected_revision : int, optional
            The revision of the route the caller has seen.

        Raises
        ------
        Conflict
            The route has another revision by now.
        Refused
            There is nothing to take back, nothing approved to go back to, or another trial or rollout by now.
        """
        with self._change() as change:
            return roll_back(
                change,
                model,
                version=version,
                expected_trial=expected_trial,
                expected_rollout=expected_rollout,
                actor=actor,
                reason=reason,
                evidence=evidence,
                expected_revision=expected_revision,
            )

    def rollout(self, model: str) -> RolloutState | None:
        """The open rollout of a model."""
        table = schema.rollouts
        with self._database.reading() as connection:
            found = (
                connection.execute(sa.select(table.c.state).where(table.c.model == model, table.c.is_open))
                .mappings()
                .one_or_none()
            )
        return None if found is None else rollout_of(found)

    def rollouts(self, model: str | None = None, limit: int = 20) -> list[RolloutState]:
        """Rollouts, the newest first."""
        table = schema.rollouts
        query = sa.select(table.c.state).order_by(table.c.started_seq.desc()).limit(limit)
        if model is not None:
            query = query.where(table.c.model == model)
        with self._database.reading() as connection:
            return [rollout_of(row) for row in connection.execute(query).mappings()]

    def rollout_by_id(self, rollout_id: str) -> RolloutState:
        """One rollout, open or over.

        Raises
        ------
        NotKnown
            There is no such rollout.
        """
        table = schema.rollouts
        with self._database.reading() as connection:
            query = sa.select(table.c.state).where(table.c.id == rollout_id)
            found = connection.execute(query).mappings().one_or_none()
        if found is None:
            raise NotKnown(f"there is no rollout {rollout_id}")
        return rollout_of(found)

    def plan(self, rollout_id: str) -> Plan:
        """The plan a rollout was started with.

        Raises
        ------
        NotKnown
            There is no such rollout.
        """
        table = schema.rollouts
        with self._database.reading() as connection:
            text = connection.execute(sa.select(table.c.plan).where(table.c.id == rollout_id)).scalar_one_or_none()
        if text is None:
            raise NotKnown(f"there is no rollout {rollout_id}")
        return read_json(text, Plan, what=f"the plan of {rollout_id}")

    def decide(
        self,
        model: str,
        *,
        kind: str,
        actor: str,
        reason: str,
        before: dict[str, Any],
        after: dict[str, Any],
        evidence: dict[str, Any],
    ) -> DecisionRecord:
        """Record a decision that changes nothing: an alarm, a changed world, a request to retrain."""
        with self._change() as change:
            return change.decide(
                model, kind=kind, actor=actor, reason=reason, before=before, after=after, evidence=evidence
            )

    def decisions(
        self, *, after_seq: int = 0, model: str | None = None, limit: int = 100, newest: bool = False
    ) -> list[DecisionRecord]:
        """Decisions in their order, at most `limit` of those after `after_seq`: the first ones, or the newest."""
        seq = schema.decisions.c.seq
        query = sa.select(schema.decisions).where(seq > after_seq)
        if model is not None:
            query = query.where(schema.decisions.c.model == model)
        found = self._read_decisions(query.order_by(seq.desc() if newest else seq).limit(limit))
        return found[::-1] if newest else found

    def approval(self, model: str, version: int, digest: str, *, until: str | None = None) -> DecisionRecord | None:
        """The last approval of exactly these bytes until a time (ISO 8601, UTC), or until now; else the first one."""
        table = schema.decisions
        approved = self._read_decisions(
            sa.select(table)
            .where(table.c.model == model, table.c.kind == "version_approved")
            .order_by(table.c.seq.desc())
        )
        wanted = {"version": version, "digest": digest, "status": "approved"}
        found = [one for one in approved if one.after == wanted]
        # What served had been approved, also by a clock that goes after that of the store.
        return next((one for one in found if until is None or one.time <= until), found[-1] if found else None)

    def route_decisions(self, model: str, *, until: str | None = None, limit: int = 20) -> list[DecisionRecord]:
        """Decisions that moved the model's traffic until a time (ISO 8601, UTC), or until now, the newest first."""
        table = schema.decisions
        query = sa.select(table).where(table.c.model == model, table.c.kind.in_(TRAFFIC_KINDS))
        if until is not None:
            query = query.where(table.c.time <= until)
        return self._read_decisions(query.order_by(table.c.seq.desc()).limit(limit))

    def _read_decisions(self, query: sa.Select[Any]) -> list[DecisionRecord]:
        with self._database.reading(any_text=True) as connection:
            rows = connection.execute(query).mappings().all()
        # SQLite takes anything for a number; a row without one has no place here, and the audit names it.
        return [decision_of(row) for row in rows if isinstance(row["seq"], int)]

    def audit(self) -> AuditReport:
        """Walk the whole chain, compare its end with the head, and what else the store says with what it says."""
        standing = Standing()
        differences: list[str] = []
        with self._database.reading(any_text=True) as connection:
            head = connection.execute(sa.select(schema.head)).one()
            last_seq = head.last_seq if isinstance(head.last_seq, int) else 0
            first_bad = verify(standing.follow(_walk(connection)), last_seq=last_seq, last_hash=head.last_hash)
            if first_bad is None:
                versions = [version_of(row) for row in connection.execute(sa.select(schema.versions)).mappings()]
                routes = [route_of(row) for row in connection.execute(sa.select(schema.routes)).mappings()]
                differences = standing.differences(versions, routes, _rollouts(connection))
        return AuditReport(last_seq, first_bad, shown_text(head.last_hash), differences)

    @contextmanager
    def _change(self) -> Iterator[Change]:
        with self._database.writing() as connection:
            change = Change(connection, now=self._clock())
            yield change
            change.finish()


def _rollouts(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    table = schema.rollouts
    # SQLite keeps any value where a truth shall be, and SQLAlchemy would take each for true.
    is_open = sa.type_coerce(table.c.is_open, sa.Integer).label("is_open")
    query = sa.select(table.c.id, table.c.model, table.c.started_seq, is_open, table.c.state, table.c.plan)
    return {shown_text(row["id"]): rollout_facts(row) for row in connection.execute(query).mappings()}


def _walk(connection: sa.Connection) -> Iterator[DecisionRecord]:
    table = schema.decisions
    first = sa.select(table).order_by(table.c.seq).limit(PAGE)
    query = first
    while True:
        page = connection.execute(query).mappings().all()
        yield from (decision_of(row) for row in page)
        if len(page) < PAGE:
            return
        query = first.where(table.c.seq > page[-1]["seq"])
