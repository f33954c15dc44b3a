"""Frames between a front and an engine, over a Unix stream socket.

A frame is a header and a payload, little endian: ``length u32`` of the payload, ``kind u8``, one byte unused, ``count
u16`` of tensors, ``id u64``. A tensor is ``code u8, rank u8, ordinal u16, size u32`` (``size`` is the number of
strings of a BYTES tensor, else 0), ``rank`` dimensions as i64, ``nbytes u64``, then its bytes, padded to 8. Strings
are ``length u32`` and UTF-8 each. An engine greets with HELLO, answers RUN (which starts with the deadline as f64: the
seconds of the machine's monotonic clock after which no answer is wanted) with RESULT (which starts with the nanoseconds
of the run as u64), FAILURE (UTF-8 text, for the log) or STOPPED (nothing; the deadline came first).

Where the greeting says so, a front may send one ARENA (the size of its shared memory as u64) before anything else, with
the memory's descriptor (SCM_RIGHTS). Then a tensor of a RUN may be given by its places there: 0x80 is set in its
``code``, and in place of its bytes stand ``count u64`` of places and for each ``offset u64, nbytes u64``; their bytes
behind one another are the tensor's. They do not change until the RUN is answered.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gateway.engine.errors import WireError
from gateway.protocol.binary import Packed, pack_strings, tensor_to_bytes
from gateway.protocol.datatypes import NUMPY_OF, Signature, datatype_of
from gateway.protocol.errors import CallerError

if TYPE_CHECKING:
    import asyncio

    from gateway.engine.arena import Arena

__all__ = (
    "ARENA",
    "FAILURE",
    "HEADER",
    "HELLO",
    "LARGE_BYTES",
    "MAX_FRAME_BYTES",
    "RESULT",
    "RUN",
    "STOPPED",
    "Frame",
    "FrameReader",
    "Hello",
    "decode_arena",
    "decode_result",
    "decode_result_of_one",
    "decode_run",
    "decode_run_of_one",
    "decode_tensors",
    "encode_arena",
    "encode_failure",
    "encode_hello",
    "encode_result",
    "encode_run",
    "encode_run_of_one",
    "encode_stopped",
    "join_parts",
    "write_frame",
)

HEADER = struct.Struct("<IBxHQ")

HELLO, RUN, RESULT, FAILURE, STOPPED, ARENA = 1, 2, 3, 4, 5, 6
MAX_FRAME_BYTES = 2**31
MAX_RANK = 32

_TENSOR = struct.Struct("<BBHI")
_U64 = struct.Struct("<Q")
_F64 = struct.Struct("<d")
_PLACE = struct.Struct("<QQ")
_IN_PLACES = 0x80
_CODES = tuple(NUMPY_OF)
_CODE_OF = {datatype: code for code, datatype in enumerate(_CODES)}
_DTYPES = tuple(NUMPY_OF[datatype] for datatype in _CODES)
_BYTES = _CODE_OF["BYTES"]
_DIMENSIONS = tuple(struct.Struct(f"<{rank}q") for rank in range(MAX_RANK + 1))
_RUN_OF_ONE = tuple(struct.Struct(f"<IBxHQdBBHI{rank}qQ") for rank in range(MAX_RANK + 1))
_RESULT_OF_ONE = tuple(struct.Struct(f"<IBxHQQBBHI{rank}qQ") for rank in range(MAX_RANK + 1))
_CODE_OF_CHAR = {dtype.char: code for code, dtype in enumerate(_DTYPES) if dtype.kind not in "OV"}
_PADDING = tuple(bytes(-n % 8) for n in range(8))

LARGE_BYTES = 2**16
"""From this size on a frame is written in pieces and received where it stays."""
SCRATCH_BYTES = 2**18

Array = np.ndarray[Any, np.dtype[Any]]
Frame = tuple[int, int, int, memoryview]
"""Kind, count of tensors, id, payload."""


class Hello(msgspec.Struct, frozen=True):
    """An engine's greeting: what it serves and how.

    `batchable`: rows of several requests may share a run of up to `max_rows` (a larger request goes alone), and wait
    up to `max_delay_us` for each other; `batching` says why, or why not.
    `redact`: names of inputs whose content must not be logged, `redact_columns` the same for columns of an input, each
    with its place in a row. `sample`: share of predictions that are logged with their tensors. `labels`: for an
    output, the names of its classes.
    `omitted`: outputs that are no tensors and so not answered, with onnxruntime's name of their type.
    `shared_memory`: the engine reads tensors in memory that a front shares with it.
    """

    signature: Signature
    pid: int = 0
    model: str = ""
    version: int = 0
    digest: str = ""
    batchable: bool = False
    max_rows: int = 1
    max_delay_us: int = 0
    batching: str = ""
    redact: tuple[str, ...] = ()
    redact_columns: dict[str, dict[str, int]] = {}
    sample: float = 1.0
    labels: dict[str, tuple[str, ...]] = {}
    omitted: dict[str, str] = {}
    shared_memory: bool = False


def encode_hello(hello: Hello) -> bytes:
    payload = msgspec.json.encode(hello)
    return HEADER.pack(len(payload), HELLO, 0, 0) + payload


def encode_failure(frame_id: int, text: str) -> bytes:
    payload = text.encode("utf-8", "replace")[:4096]
    return HEADER.pack(len(payload), FAILURE, 0, frame_id) + payload


def encode_stopped(frame_id: int) -> bytes:
    return HEADER.pack(0, STOPPED, 0, frame_id)


def encode_arena(size_bytes: int) -> bytes:
    """An ARENA frame, to be sent with the descriptor of so many bytes of shared memory."""
    return HEADER.pack(_U64.size, ARENA, 0, 0) + _U64.pack(size_bytes)


def decode_arena(payload: memoryview) -> int:
    """The size of the shared memory, in bytes.

    Raises
    ------
    WireError
    """
    if len(payload) != _U64.size:
        raise WireError(f"the size of shared memory is said in {_U64.size} bytes, got {len(payload)}")
    size: int = _U64.unpack(payload)[0]
    return size


def encode_run(
    frame_id: int, parts: Sequence[Sequence[Array]], *, deadline: float = math.inf, arena: Arena | None = None
) -> list[bytes | memoryview]:
    """The pieces of a RUN frame.

    Parameters
    ----------
    frame_id : int
    parts : sequence over inputs, each a sequence of arrays
        The arrays of one input have equal datatype and equal axes but the first; they are sent joined along it.
    deadline : float
        In seconds of `time.monotonic`, which is one clock for all processes of a machine.
    arena : Arena, optional
        What the engine has been given: large arrays that lie in it are not sent, and have to stay there.

    Returns
    -------
    list of buffers
        To be written in order; array bytes are not copied.
    """
    pieces: list[bytes | memoryview] = [b"", _F64.pack(deadline)]
    length = 8 + sum([_put_tensor(pieces, ordinal, arrays, arena) for ordinal, arrays in enumerate(parts)])
    pieces[0] = HEADER.pack(length, RUN, len(parts), frame_id)
    return pieces


def encode_run_of_one(frame_id: int, array: Array, *, deadline: float) -> bytes | None:
    """A whole RUN frame of one small input of numbers, as most are; None where `encode_run` is to be asked."""
    return _encode_one(_RUN_OF_ONE, RUN, frame_id, deadline, array)


def encode_result(
    frame_id: int, nanoseconds: int, arrays: Sequence[Array], *, max_bytes: int = MAX_FRAME_BYTES
) -> list[bytes | memoryview]:
    """The pieces of a RESULT frame, one where it is small; `arrays` in the order of the signature's outputs.

    Raises
    ------
    WireError
        An output has more axes than a frame can tell, or all of them together take more than `max_bytes`.
    """
    try:
        if len(arrays) == 1 and (frame := _encode_one(_RESULT_OF_ONE, RESULT, frame_id, nanoseconds, arrays[0])):
            return [frame]
        pieces: list[bytes | memoryview] = [b"", _U64.pack(nanoseconds)]
        length = 8 + sum(_put_tensor(pieces, ordinal, (array,)) for ordinal, array in enumerate(arrays))
    except IndexError:
        raise WireError(f"an output has more than {MAX_RANK} axes") from None
    if length > max_bytes:
        raise WireError(f"the outputs take {length} bytes, more than {max_bytes} (engine.max_output_bytes)")
    pieces[0] = HEADER.pack(length, RESULT, len(arrays), frame_id)
    return pieces


def decode_run(payload: memoryview, count: int, memory: memoryview | None = None) -> tuple[float, list[list[Array]]]:
    """The deadline, in seconds of `time.monotonic`, and the inputs in the signature's order.

    Of each input these are the parts: rows that follow one another but lie in several places of the memory that is
    shared. An input that was sent is one part. `join_parts` puts them together.

    Parameters
    ----------
    memory : memoryview, optional
        What the front shares.

    Raises
    ------
    WireError
        The bytes are no run.
    """
    if len(payload) < 8:
        raise WireError(f"a run of {len(payload)} bytes on an engine's socket has no deadline")
    return _F64.unpack_from(payload)[0], _decode_parts(payload[8:], count, memory)


def join_parts(parts: Sequence[Array]) -> Array:
    """One array of all rows; of several parts a copy."""
    joined: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return joined


def decode_run_of_one(frame: bytes) -> tuple[int, float, Array] | None:
    """The id, the deadline and the input of a RUN frame that is whole and has one input, of numbers, as most have.

    None where the bytes are anything else; then `FrameReader` and `decode_run` are to look at them.
    """
    return _decode_one(_RUN_OF_ONE, RUN, frame)


def decode_result(payload: memoryview, count: int, *, largest_texts: int = MAX_FRAME_BYTES) -> tuple[int, list[Any]]:
    """Nanoseconds of the run, and the outputs in the signature's order.

    Strings of more bytes than `largest_texts` are not read yet: such an output is a `Packed`.
    """
    parts = _decode_parts(payload[8:], count, None, largest_texts=largest_texts)
    return _U64.unpack_from(payload)[0], [join_parts(each) for each in parts]


def decode_result_of_one(frame: bytes) -> tuple[int, int, list[Array]] | None:
    """The id, the nanoseconds and the output of a RESULT frame that is whole and has one output, of numbers.

    None where the bytes are anything else; then `FrameReader` and `decode_result` are to look at them.
    """
    one = _decode_one(_RESULT_OF_ONE, RESULT, frame)
    return None if one is None else (one[0], one[1], [one[2]])


def decode_tensors(payload: memoryview, count: int) -> list[Array]:
    """The tensors of a frame, in order, without copying (but for BYTES, which become object arrays of ``str``).

    Raises
    ------
    WireError
        The bytes are no tensors.
    """
    return [join_parts(parts) for parts in _decode_parts(payload, count, None)]


def write_frame(transport: asyncio.WriteTransport, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a frame: a small one as one buffer, a large one as its pieces, which must not change any more."""
    if HEADER.unpack_from(pieces[0])[0] > LARGE_BYTES:
        transport.writelines(pieces)
    else:
        transport.write(b"".join(pieces))


