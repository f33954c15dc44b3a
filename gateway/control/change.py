"""One writing transaction on the store: whoever holds a `Change` is the only writer.

It reads what is there, puts what shall be, appends decisions to the chain, and at the end moves the head: all of it
or nothing is seen by others.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import msgspec
import orjson
import sqlalchemy as sa

from gateway.control import schema
from gateway.control.audit import canonical, seal
from gateway.control.errors import NotKnown, Refused, StoreError
from gateway.events.addresses import format_id
from gateway.events.records import SCHEMA, DecisionRecord
from gateway.protocol.mistakes import told_mistake
from gateway.rollout.machine import RolloutState
from gateway.rollout.plan import Plan
from gateway.routing.table import Route

__all__ = (
    "MAX_WORDS",
    "Change",
    "Status",
    "VersionState",
    "decision_of",
    "head_number",
    "read_json",
    "rollout_facts",
    "rollout_of",
    "route_of",
    "shown_text",
    "version_of",
)

Status = Literal["registered", "approved", "rejected"]

MAX_WORDS = 2000
"""Characters in a reason; an actor may have a tenth. Argo and GitHub cut such texts at 1 to 4 thousand."""

Read = TypeVar("Read")

_OBJECTS = ("before", "after", "evidence")


class VersionState(msgspec.Struct, frozen=True):
    """What the store knows of one version; `digest` is the one that was registered, and approved with it."""

    model: str
    version: int
    digest: str
    status: Status


class Change:
    """The store, locked for one change.

    Parameters
    ----------
    connection : sqlalchemy.Connection
        In a writing transaction.
    now : float
        Seconds since 1970 that the decisions of this change carry.

    Raises
    ------
    StoreError
        The store was never created.
    """

    def __init__(self, connection: sa.Connection, *, now: float) -> None:
        self._connection = connection
        row = connection.execute(sa.select(schema.head).with_for_update()).one_or_none()
        if row is None:
            raise StoreError("the store is empty; `gateway serve` creates it")
        self._store: str = row.store
        self._revision = head_number(row.revision)
        self._seq = head_number(row.last_seq)
        self._hash: str = row.last_hash
        self._found_hash = self._hash
        self._changed = False
        self._time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def time(self) -> str:
        return self._time

    @property
    def revision(self) -> int:
        """The revision this change will leave behind; asking for it makes it one that others must read."""
        self._changed = True
        return self._revision + 1

    @property
    def next_seq(self) -> int:
        return self._seq + 1

    def version(self, model: str, version: int) -> VersionState | None:
        table = schema.versions
        found = (
            self._connection.execute(sa.select(table).where(table.c.model == model, table.c.version == version))
            .mappings()
            .one_or_none()
        )
        return None if found is None else version_of(found)

    def known_version(self, model: str, version: int) -> VersionState:
        state = self.version(model, version)
        if state is None:
            raise NotKnown(f"model {model} has no registered version {version}")
        return state

    def put_version(self, state: VersionState) -> None:
        table = schema.versions
        self._put(table, state, (table.c.model == state.model) & (table.c.version == state.version))

    def route(self, model: str) -> Route | None:
        table = schema.routes
        found = self._connection.execute(sa.select(table).where(table.c.model == model)).mappings().one_or_none()
        return None if found is None else route_of(found)

    def put_route(self, route: Route) -> None:
        self._put(schema.routes, route, schema.routes.c.model == route.model)

    def remove_route(self, model: str) -> None:
        self._changed = True
        self._connection.execute(sa.delete(schema.routes).where(schema.routes.c.model == model))

    def open_rollout(self, model: str) -> RolloutState | None:
        table = schema.rollouts
        found = (
            self._connection.execute(sa.select(table.c.state).where(table.c.model == model, table.c.is_open))
            .mappings()
            .one_or_none()
        )
        return None if found is None else rollout_of(found)

    def rollout(self, rollout_id: str) -> RolloutState:
        table = schema.rollouts
        found = (
            self._connection.execute(sa.select(table.c.state).where(table.c.id == rollout_id)).mappings().one_or_none()
        )
        if found is None:
            raise NotKnown(f"there is no rollout {rollout_id}")
        return rollout_of(found)

    def add_rollout(self, state: RolloutState, *, plan: Plan) -> None:
        self._connection.execute(
            sa.insert(schema.rollouts).values(
                id=state.id,
                model=state.model,
                started_seq=self.next_seq,
                is_open=not state.over,
                state=msgspec.json.encode(state).decode(),
                plan=msgspec.json.encode(plan).decode(),
            )
        )

    def put_rollout(self, state: RolloutState) -> None:
        self._connection.execute(
            sa.update(schema.rollouts)
            .where(schema.rollouts.c.id == state.id)
            .values(is_open=not state.over, state=msgspec.json.encode(state).decode())
        )

    def last_decision(self, model: str, kind: str) -> DecisionRecord | None:
        table = schema.decisions
        found = (
            self._connection.execute(
                sa.select(table)
                .where(table.c.model == model, table.c.kind == kind)
                .order_by(table.c.seq.desc())
                .limit(1)
            )
            .mappings()
            .one_or_none()
        )
        return None if found is None else decision_of(found)

    def decide(
        self,
        model: str,
        *,
        kind: str,
        actor: str,
        reason: str,
        before: dict[str, Any],
        after: dict[str, Any],
        evidence: dict[str, Any] | None = None,
    ) -> DecisionRecord:
        """Append one decision to the chain."""
        _check_words(actor, "actor", MAX_WORDS // 10)
        _check_words(reason, "reason", MAX_WORDS)
        self._seq += 1
        record = seal(
            DecisionRecord(
                seq=self._seq,
                id=format_id(self._store, self._seq),
                time=self._time,
                model=model,
                kind=kind,
                actor=actor,
                reason=reason,
                before=_plain(before, "before"),
                after=_plain(after, "after"),
                evidence=_plain(evidence or {}, "evidence"),
                prev_hash=self._hash,
                hash="",
            )
        )
        self._hash = record.hash
        fields = msgspec.structs.asdict(record)
        texts = {name: canonical(fields[name]).decode() for name in _OBJECTS}
        self._connection.execute(sa.insert(schema.decisions).values({**fields, **texts}))
        return record

    def finish(self) -> None:
        """Move the head; the transaction may commit then."""
        if not self._changed and self._hash == self._found_hash:
            return
        self._connection.execute(
            sa.update(schema.head).values(
                revision=self._revision + self._changed, last_seq=self._seq, last_hash=self._hash
            )
        )

    def _put(self, table: sa.Table, row: msgspec.Struct, where: sa.ColumnElement[bool]) -> None:
        self._changed = True
        values = msgspec.structs.asdict(row)
        if self._connection.execute(sa.update(table).where(where).values(values)).rowcount == 0:
            self._connection.execute(sa.insert(table).values(values))


def route_of(row: sa.RowMapping) -> Route:
    return Route(**row)


def version_of(row: sa.RowMapping) -> VersionState:
    return VersionState(**row)


def rollout_of(row: sa.RowMapping) -> RolloutState:
    return read_json(row["state"], RolloutState, what="the state of a rollout")


def read_json(text: str, kind: type[Read], *, what: str) -> Read:
    """What a column of JSON holds.

    Raises
    ------
    StoreError
        Somebody has made it unreadable.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, TypeError) as error:
        raise _unreadable(what, told_mistake(error, kind)) from None


