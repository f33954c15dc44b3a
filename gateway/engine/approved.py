"""The engine of one approved version, as the supervisor starts it."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.engine.loading import load_session
from gateway.engine.order import EngineOrder
from gateway.engine.process import run_engine
from gateway.engine.wire import Hello
from gateway.repository.labels import read_labels
from gateway.repository.manifest import load_version
from gateway.repository.policy import load_policy
from gateway.repository.redaction import redaction_of
from gateway.repository.staging import stage

__all__ = ("run_approved",)


def run_approved(order: EngineOrder) -> None:
    """Copy the files while hashing them, load, warm up, and serve until SIGTERM.

    Raises
    ------
    EngineStartFailed, RepositoryError, PolicyError
        The version cannot be served; nothing was loaded that was not approved.
    """
    version = load_version(Path(order.folder))
    policy = load_policy(version.folder.parent)
    redaction = redaction_of(version, policy.logging.redact)
    session = load_session(
        stage(version, Path(order.staged), expected_digest=order.digest),
        threads=order.threads,
        max_resident_bytes=order.max_resident_bytes,
    )
    batching = version.manifest.batching
    hello = Hello(
        signature=session.signature,
        pid=os.getpid(),
        model=order.model,
        version=order.version,
        digest=order.digest,
        batchable=batching.allows(exact=policy.batching.exact),
        max_rows=policy.batching.max_rows,
        max_delay_us=policy.batching.max_delay_us,
        batching=f"{batching.verdict}: {batching.reason}",
        redact=redaction.inputs,
        redact_columns=redaction.columns,
        sample=policy.logging.sample,
        labels=read_labels(version.folder.parent, policy.labels),
        omitted=session.omitted,
    )
    run_engine(
        session,
        Path(order.socket),
        hello=hello,
        max_run_seconds=order.hang_seconds,
        drain_seconds=order.drain_seconds,
        beat_path=Path(order.beat),
    )