class FrameReader:
    """Cuts a byte stream into frames.

    >>> reader = FrameReader()
    >>> frame = encode_failure(7, "no")
    >>> list(reader.feed(frame[:5]))
    []
    >>> [(kind, frame_id, bytes(payload)) for kind, _, frame_id, payload in reader.feed(frame[5:])]
    [(4, 7, b'no')]
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._wanted = HEADER.size
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._large: memoryview | None = None
        self._large_header = (0, 0, 0)
        self._filled = 0

    def beginning(self, nbytes: int) -> bytes | None:
        """So many bytes that lie in `buffer`, where a frame begins with them, to be looked at before `feed` has them.

        None where they belong to a frame that has begun: `received` is to be told.
        """
        return None if self._parts or self._large is not None else bytes(self._scratch[:nbytes])

    def buffer(self) -> memoryview:
        """Where the next bytes of the stream are to be put; then tell `received` how many they are.

        A large frame is received where it stays, without another copy.
        """
        return self._scratch if self._large is None else self._large[self._filled :]

    def received(self, nbytes: int) -> Iterable[Frame]:
        """As `feed`, of bytes that lie in `buffer` already."""
        if self._large is None:
            return self.feed(bytes(self._scratch[:nbytes]))
        self._filled += nbytes
        if self._filled < len(self._large):
            return ()
        frame = (*self._large_header, self._large)
        self._large = None
        return (frame,)

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Yield (kind, count, id, payload) of every frame that is whole.

        Raises
        ------
        WireError
            A length beyond `MAX_FRAME_BYTES`.
        """
        if self._parts:
            self._parts.append(received)
            self._held += len(received)
            if self._held < self._wanted:
                return
            received = b"".join(self._parts)
            self._parts.clear()
            self._held = 0
        view = memoryview(received)
        offset, end = 0, len(received)
        if self._large is not None:
            offset = min(end, len(self._large) - self._filled)
            self._large[self._filled : self._filled + offset] = view[:offset]
            yield from self.received(offset)
            if self._large is not None:
                return
        self._wanted = HEADER.size
        while end - offset >= HEADER.size:
            length, kind, count, frame_id = HEADER.unpack_from(view, offset)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes is beyond {MAX_FRAME_BYTES}")
            stop = offset + HEADER.size + length
            if stop > end:
                if length > LARGE_BYTES:
                    self._begin_large(length, (kind, count, frame_id), view[offset + HEADER.size :])
                    return
                self._wanted = HEADER.size + length
                break
            yield kind, count, frame_id, view[offset + HEADER.size : stop]
            offset = stop
        if offset < end:
            self._parts.append(received[offset:])
            self._held = end - offset

    def _begin_large(self, length: int, header: tuple[int, int, int], start: memoryview) -> None:
        # numpy's memory is not cleared before it is written to.
        self._large = np.empty(length, np.uint8).data
        self._large[: len(start)] = start
        self._large_header = header
        self._filled = len(start)


