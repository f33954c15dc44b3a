"""Predictions kept for the labels that may still come: one by one or by the block, the oldest forgotten first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque

import msgspec
import numpy as np

from gateway.control.block import LoggedBlock, keys_of
from gateway.events.addresses import AddressError, format_id, parse_id
from gateway.events.blocks import PredictionBlock, prediction_of
from gateway.events.records import Arm

__all__ = ("Kept", "KeptBlock", "KeptPredictions", "kept_block")

_BLOCK_BYTES = 1024
"""What a block takes in memory beside its columns."""


class Kept(msgspec.Struct, gc=False):
    """One prediction: what a label needs of it, and as it was logged while there is room for that.

    `outputs` are the values of the quality output of all its rows, float64; empty when they are no evidence.
    """

    model: str
    version: int
    arm: Arm
    weight: float
    key: str | None
    time: str
    event_time: str
    rows: int
    outputs: bytes
    payload: bytes | None = None


class KeptBlock(msgspec.Struct, gc=False):
    """Predictions that came as one block, of which the first `forgotten` are no longer kept.

    `rows` are u32, empty where each has one; `keys` are 16 characters each, empty where none has one; `outputs` are
    elements of `dtype`, `width` a row, empty when they are no evidence. `columns` is the block as it was logged.
    """

    boot: str
    first: int
    count: int
    model: str
    version: int
    arm: Arm
    weight: float
    time: str
    rows: bytes
    keys: bytes
    outputs: bytes
    dtype: str
    width: int
    forgotten: int = 0
    columns: PredictionBlock | None = None

    def kept(self, place: int) -> Kept:
        """One of the predictions."""
        rows = self._rows()
        end = sum(rows[: place + 1])
        start = end - rows[place]
        key = keys_of(self.keys[16 * place : 16 * place + 16])[0] if self.keys else None
        outputs = np.frombuffer(self.outputs, self.dtype)[start * self.width : end * self.width].astype(np.float64)
        # JSON, which single records are, has no infinities.
        outputs[~np.isfinite(outputs)] = np.nan
        return Kept(
            self.model,
            self.version,
            self.arm,
            self.weight,
            key,
            self.time,
            self.time,
            rows[place],
            outputs.tobytes(),
            None
            if self.columns is None
            else prediction_of(self.columns, rows, place, boot=self.boot, sequence=self.first),
        )

    @property
    def payload_bytes(self) -> int:
        """What dropping the block as it was logged would free."""
        columns = self.columns
        if columns is None:
            return 0
        sizes = (columns.head, columns.input_head, columns.output_head, columns.queue_us, columns.total_us)
        own = 0 if self.outputs is columns.outputs else len(columns.outputs)
        return _BLOCK_BYTES + sum(len(each) for each in sizes) + len(columns.inputs) + own

    def _rows(self) -> list[int]:
        return np.frombuffer(self.rows, "<u4").tolist() if self.rows else [1] * self.count


def kept_block(block: LoggedBlock, *, with_outputs: bool) -> KeptBlock:
    """What is kept of a block.

    Parameters
    ----------
    with_outputs : bool
        Whether its output is the one that labels speak of.
    """
    head, columns = block.head, block.columns
    return KeptBlock(
        block.boot,
        block.first,
        block.count,
        head.model,
        head.version,
        head.arm,
        head.weight,
        block.time,
        bytes(columns.rows),
        bytes(columns.keys),
        bytes(columns.outputs) if with_outputs else b"",
        columns.output_dtype,
        block.outputs.values[0].size,
        0,
        columns,
    )


class KeptPredictions:
    """The newest predictions by their id, in bounded memory.

    Parameters
    ----------
    limit : int
        Predictions at most; beyond it the oldest is forgotten.
    payload_bytes : int
        Bytes of predictions as they were logged; beyond it the oldest keeps only what a label needs.
    """

    def __init__(self, limit: int, *, payload_bytes: int) -> None:
        self._limit = limit
        self._payload_limit = payload_bytes
        # Under the id of the first prediction. Ordered, as it loses its oldest again and again: a plain dict walks
        # over all its dead entries there.
        self._entries: OrderedDict[str, Kept | KeptBlock] = OrderedDict()
        self._lives: dict[str, _Life] = {}
        self._with_payload: deque[str] = deque()
        self._payload_bytes = 0
        self._count = 0

    def __repr__(self) -> str:
        return f"<KeptPredictions {len(self)} payload_bytes={self._payload_bytes}>"

    def __len__(self) -> int:
        return self._count

    def add(self, prediction_id: str, kept: Kept) -> bool:
        """Keep one prediction; False when it is kept already."""
        if self.find(prediction_id) is not None:
            return False
        self._entries[prediction_id] = kept
        self._count += 1
        if kept.payload is not None:
            self._with_payload.append(prediction_id)
            self._payload_bytes += len(kept.payload)
        self._forget_beyond_the_bounds()
        return True

    def add_block(self, block: KeptBlock) -> bool:
        """Keep the predictions of a block; False when a block that is kept has some of them."""
        life = self._lives.get(block.boot)
        if life is None:
            life = self._lives[block.boot] = _Life()
        if not life.add(block.first, block.count):
            return False
        block_id = format_id(block.boot, block.first)
        self._entries[block_id] = block
        self._count += block.count - block.forgotten
        if block.columns is not None:
            self._with_payload.append(block_id)
            self._payload_bytes += block.payload_bytes
        self._forget_beyond_the_bounds()
        return True

    def find(self, prediction_id: str) -> Kept | None:
        """A prediction that is kept."""
        entry = self._entries.get(prediction_id)
        if isinstance(entry, Kept):
            return entry
        if not self._lives:
            return None
        try:
            boot, number = parse_id(prediction_id)
        except AddressError:
            return None
        life = self._lives.get(boot)
        first = life.first_of(number) if life is not None else None
        block = self._entries.get(format_id(boot, first)) if first is not None else None
        if not isinstance(block, KeptBlock) or not block.forgotten <= number - block.first < block.count:
            return None
        return block.kept(number - block.first)

    def newest(self, limit: int) -> tuple[list[tuple[str, Kept]], list[tuple[int, KeptBlock]]]:
        """The last of them without what was logged, oldest first; blocks with how many single ones stand before."""
        entries: list[tuple[str, Kept | KeptBlock]] = []
        for prediction_id, entry in reversed(self._entries.items()):
            if limit <= 0:
                break
            if isinstance(entry, Kept):
                entries.append((prediction_id, msgspec.structs.replace(entry, payload=None)))
                limit -= 1
            else:
                forgotten = max(entry.forgotten, entry.count - limit)
                entries.append((prediction_id, msgspec.structs.replace(entry, columns=None, forgotten=forgotten)))
                limit -= entry.count - forgotten
        kept: list[tuple[str, Kept]] = []
        blocks: list[tuple[int, KeptBlock]] = []
        for prediction_id, entry in reversed(entries):
            if isinstance(entry, Kept):
                kept.append((prediction_id, entry))
            else:
                blocks.append((len(kept), entry))
        return kept, blocks

    def restore(self, kept: list[tuple[str, Kept]], blocks: list[tuple[int, KeptBlock]]) -> None:
        """Keep what `newest` gave, and nothing else."""
        self._entries.clear()
        self._lives.clear()
        self._with_payload.clear()
        self._payload_bytes = self._count = 0
        place = 0
        for before, block in blocks:
            for prediction_id, each in kept[place:before]:
                self.add(prediction_id, each)
            place = max(place, before)
            self.add_block(block)
        for prediction_id, each in kept[place:]:
            self.add(prediction_id, each)

    def _forget_beyond_the_bounds(self) -> None:
        while self._count > self._limit:
            oldest_id, oldest = next(iter(self._entries.items()))
            if isinstance(oldest, KeptBlock):
                forgotten = min(self._count - self._limit, oldest.count - oldest.forgotten)
                oldest.forgotten += forgotten
                self._count -= forgotten
                if oldest.forgotten < oldest.count:
                    break
                self._forget_block(oldest)
            else:
                self._count -= 1
            self._drop_payload(oldest)
            del self._entries[oldest_id]
        while self._with_payload and (
            self._payload_bytes > self._payload_limit or self._with_payload[0] not in self._entries
        ):
            entry = self._entries.get(self._with_payload.popleft())
            if entry is not None:
                self._drop_payload(entry)

    def _forget_block(self, block: KeptBlock) -> None:
        life = self._lives[block.boot]
        life.forget(block.first)
        if not life:
            del self._lives[block.boot]

    def _drop_payload(self, entry: Kept | KeptBlock) -> None:
        if isinstance(entry, KeptBlock):
            self._payload_bytes -= entry.payload_bytes
            entry.columns = None
        elif entry.payload is not None:
            self._payload_bytes -= len(entry.payload)
            entry.payload = None


class _Life:
    """The blocks of one life of a writer: the numbers of their first predictions, rising, and of those behind each.

    Each model's rise as they come. Of several models in several partitions of a topic they do not.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._afters: list[int] = []
        self._gone = 0  # of the lowest, so many are forgotten

    def __len__(self) -> int:
        return len(self._firsts) - self._gone

    def add(self, first: int, count: int) -> bool:
        """Whether none of these numbers is in a block already."""
        place, end = len(self._firsts), first + count
        if self and first < self._afters[-1]:
            place = bisect_right(self._firsts, first, lo=self._gone)
            if place > self._gone and self._afters[place - 1] > first:
                return False
            if place < len(self._firsts) and self._firsts[place] < end:
                return False
        self._firsts.insert(place, first)
        self._afters.insert(place, end)
        return True

    def first_of(self, number: int) -> int | None:
        """The first number of the last block that begins at or before `number`."""
        place = bisect_right(self._firsts, number, lo=self._gone) - 1
        return self._firsts[place] if place >= self._gone else None

    def forget(self, first: int) -> None:
        """Forget the block that begins with this number."""
        place = bisect_left(self._firsts, first, lo=self._gone)
        if place != self._gone:
            del self._firsts[place], self._afters[place]
            return
        self._gone += 1
        if 2 * self._gone > len(self._firsts):
            del self._firsts[: self._gone], self._afters[: self._gone]
            self._gone = 0
