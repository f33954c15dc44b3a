"""The judge of the prediction log: what clients wrote down against what spool, topic and dead letters hold.

A client's `History` is a file of its own, written line by line: every request before it is sent, every answer as it
came. After the run `check` compares any number of histories with the entries of the log:

- an answer that names a prediction is in the log at least once, with the same request, status and outputs;
- a request in the log was sent, and no request was answered as two predictions;
- what one boot says of one model is in one lane (a spool's stream, a topic's partition), and its sequences never go
  back there, but for repetitions;
- repetitions carry equal bytes, and the spool holds none.

`gaps` counts the numbers that a boot has used and the spool does not hold: what was dropped, or what is lost.

`check_counts` holds the metrics against the same entries: served is logged. Source of the manner: Jepsen's histories
and checkers (Kingsbury, jepsen.io).
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.events.addresses import format_id, parse_id
from gateway.events.records import KIND_PREDICTION, PredictionRecord
from gateway.predictions.dead_letters import DEAD_LETTERS_NAME, OLDER_NAME, DeadLetter
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import list_streams
from gateway.telemetry.exposition import collect
from tests.brokers import consume

__all__ = (
    "Counts",
    "Entry",
    "History",
    "Operation",
    "Verdict",
    "check",
    "check_counts",
    "counts_of",
    "dead_letters",
    "read_history",
    "spooled",
    "topic",
)

KAFKA_SECONDS = 60.0


class Operation(msgspec.Struct):
    """One request of a client and how it ended: `status` is None when no answer came.

    Times are seconds since 1970.
    """

    request_id: str
    sent: float
    received: float | None = None
    status: int | None = None
    prediction_id: str = ""
    outputs: list[list[Any]] | None = None


class History:
    """A client's own file of what it sent and was answered; a line is on its way to the file before the next step.

    Parameters
    ----------
    path : Path
        Created, or continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def sent(self, request_id: str, *, at: float) -> None:
        """Write down a request that is about to leave."""
        self._write(Operation(request_id, at))

    def answered(
        self, request_id: str, *, sent: float, received: float, status: int, prediction_id: str, body: Any
    ) -> None:
        """Write down an answer, whatever its status."""
        outputs = [output.get("data") for output in body["outputs"]] if status == 200 else None
        self._write(Operation(request_id, sent, received, status, prediction_id, outputs))

    def close(self) -> None:
        self._file.close()

    def _write(self, operation: Operation) -> None:
        line = msgspec.json.encode(operation) + b"\n"
        with self._lock:
            self._file.write(line)


def read_history(path: Path) -> list[Operation]:
    """The operations of one client's file in the order of their sending; a line cut off by a kill is passed over."""
    found: dict[str, Operation] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        operation = msgspec.json.decode(line, type=Operation)
        found[operation.request_id] = operation
    return list(found.values())


class Entry(NamedTuple):
    """One appearance of an event: `lane` is what has an order, `content` the bytes of its record."""

    place: str
    lane: str
    id: str
    kind: int
    content: bytes


def spooled(spool_dir: Path) -> list[Entry]:
    """Every whole record of a spool, stream by stream in the order of writing."""
    entries = []
    for stream in list_streams(spool_dir):
        with contextlib.closing(SpoolReader(spool_dir, streams=(stream,))) as reader:
            while records := reader.read(10_000):
                for kind, boot, sequence, payload in records:
                    entries.append(Entry("spool", stream, format_id(boot, sequence), kind, payload))
            assert not reader.corrupt, repr(reader)
    return entries


def dead_letters(spool_dir: Path) -> list[Entry]:
    """Every record that the shipper has set aside."""
    paths = [path for name in (OLDER_NAME, DEAD_LETTERS_NAME) if (path := spool_dir / name).exists()]
    entries = []
    for line in b"".join(path.read_bytes() for path in paths).splitlines():
        letter = msgspec.json.decode(line, type=DeadLetter)
        content = base64.b64decode(letter.payload) if letter.encoding == "base64" else letter.payload.encode()
        entries.append(Entry("dead letters", "", letter.id, letter.kind, content))
    return entries


def topic(bootstrap_servers: str, name: str, *, kind: int = KIND_PREDICTION) -> list[Entry]:
    """Every message that is in a topic now, by partition and offset; none when there is no such topic.

    A message's id is its `ce_id`, which must be the one that stands in its record.
    """
    messages = consume(bootstrap_servers, name, seconds=KAFKA_SECONDS)
    entries = []
    for message in messages:
        headers = dict(message.headers)
        entries.append(Entry("topic", f"{name}/{message.partition}", headers["ce_id"].decode(), kind, message.value))
    return entries


@dataclass
class Verdict:
    """What a check has seen, and its faults in words, at most ten of each sort; an empty list is a passed check."""

    sent: int = 0
    answered: int = 0
    unanswered: int = 0
    logged: int = 0
    repetitions: int = 0
    others: int = 0
    gaps: int = 0
    faults: list[str] = field(default_factory=list)
    _by_sort: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.answered} answered with a prediction, {self.unanswered} without an answer; "
            f"{self.logged} logged, {self.repetitions} repetitions, {self.others} of others, "
            f"{self.gaps} gaps; {sum(self._by_sort.values())} faults"
        )

    def fault(self, sort: str, text: str) -> None:
        self._by_sort[sort] += 1
        if self._by_sort[sort] <= 10:
            self.faults.append(f"{sort}: {text}")