def _encode_one(heads: Sequence[struct.Struct], kind: int, frame_id: int, told: float, array: Array) -> bytes | None:
    # `told` is what a payload begins with: the deadline of a run, the nanoseconds of a result.
    code = _CODE_OF_CHAR.get(array.dtype.char)
    if code is None or array.nbytes >= LARGE_BYTES:
        return None
    rank, block = array.ndim, array.tobytes()
    nbytes = len(block)
    padding = _PADDING[nbytes % 8]
    length = 24 + 8 * rank + nbytes + len(padding)
    head = heads[rank].pack(length, kind, 1, frame_id, told, code, rank, 0, 0, *array.shape, nbytes)
    return head + block + padding


def _decode_one(heads: Sequence[struct.Struct], kind: int, frame: bytes) -> tuple[int, Any, Array] | None:
    try:
        head = heads[frame[HEADER.size + 9]]
        length, found, count, frame_id, told, code, _, _, _, *shape, nbytes = head.unpack_from(frame)
        if found == kind and count == 1 and length == len(frame) - HEADER.size and code != _BYTES:
            array = np.ndarray(shape, _DTYPES[code], frame, head.size)
            if array.nbytes == nbytes:
                return frame_id, told, array
    except (IndexError, struct.error, TypeError, ValueError):
        pass
    return None