def head_number(value: object) -> int:
    """A number of the head; SQLite takes anything for one.

    Raises
    ------
    StoreError
        Somebody has made it none.
    """
    if not isinstance(value, int):
        raise _unreadable("the head of all decisions", f"{shown_text(value)!r} is no whole number")
    return value


def _unreadable(what: str, why: str) -> StoreError:
    text = f"the store was changed past the gateway, {what} cannot be read: {why}"
    return StoreError(f"{text}; `gateway audit verify` tells more")


def rollout_facts(row: sa.RowMapping) -> dict[str, Any]:
    """What a row says of a rollout, plain; what somebody has made unreadable is as it stands there."""
    plain = {name: row[name] for name in ("model", "started_seq", "is_open")}
    return plain | {name: _read(row[name]) for name in ("state", "plan")}


def decision_of(row: sa.RowMapping) -> DecisionRecord:
    """The decision in a row. One that somebody has made unreadable is shown as far as it goes, without its hash."""
    fields = {str(name): value for name, value in row.items()}
    try:
        for name in _OBJECTS:
            fields[name] = orjson.loads(fields[name])
        canonical(fields)
        return msgspec.convert(fields, DecisionRecord)
    except (ValueError, msgspec.ValidationError):
        shown: dict[str, Any] = {str(name): shown_text(value) for name, value in row.items()}
        objects = {name: {"unreadable": shown[name]} for name in _OBJECTS}
        seq = row["seq"] if isinstance(row["seq"], int) else sys.maxsize
        return DecisionRecord(**{**shown, **objects, "seq": seq, "prev_hash": "", "hash": "", "schema": SCHEMA})


def shown_text(value: object) -> str:
    """A value of any column as text that can be written anywhere."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _read(text: Any) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _plain(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The value as a reader will find it, so that the hash is over what is stored."""
    try:
        plain = orjson.loads(canonical(value))
    except ValueError as error:
        raise Refused(f"{name} of a decision: {error}") from None
    return dict(plain)


def _check_words(text: str, name: str, limit: int) -> None:
    if len(text) > limit:
        raise Refused(f"{name} has {len(text)} characters; {limit} are allowed")
    if "\x00" in text or not text.isprintable() and any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
        raise Refused(f"{name} holds a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{name} is no valid Unicode text") from None