def check(operations: Sequence[Operation], entries: Iterable[Entry], *, alone: bool = False) -> Verdict:
    """Hold what clients wrote down against the log.

    Parameters
    ----------
    operations : sequence of Operation
        Of all clients whose requests are judged.
    entries : iterable of Entry
        Where each answered prediction must be: the spool, or topic and dead letters for what has been shipped.
    alone : bool
        Nobody else has asked: a request in the log that these clients did not send is invented. Otherwise only one
        that begins like theirs (up to the first dash) is.
    """
    verdict = Verdict()
    known = {operation.request_id: operation for operation in operations}
    verdict.sent = len(known)
    names = {request_id.partition("-")[0] for request_id in known}
    contents: dict[str, bytes] = {}
    logged: dict[str, PredictionRecord] = {}
    by_request: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    latest: dict[tuple[str, str, str], int] = {}
    lanes: dict[tuple[str, str, str], str] = {}
    numbered: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        boot, sequence = parse_id(entry.id)
        again = (entry.place, entry.id) in seen
        seen.add((entry.place, entry.id))
        verdict.repetitions += again
        if again and entry.place == "spool":
            verdict.fault("twice in the spool", entry.id)
        if entry.place == "spool":
            numbered[boot].add(sequence)
        if contents.setdefault(entry.id, entry.content) != entry.content:
            verdict.fault("unequal repetitions", f"{entry.id} in {entry.place} {entry.lane}")
        if entry.kind != KIND_PREDICTION:
            continue
        record = msgspec.json.decode(entry.content, type=PredictionRecord)
        if (record.id, record.seq) != (entry.id, sequence):
            verdict.fault("wrong number", f"{entry.id} holds {record.id}, seq {record.seq}")
        if not again and entry.place != "dead letters":
            source = (entry.place, boot, record.model)
            if lanes.setdefault(source, entry.lane) != entry.lane:
                verdict.fault("in another lane", f"{entry.id} in {entry.lane}, {record.model} was in {lanes[source]}")
            elif latest.get(source, 0) >= sequence:
                verdict.fault("out of order", f"{entry.id} after {latest[source]:010x} in {entry.place} {entry.lane}")
            latest[source] = sequence
        if entry.id in logged:
            continue
        logged[entry.id] = record
        request = record.request_id or ""
        if request in known:
            verdict.logged += 1
            if by_request.setdefault(request, entry.id) != entry.id:
                verdict.fault("answered twice", f"{request} is {by_request[request]} and {entry.id}")
        elif record.request_id is None and record.status != 200:
            verdict.others += 1  # refused before its body was read
        elif alone or request.partition("-")[0] in names:
            verdict.fault("never sent", f"{entry.id} for request {request!r}")
        else:
            verdict.others += 1
    verdict.gaps = sum(max(numbers) - len(numbers) for numbers in numbered.values())
    for operation in operations:
        _check_answer(operation, logged, verdict)
    return verdict


def _check_answer(operation: Operation, logged: dict[str, PredictionRecord], verdict: Verdict) -> None:
    if operation.status is None:
        verdict.unanswered += 1
        return
    if not operation.prediction_id:
        if operation.status == 200:
            verdict.fault("no id", f"request {operation.request_id}")
        return
    verdict.answered += 1
    record = logged.get(operation.prediction_id)
    if record is None:
        verdict.fault("answered and not logged", f"{operation.prediction_id} for request {operation.request_id}")
        return
    told = (operation.request_id, operation.status)
    unread = record.request_id is None and record.status != 200
    if (operation.request_id if unread else record.request_id, record.status) != told:
        verdict.fault("another record", f"{record.id} holds {record.request_id}, {record.status}; answered {told}")
    kept = [output.data for output in record.outputs]
    # A tensor that the log keeps as digest and summary has no data to compare.
    if operation.outputs is not None and any(
        data is not None and data != answer for data, answer in zip(kept, operation.outputs, strict=True)
    ):
        verdict.fault("other outputs", f"{record.id} holds {kept}; answered {operation.outputs}")


class Counts(NamedTuple):
    """What a gateway's processes have counted, the dead ones too."""

    served: int
    spooled: int
    dropped: int
    refused: int
    unsynced: int
    shipped: int
    dead_letters: int
    corrupt: int = 0
    missing: int = 0


def counts_of(state_dir: Path) -> Counts:
    """Read the metric files of a gateway, running or ended; `served` are predictions answered with success."""
    events: dict[str, float] = defaultdict(float)
    served = 0.0
    for family in collect(state_dir / "run" / "metrics"):
        for sample in family.samples:
            if sample.name == "gateway_requests_total" and sample.labels["outcome"] == "ok":
                served += sample.value
            elif sample.name == "gateway_log_events_total":
                events[sample.labels["state"]] += sample.value
    states = ("spooled", "dropped", "refused", "unsynced", "shipped", "dead_letter", "corrupt", "missing")
    return Counts(int(served), *(int(events[state]) for state in states))


def check_counts(counts: Counts, entries: Iterable[Entry], *, kills: int = 0, batch: int = 64) -> list[str]:
    """Hold the metrics against the spool's entries: served and logged are equal, and so are spooled and logged.

    A front counts after it has written, so each kill may leave one batch of at most `batch` records uncounted.
    """
    mine = [entry for entry in entries if entry.place == "spool" and entry.lane.startswith("front-")]
    predictions = [msgspec.json.decode(entry.content, type=PredictionRecord) for entry in mine if entry.kind == 1]
    succeeded = sum(record.status == 200 for record in predictions)
    faults = []
    # What was dropped is served as well, and its status is nowhere written down.
    if not succeeded - kills * batch <= counts.served <= succeeded + counts.dropped:
        faults.append(f"served {counts.served}, logged {succeeded}, dropped {counts.dropped}, {kills} kills")
    if not len(mine) - kills * batch <= counts.spooled <= len(mine):
        faults.append(f"counted as spooled {counts.spooled}, in the spool {len(mine)}, {kills} kills")
    return faults