def _decode_parts(
    payload: memoryview, count: int, memory: memoryview | None, *, largest_texts: int = MAX_FRAME_BYTES
) -> list[list[Any]]:
    tensors: list[list[Any]] = []
    offset = 0
    try:
        for _ in range(count):
            code, rank, _ordinal, strings = _TENSOR.unpack_from(payload, offset)
            offset += 8
            shape = _DIMENSIONS[rank].unpack_from(payload, offset)
            offset += 8 * rank
            (nbytes,) = _U64.unpack_from(payload, offset)
            offset += 8
            if code & _IN_PLACES:
                blocks, offset = _blocks_in(memory, payload, offset)
                tensors.append(_parts_of(blocks, _DTYPES[code & ~_IN_PLACES], shape))
                continue
            block = payload[offset : offset + nbytes]
            offset += nbytes + (-nbytes % 8)
            if code == _BYTES:
                if strings != math.prod(shape):
                    raise ValueError(f"{strings} strings are no tensor of {list(shape)}")
                packed = Packed(block, shape)
                tensors.append([packed if nbytes > largest_texts else packed.read()])
            else:
                tensors.append([np.frombuffer(block, _DTYPES[code]).reshape(shape)])
    except (struct.error, IndexError, ValueError, CallerError) as error:
        raise WireError(f"a frame on an engine's socket cannot be read: {error}") from None
    return tensors


