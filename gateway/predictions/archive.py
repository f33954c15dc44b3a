"""The archive: segments that leave the spool, as Parquet files on a folder or any URL that fsspec reads.

One file holds the records of one segment that are of one kind, one model and one day (UTC):
`kind=prediction/model=<model>/day=<YYYY-MM-DD>/<boot>-<first>-<last>.parquet`, sorted by number. Each record is there
as it was logged, in the column `record`, beside columns to choose by. A file is written under another name, read back,
compared, and only then renamed; a segment is removed when all of its files are there. So what a crash leaves behind
is at most a file more, which the next attempt writes again in the same place.
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.events.addresses import parse_id
from gateway.events.encoding import RecordError, seconds_of
from gateway.events.records import KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.arrow import filesystems, parquet, pyarrow, require_installed
from gateway.predictions.disk import LocalDisk
from gateway.predictions.salvage import whole_records
from gateway.predictions.segments import LogRecord, split_name

__all__ = ("Archive", "ArchiveError", "Stored", "lowest_of")

_KINDS = {KIND_PREDICTION: "prediction", KIND_FEEDBACK: "feedback", KIND_DECISION: "decision"}
_FILE = re.compile(
    r"kind=(?P<kind>prediction|feedback|decision)/model=(?P<model>[^/]+)/day=(?P<day>[0-9-]{10})/"
    r"(?P<boot>[0-9a-f]{14})-(?P<first>[0-9a-f]{10})-(?P<last>[0-9a-f]{10})\.parquet$"
)
_GROUP_ROWS = 2000
_LISTED_SECONDS = 30.0
_MISSED_SECONDS = 1.0  # so old a listing is not enough to say that a record is not there
_LABEL_DAYS = 31
_DAY_SECONDS = 86_400
_CALENDAR_ENDS = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_NO_MODEL = "_"
_FOREIGN = (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError)


class ArchiveError(Exception):
    """Raised when the archive cannot be read or written."""


class Stored(NamedTuple):
    """How many records of a segment are in the archive, and at which offsets it holds what is none."""

    records: int
    damaged: list[int]


class _File(NamedTuple):
    day: str
    boot: str
    first: int
    last: int
    kind: int
    model: str
    path: str


class _Told(msgspec.Struct):
    """What of a record stands in columns of its own."""

    time: str = ""
    model: str = _NO_MODEL
    version: int | None = None
    arm: str | None = None
    status: int | None = None
    rows: int | None = None
    sampled: bool = True
    prediction_id: str | None = None


class Archive:
    """One archive.

    Parameters
    ----------
    url : str
        A folder, or a URL that fsspec reads, such as s3://bucket/path.

    Raises
    ------
    NeedsArchiveExtra
        pyarrow or fsspec is not installed.
    ArchiveError
        The URL names no file system.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        require_installed()
        try:
            self._files, self._root = filesystems().core.url_to_fs(url)
        except _FOREIGN as error:
            raise ArchiveError(f"{url!r} is no place for an archive: {error}") from None
        self._listed: list[_File] = []
        self._listed_at = float("-inf")

    @cached_property
    def _arrow(self) -> Any:
        # Large, and most processes with an archive never read it.
        return pyarrow()

    @cached_property
    def _parquet(self) -> Any:
        return parquet()

    @classmethod
    def of(cls, url: str) -> Archive | None:
        """The archive of `spool.archive_url`; None where it is empty.

        Raises
        ------
        NeedsArchiveExtra, ArchiveError
        """
        return cls(url) if url else None

    def __repr__(self) -> str:
        return f"<Archive {self._url}>"

    def store(self, segment: Path) -> Stored:
        """Bring all records of a closed segment that check into the archive; return what came there and what did not.

        Raises
        ------
        ArchiveError
            Not everything is there; nothing that was there before has changed.
        """
        boot, first = split_name(segment.name)
        try:
            records, damaged = whole_records(segment.read_bytes(), boot, first)
        except OSError as error:
            raise ArchiveError(f"cannot read {segment}: {error.strerror}") from None
        parts: dict[str, list[tuple[LogRecord, _Told, float]]] = {}
        for record in records:
            told = _told(record)
            moment = _moment(record, told)
            day = datetime.fromtimestamp(moment, UTC).date().isoformat()
            folder = f"kind={_KINDS.get(record.kind, 'decision')}/model={told.model}/day={day}"
            parts.setdefault(folder, []).append((record, told, moment))
        for folder, part in parts.items():
            part.sort(key=lambda found: found[0].sequence)
            name = f"{boot}-{part[0][0].sequence:010x}-{part[-1][0].sequence:010x}.parquet"
            self._write(f"{self._root}/{folder}/{name}", self._table(part))
        self._listed_at = float("-inf")
        return Stored(len(records), damaged)

    def find(self, event_id: str) -> LogRecord | None:
        """Return the record with this id, or None.

        Raises
        ------
        AddressError, ArchiveError
        """
        boot, sequence = parse_id(event_id)
        record = self._find(boot, sequence, self._list())
        if record is None and time.monotonic() - self._listed_at > _MISSED_SECONDS:
            # It may have come here since the folder was listed.
            record = self._find(boot, sequence, self._list(afresh=True))
        return record

    def _find(self, boot: str, sequence: int, files: list[_File]) -> LogRecord | None:
        for file in files:
            if file.boot == boot and file.first <= sequence <= file.last:
                for record in self._read(file, [("seq", "=", sequence)]):
                    return record
        return None

    def labels_of(self, prediction_id: str, *, model: str, since: float) -> list[LogRecord]:
        """Return the labels of a prediction that came within 31 days after `since`.

        Raises
        ------
        ArchiveError
        """
        days = _days(since, since + _LABEL_DAYS * _DAY_SECONDS)
        wanted = [("prediction_id", "=", prediction_id)]
        return [
            record
            for file in self._list(afresh=time.monotonic() - self._listed_at > _MISSED_SECONDS)
            if file.kind == KIND_FEEDBACK and file.model == model and days[0] <= file.day <= days[1]
            for record in self._read(file, wanted)
        ]

    def read(
        self,
        *,
        kinds: Collection[int] | None = None,
        since: float | None = None,
        until: float | None = None,
        below: Mapping[str, int] | None = None,
    ) -> Iterator[tuple[float, LogRecord]]:
        """Yield times and records, day by day in the order of time.

        Parameters
        ----------
        since, until : float, optional
            Only records of this time or later, and before this time, in seconds since 1970.
        below : mapping of boot to number, optional
            Of these boots only records with lower numbers: the others are in the spool still.

        Raises
        ------
        ArchiveError
        """
        days = _days(since or 0.0, until)
        by_day: dict[str, dict[tuple[int, str, str], list[_File]]] = {}
        for file in sorted(self._list(afresh=True)):
            if (kinds is None or file.kind in kinds) and days[0] <= file.day <= days[1]:
                by_day.setdefault(file.day, {}).setdefault((file.kind, file.model, file.boot), []).append(file)
        for lanes in by_day.values():
            for moment, record in heapq.merge(*map(self._lane, lanes.values()), key=lambda pair: pair[0]):
                if below is not None and record.sequence >= below.get(record.boot, 1 << 60):
                    continue
                if (since is None or moment >= since) and (until is None or moment < until):
                    yield moment, record

    def between(self, boot: str, first: int, last: int, *, afresh: bool = False) -> Iterator[tuple[float, LogRecord]]:
        """Yield times and records of one life, numbers `first` to `last`.

        Parameters
        ----------
        afresh : bool
            List the archive again: some of them may have come since that was done.

        Raises
        ------
        ArchiveError
        """
        files = [f for f in self._list(afresh=afresh) if f.boot == boot and f.last >= first and f.first <= last]
        lanes: dict[tuple[int, str, str], list[_File]] = {}
        for file in sorted(files):
            lanes.setdefault((file.kind, file.model, file.day), []).append(file)
        for moment, record in heapq.merge(*map(self._lane, lanes.values()), key=lambda pair: pair[1].sequence):
            if first <= record.sequence <= last:
                yield moment, record

    def remove_older(self, moment: float) -> int:
        """Remove files of days that ended before this time; return how many.

        Raises
        ------
        ArchiveError
        """
        oldest = datetime.fromtimestamp(moment, UTC).date().isoformat()
        old = [file.path for file in self._list(afresh=True) if file.day < oldest]
        try:
            for path in old:
                self._files.rm_file(path)
        except _FOREIGN as error:
            raise ArchiveError(f"cannot remove from {self._url}: {error}") from None
        self._listed_at = float("-inf")
        return len(old)

    def _table(self, part: list[tuple[LogRecord, _Told, float]]) -> Any:
        arrow = self._arrow
        texts = [_text(record.payload) for record, _, _ in part]
        columns = {
            "seq": (arrow.int64(), [record.sequence for record, _, _ in part]),
            "time": (arrow.timestamp("us", tz="UTC"), [round(moment * 1e6) for _, _, moment in part]),
            "version": (arrow.int32(), [told.version for _, told, _ in part]),
            "arm": (arrow.string(), [told.arm for _, told, _ in part]),
            "status": (arrow.int32(), [told.status for _, told, _ in part]),
            "rows": (arrow.int32(), [told.rows for _, told, _ in part]),
            "sampled": (arrow.bool_(), [told.sampled for _, told, _ in part]),
            "prediction_id": (arrow.string(), [told.prediction_id for _, told, _ in part]),
            "record": (arrow.string(), texts),
            # A record that is no UTF-8 is kept as it is, too.
            "raw": (
                arrow.binary(),
                [
                    None if text is not None else record.payload
                    for (record, _, _), text in zip(part, texts, strict=True)
                ],
            ),
        }
        return arrow.table({name: arrow.array(values, type=kind) for name, (kind, values) in columns.items()})

    def _write(self, path: str, table: Any) -> None:
        partial = f"{path}.part"
        try:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._files.open(partial, "wb") as file:
                self._parquet.write_table(table, file, compression="zstd", row_group_size=_GROUP_ROWS)
                file.flush()
                if hasattr(file, "fileno") and self._is_local():
                    os.fsync(file.fileno())
            with self._files.open(partial, "rb") as file:
                again = self._parquet.ParquetFile(file).read()
            if not again.equals(table):
                raise ArchiveError(f"{partial} does not hold what was written to it")
            if self._is_local():
                os.replace(partial, path)
                LocalDisk().sync_folder(Path(path).parent)
            else:
                self._files.mv(partial, path)
        except (*_FOREIGN, self._arrow.ArrowException) as error:
            raise ArchiveError(f"cannot write {path}: {error}") from None

    def _is_local(self) -> bool:
        protocols = self._files.protocol
        return "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    def _list(self, *, afresh: bool = False) -> list[_File]:
        if afresh or time.monotonic() - self._listed_at > _LISTED_SECONDS:
            try:
                self._files.invalidate_cache()
                paths = self._files.find(self._root)
            except FileNotFoundError:
                paths = []
            except _FOREIGN as error:
                raise ArchiveError(f"cannot list {self._url}: {error}") from None
            numbers = {name: kind for kind, name in _KINDS.items()}
            self._listed = [
                _File(
                    found["day"],
                    found["boot"],
                    int(found["first"], 16),
                    int(found["last"], 16),
                    numbers[found["kind"]],
                    found["model"],
                    path,
                )
                for path in paths
                if (found := _FILE.search(path)) is not None
            ]
            self._listed_at = time.monotonic()
        return self._listed

    def _lane(self, files: list[_File]) -> Iterator[tuple[float, LogRecord]]:
        for file in files:
            for record in self._read(file, None):
                yield _moment(record, _told(record)), record

    def _read(self, file: _File, wanted: list[tuple[str, str, Any]] | None) -> Iterator[LogRecord]:
        columns = ["seq", "record", "raw"]
        try:
            with self._files.open(file.path, "rb") as opened:
                if wanted is not None:
                    blocks: Any = [self._parquet.read_table(opened, columns=columns, filters=wanted)]
                else:
                    blocks = self._parquet.ParquetFile(opened).iter_batches(batch_size=_GROUP_ROWS, columns=columns)
                for block in blocks:
                    held = zip(*(block.column(name).to_pylist() for name in columns), strict=True)
                    for sequence, text, raw in held:
                        yield LogRecord(file.kind, file.boot, sequence, raw if text is None else text.encode())
        except (*_FOREIGN, self._arrow.ArrowException) as error:
            raise ArchiveError(f"cannot read {file.path}: {error}") from None


_told_decoder = msgspec.json.Decoder(_Told)


def lowest_of(segments: Iterable[str]) -> dict[str, int]:
    """For each life among a stream's segments the first number there; what is before it can be in the archive alone."""
    lowest: dict[str, int] = {}
    for name in segments:
        boot, first = split_name(name)
        lowest.setdefault(boot, first)
    return lowest


def _told(record: LogRecord) -> _Told:
    try:
        told = _told_decoder.decode(record.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Told()
    # A model's name is a folder's here, so what can be none is kept under another.
    return told if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", told.model) else _Told(time=told.time)


def _moment(record: LogRecord, told: _Told) -> float:
    try:
        return seconds_of(told.time)
    except RecordError:
        return int(record.boot[:12], 16) / 1000


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _days(since: float, until: float | None) -> tuple[str, str]:
    return _day(since), _day(_CALENDAR_ENDS if until is None else until)


def _day(moment: float) -> str:
    return datetime.fromtimestamp(min(max(0.0, moment), _CALENDAR_ENDS), UTC).date().isoformat()
