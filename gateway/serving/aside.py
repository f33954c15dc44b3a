"""What would hold the loop for long: large bodies are read, and large answers written, beside it or in turns with it.

A parser of JSON does not let go of the interpreter's lock, so a thread would only add the price of handing it over:
the numbers of a large body are read on the loop, a slice in each pass. zlib, numpy and BLAKE3 do let go of it, and
Python's own steps can be interrupted: what needs these is done on one thread. What stays on the loop is bounded:
joining pieces, the log's write, the socket's. `docs/limits.md` has figures.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from gateway.engine.arena import Arena
from gateway.protocol.compression import inflate
from gateway.protocol.encode import encode_flat
from gateway.protocol.errors import BodyTooLarge, DeadlineExceeded
from gateway.protocol.request import InferRequest
from gateway.protocol.slices import encode_in_slices
from gateway.serving.inference import Inference, Prepared
from gateway.serving.records import Kept, tensor_records
from gateway.serving.unread import Unread, UnreadLine

__all__ = (
    "SideThread",
    "Turns",
    "are_slow_to_answer",
    "is_slow_to_read",
    "prepare_answers",
    "prepare_inputs",
    "read_aside",
    "reading_in_turns",
    "result_of",
    "too_late",
)

# Going to the thread and back takes some 0.1 ms of the two together, and more while others run; a millisecond of work
# is worth it: so long take these many bytes of JSON, of raw tensors (digest and summary for the log), of zlib's output.
SLOW_JSON_BYTES = 256 * 1024
SLOW_BINARY_BYTES = 2**22
SLOW_PLAIN_BYTES = 64 * 1024

Result = TypeVar("Result")


class SideThread:
    """One thread that does one thing after another; what comes of each goes back to the loop.

    Answers of finished runs go before bodies that wait to be read: a run is paid for already.

    Parameters
    ----------
    max_wait_seconds : float
        Of a body; nothing bounds answers but the runs that they are of.
    """

    def __init__(self, *, max_wait_seconds: float) -> None:
        self.unread = UnreadLine(max_wait_seconds=max_wait_seconds)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._unwritten: deque[tuple[Callable[[], Any], Callable[[Future[Any]], None]]] = deque()

    def __repr__(self) -> str:
        return f"<SideThread {len(self._unwritten)} answers | {self.unread!r}>"

    def write(self, work: Callable[[], Result], then: Callable[[Future[Result]], None]) -> None:
        """Do what an answer needs there; `then` is called on the loop with what came of it."""
        self._unwritten.append((work, then))
        self._executor.submit(self._do_next, asyncio.get_running_loop())

    def read(
        self, inference: Inference, work: Callable[[], InferRequest], then: Callable[[Future[InferRequest]], None]
    ) -> None:
        """Read a body there; `then` is called on the loop with the request, or with why there is none.

        Raises
        ------
        Overloaded
        """
        self.unread.put(inference, work, then)
        self._executor.submit(self._do_next, asyncio.get_running_loop())

    def _do_next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._unwritten:
            work, then = self._unwritten.popleft()
            done = _outcome_of(work)
        elif unread := self.unread.take():
            then, refusal = unread.then, _refusal_of(unread)
            done = refusal or _outcome_of(unread.work)
            if refusal is None:
                self.unread.learn(unread)
        else:  # it has left the line
            return
        if not loop.is_closed():
            loop.call_soon_threadsafe(then, done)


class Turns:
    """Bodies that are read on the loop, and let others run between their steps: one body after another, a step in each
    pass.

    Parameters
    ----------
    max_wait_seconds : float
    """

    def __init__(self, *, max_wait_seconds: float) -> None:
        self.unread = UnreadLine(max_wait_seconds=max_wait_seconds)
        self._current: Unread | None = None
        self._is_due = False

    def __repr__(self) -> str:
        return f"<Turns {'at work' if self._current else 'idle'} | {self.unread!r}>"

    def read(
        self,
        inference: Inference,
        steps: Generator[None, None, InferRequest | None],
        then: Callable[[Future[InferRequest | None]], None],
    ) -> None:
        """Take the steps; `then` is called with the request that they return, or with why there is none.

        Raises
        ------
        Overloaded
        """
        self.unread.put(inference, steps, then)
        self._go_on()

    def _go_on(self) -> None:
        if not self._is_due and (self._current is not None or len(self.unread)):
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._is_due = False
        unread = self._current = self._current or self.unread.take()
        if unread is None:
            return
        refusal = _refusal_of(unread)
        done = refusal or _outcome_of_step(unread.work)
        if done is not None:
            self._current = None
        if done is not None and refusal is None:
            self.unread.learn(unread)
        self._go_on()
        if done is not None:
            unread.then(done)


def _refusal_of(unread: Unread) -> Future[Any] | None:
    """What comes of a body that is not read, as nobody waits for it any more; None where it is to be read."""
    done: Future[Any] = Future()
    if unread.inference.abandoned:
        done.set_result(None)
    elif unread.is_late:
        done.set_exception(too_late(unread.inference))
    else:
        return None
    return done


def too_late(inference: Inference) -> DeadlineExceeded:
    """Why a request is not read any more."""
    served = inference.served
    return DeadlineExceeded(f"the request for model '{served.model}' version {served.version} was not read in time")


def _outcome_of(work: Callable[[], Any]) -> Future[Any]:
    done: Future[Any] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done


def _outcome_of_step(steps: Generator[None, None, Any]) -> Future[Any] | None:
    """What the steps return with the next of them; None where others follow."""
    done: Future[Any] = Future()
    try:
        next(steps)
    except StopIteration as end:
        done.set_result(end.value)
    except Exception as error:
        done.set_exception(error)
    else:
        return None
    return done


def is_slow_to_read(inference: Inference, *, max_bytes: int) -> bool:
    """Whether to read its body aside. A compressed body that turns out small is inflated on the way.

    Raises
    ------
    CallerError
        A compressed body is not what it says.
    """
    if inference.is_long:
        return True
    size = sum(map(len, inference.body))
    if inference.encoding is not None:
        if size > SLOW_PLAIN_BYTES:
            return True
        try:
            content = inflate(inference.body, inference.encoding, max_bytes=min(SLOW_PLAIN_BYTES, max_bytes))
        except BodyTooLarge:
            return True
        inference.body, inference.encoding = [content], None
        return False
    if inference.served.takes_texts:
        return size > SLOW_PLAIN_BYTES
    in_json = size if inference.json_length is None else min(size, inference.json_length)
    return in_json > SLOW_JSON_BYTES or size > SLOW_BINARY_BYTES


def reading_in_turns(
    inference: Inference, *, kept: Kept, arena: Arena | None = None
) -> Generator[None, None, InferRequest | None] | None:
    """The steps of reading a large body in JSON; None where it cannot be read in slices.

    They return the request, or None where nobody waits for it any more.
    """
    decoder, json_length = inference.served.decoder, inference.json_length
    if decoder is None or inference.encoding is not None or (json_length or SLOW_JSON_BYTES) < SLOW_JSON_BYTES:
        return None
    pieces = inference.body
    body = pieces[0] if len(pieces) == 1 else bytearray().join(pieces)
    slices = decoder.in_slices(body, json_length, lend=None if arena is None else arena.lend)
    if slices is None:
        return None
    inference.body, inference.size = [], len(body)
    return _turns_of(inference, slices, kept)


def _turns_of(
    inference: Inference, slices: Generator[None, None, InferRequest], kept: Kept
) -> Generator[None, None, InferRequest | None]:
    request: InferRequest | None = None
    while request is None:
        if inference.abandoned:
            return None
        try:
            next(slices)
        except StopIteration as done:
            request = done.value
        yield
    prepare_inputs(inference, request, kept=kept)
    return request


def read_aside(inference: Inference, *, max_bytes: int, kept: Kept) -> InferRequest:
    """Read a large body; what the log will hold of it is written on the way.

    Raises
    ------
    CallerError
    """
    request = inference.read_slowly(max_bytes=max_bytes)
    prepare_inputs(inference, request, kept=kept)
    return request


def prepare_inputs(inference: Inference, request: InferRequest, *, kept: Kept) -> None:
    """Write the inputs of a request for the log, while they are in the nearest caches."""
    served, prepared = inference.served, Prepared()
    prepared.logged_inputs = tensor_records(
        served.input_heads,
        request.inputs,
        request.fragments,
        kept=kept,
        redacted=served.redacted,
        redacted_columns=served.redacted_columns,
    )
    request.plain = False
    inference.prepared = prepared


def are_slow_to_answer(inferences: Sequence[Inference]) -> bool:
    """Whether to write aside what a run gave for these requests, of which some may have failed."""
    run = inferences[0].run
    if run is None or run.nbytes <= SLOW_PLAIN_BYTES:
        return False
    dear = worded = rest = 0
    for inference in inferences:
        prepared, part = inference.prepared, run.nbytes_of(inference)
        if inference.failure is not None or (prepared is not None and prepared.answer is not None):
            continue
        if run.is_unread:
            return True
        if inference.accepts is not None or inference.is_classified:
            dear += part
        elif inference.is_worded:
            worded += part
        else:
            rest += part
    return dear > SLOW_PLAIN_BYTES or worded > SLOW_JSON_BYTES or rest > SLOW_BINARY_BYTES


def prepare_answers(inferences: Sequence[Inference], *, kept: Kept) -> None:
    """Write the outputs of requests that shared a run, for their callers and for the log."""
    run = inferences[0].run
    if run is not None:
        run.read_results()
    for inference in inferences:
        if inference.failure is not None:
            continue
        try:
            _prepare_answer(inference, kept=kept)
        except Exception as fault:
            # Whatever slips through every check fails its own request, and nobody else's.
            inference.give_up(fault)


def _prepare_answer(inference: Inference, *, kept: Kept) -> None:
    outputs, said = inference.outputs, inference.said()
    large = [output.nbytes > SLOW_PLAIN_BYTES for output in outputs]
    flats: list[bytes | None] = [None] * len(outputs)
    for position in range(len(outputs)) if said is None else said:
        flats[position] = (encode_in_slices if large[position] else encode_flat)(outputs[position])
    prepared = inference.prepared or Prepared()
    prepared.logged_outputs = tensor_records(
        inference.served.output_heads,
        outputs,
        [None if large[position] else flat for position, flat in enumerate(flats)],
        kept=kept,
    )
    prepared.answer = inference.outputs_of(flats)
    inference.prepared = prepared
    inference.plain = False


def result_of(done: Future[Any]) -> Any:
    """What came of it; its error without the frames that it came through, which would hold the request's body."""
    error = done.exception()
    if error is not None:
        raise error.with_traceback(None) from None
    return done.result()