def _put_tensor(
    pieces: list[bytes | memoryview], ordinal: int, arrays: Sequence[Array], arena: Arena | None = None
) -> int:
    first = arrays[0]
    shape = first.shape
    if len(arrays) > 1:
        shape = (sum(array.shape[0] for array in arrays), *shape[1:])
    rank = len(shape)
    code = _BYTES if first.dtype.kind in "OUT" else _CODE_OF[datatype_of(first.dtype)]
    if arena is not None and (places := _places_in(arena, arrays)) is not None:
        head = _TENSOR.pack(code | _IN_PLACES, rank, ordinal, 0) + _DIMENSIONS[rank].pack(*shape)
        pieces.append(head + _U64.pack(sum([array.nbytes for array in arrays])) + places)
        return len(pieces[-1])
    blocks: list[bytes | memoryview]
    strings = 0
    if code == _BYTES:
        strings = math.prod(shape)
        blocks = [pack_strings(array) for array in arrays]
        nbytes = sum(map(len, blocks))
    else:
        blocks = [tensor_to_bytes(array) for array in arrays]
        nbytes = sum(map(len, blocks))
    pieces.append(_TENSOR.pack(code, rank, ordinal, strings) + _DIMENSIONS[rank].pack(*shape) + _U64.pack(nbytes))
    pieces.extend(blocks)
    if nbytes % 8:
        pieces.append(_PADDING[nbytes % 8])
    return 16 + 8 * rank + nbytes + (-nbytes % 8)


def _places_in(arena: Arena, arrays: Sequence[Array]) -> bytes | None:
    """Where the arrays lie in shared memory; None where not all of them do, or the bytes are soon sent."""
    places = [_U64.pack(len(arrays))]
    for array in arrays:
        if array.nbytes < LARGE_BYTES or not array.flags.c_contiguous or array.dtype.kind == "O":
            return None
        offset = arena.offset_of(array)
        if offset is None or offset % array.itemsize:
            return None
        places.append(_PLACE.pack(offset, array.nbytes))
    return b"".join(places)


def _blocks_in(memory: memoryview | None, payload: memoryview, offset: int) -> tuple[list[memoryview], int]:
    if memory is None:
        raise ValueError("a tensor lies in memory that is not shared")
    (count,) = _U64.unpack_from(payload, offset)
    offset += _U64.size
    blocks = []
    for _ in range(count):
        start, nbytes = _PLACE.unpack_from(payload, offset)
        offset += _PLACE.size
        if start + nbytes > len(memory):
            raise ValueError(f"a tensor ends at byte {start + nbytes} of {len(memory)} that are shared")
        blocks.append(memory[start : start + nbytes])
    return blocks, offset


def _parts_of(blocks: list[memoryview], dtype: np.dtype[Any], shape: tuple[int, ...]) -> list[Array]:
    if len(blocks) == 1:
        return [np.frombuffer(blocks[0], dtype).reshape(shape)]
    parts: list[Array] = [np.frombuffer(block, dtype).reshape(-1, *shape[1:]) for block in blocks]
    rows = sum(map(len, parts))
    if rows != shape[0]:
        raise ValueError(f"a tensor of {shape[0]} rows has {rows} in its places")
    return parts
