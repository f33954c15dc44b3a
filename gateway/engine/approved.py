"""The engine of one approved version, as the supervisor starts it."""

from __future__ import annotations

import math
import time
from pathlib import Path

import setproctitle

from gateway.drift.profile import Profile, ProfileError, decode_profile
from gateway.engine.cores import choose_threads, usable_cores
from gateway.engine.instances import Others, choose_instances, run_instances
from gateway.engine.loading import hold_memory, load_session, warm_up
from gateway.engine.memory import Floor, resident_bytes
from gateway.engine.notes import socket_of
from gateway.engine.order import EngineOrder
from gateway.engine.process import run_engine
from gateway.engine.providers import choose_providers
from gateway.engine.pulse import Pulse, lay_out_beats
from gateway.engine.session import ModelSession
from gateway.engine.wire import Hello
from gateway.protocol.datatypes import FREE, NUMPY_OF, Signature
from gateway.repository.labels import read_labels
from gateway.repository.manifest import PROFILE_NAME, TRIED_ROWS, load_version
from gateway.repository.policy import load_policy
from gateway.repository.redaction import redaction_of
from gateway.repository.staging import stage
from gateway.telemetry.log import ProcessLog

__all__ = ("WIDE_BYTES", "rows_written_at_once", "run_approved")

WIDE_BYTES = 2**18
"""Larger outputs of one run are written aside by a front, request by request (`SLOW_JSON_BYTES` there); compressed ones
sooner."""


def run_approved(order: EngineOrder, *, log: ProcessLog) -> None:
    """Copy the files while hashing them, load, warm up, and serve until SIGTERM.

    Raises
    ------
    EngineStartFailed, RepositoryError, PolicyError
        The version cannot be served; nothing was loaded that was not approved.
    """
    version = load_version(Path(order.folder))
    policy = load_policy(version.folder.parent)
    redaction = redaction_of(version, policy.logging.redact)
    for doubt in redaction.doubts:
        log.warn(doubt)
    threads, why = choose_threads(order.threads, usable_cores())
    providers, missing = choose_providers(
        policy.engine.providers, options=policy.engine.options, installed=ModelSession.installed_providers()
    )
    if missing:
        log.warn(missing)
    model_file = stage(version, Path(order.staged), expected_digest=order.digest)
    session = load_session(
        model_file, threads=threads, providers=providers, max_resident_bytes=order.max_resident_bytes
    )
    if session.provider != providers[0].name:
        log.warn(f"{providers[0].name} is installed but could not be started; {session.provider} is taken")
    batching = version.manifest.batching
    batchable = batching.allows(exact=policy.batching.exact)
    most = batching.shared_rows(policy.batching.max_rows, exact=policy.batching.exact)
    most = min(most, max(TRIED_ROWS, rows_written_at_once(session.signature)))
    warm = warm_up(
        session,
        profile=_profile(model_file.parent, log),
        max_rows=most,
        max_seconds=order.start_timeout_seconds / 2,
    )
    floor = Floor(lambda: session.shrink(warm.row, until=time.monotonic() + order.hang_seconds))
    hold_memory(order.max_resident_bytes)
    instances, of_those = choose_instances(order.instances, session)
    log.note(
        "loaded",
        {
            "provider": session.provider,
            "threads": why,
            "instances": of_those,
            "warmed_up_on": warm.said,
            "shared_rows": most,
            "resident_bytes": resident_bytes(),
            "max_resident_bytes": order.max_resident_bytes,
        },
    )
    hello = Hello(
        signature=session.signature,
        model=order.model,
        version=order.version,
        digest=order.digest,
        batchable=batchable,
        max_rows=most,
        max_delay_us=policy.batching.max_delay_us,
        batching=f"{batching.verdict}: {batching.reason}",
        redact=redaction.inputs,
        redact_columns=redaction.columns,
        sample=policy.logging.sample,
        labels=read_labels(version.folder.parent, policy.labels),
        omitted=session.omitted,
    )
    lay_out_beats(Path(order.beat), instances)
    sockets = [socket_of(Path(order.socket), number) for number in range(instances)]

    def serve(number: int, others: Others) -> None:
        if number:
            session.watch_again()
            setproctitle.setproctitle(f"{setproctitle.getproctitle()} instance {number}")
        others.await_files(sockets[1 : 1 + len(others)], seconds=order.start_timeout_seconds)
        run_engine(
            session,
            sockets[number],
            hello=hello,
            floor=floor,
            max_run_seconds=order.hang_seconds,
            max_output_bytes=order.max_output_bytes,
            drain_seconds=order.drain_seconds,
            pulse=Pulse(Path(order.beat), number),
            others=others,
        )

    run_instances(instances, serve, warn=log.warn)


def rows_written_at_once(signature: Signature) -> int:
    """Rows of a run whose outputs are no larger than `WIDE_BYTES`; 0 where their size is not known beforehand.

    >>> from gateway.protocol.datatypes import TensorSpec
    >>> rows_written_at_once(Signature((), (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "INT64", (-1,)))))
    16384
    """
    row_bytes = 0
    for spec in signature.outputs:
        if spec.datatype == "BYTES" or FREE in spec.shape[1:]:
            return 0
        row_bytes += math.prod(spec.shape[1:]) * NUMPY_OF[spec.datatype].itemsize
    return WIDE_BYTES // max(1, row_bytes)


def _profile(folder: Path, log: ProcessLog) -> Profile | None:
    try:
        return decode_profile((folder / PROFILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ProfileError) as error:
        log.warn("the profile cannot be read, so the model is warmed up on zeros", {"error": str(error)})
        return None
