"""Small worlds for tests of the admin side: model folders, engines that seem ready, a spool with predictions."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path

import msgspec
from starlette.applications import Starlette

from gateway.admin.api import create_admin
from gateway.control.store import Store
from gateway.events.addresses import format_id
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION, PredictionRecord, TensorRecord, Timings
from gateway.predictions.spool import SpoolWriter
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.lineage import Lineage, Source, TrainingData
from gateway.repository.manifest import Batching, FileEntry, Manifest, digest_of
from gateway.settings import Settings, SpoolSettings

__all__ = ("SIGNATURE", "World")

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
LINEAGE = Lineage(source=Source("abc123", False), data=TrainingData(uri="file:data.csv", rows=8760), author="ada")


class World:
    """A gateway's files and store, without its processes."""

    def __init__(self, folder: Path, *, token: str = "") -> None:
        self.folder = folder
        self.settings = Settings.model_validate(
            {"state_dir": folder / "state", "models": folder / "models", "admin": {"token": token}}
        )
        self.settings.run_dir.mkdir(parents=True)
        self.settings.models.mkdir()
        self.store = Store(self.settings.store_url)
        self.store.create()

    def app(self, *, approve_wait_seconds: float = 0.0) -> Starlette:
        return create_admin(store=self.store, settings=self.settings, approve_wait_seconds=approve_wait_seconds)

    def add_version(
        self,
        version: int,
        *,
        model: str = "m",
        signature: Signature = SIGNATURE,
        lineage: Lineage = LINEAGE,
        remarks: tuple[str, ...] = (),
    ) -> str:
        """A version folder that `load_version` takes; returns its digest."""
        folder = self.settings.models / model / str(version)
        folder.mkdir(parents=True)
        content = f"{model} {version}".encode()
        (folder / "model.onnx").write_bytes(content)
        manifest = Manifest(
            (FileEntry("model.onnx", len(content), hashlib.sha256(content).hexdigest()),),
            signature,
            Batching("equal", rows=64, reason="answers were equal"),
            lineage,
            "",
            remarks,
        )
        manifest = msgspec.structs.replace(manifest, digest=digest_of(msgspec.to_builtins(manifest)))
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        return manifest.digest

    def ready(self, version: int, *, model: str = "m") -> None:
        """Make the version's engine look ready."""
        (self.settings.run_dir / f"engine-{model}-{version}.sock").touch()

    def note(self, version: int, state: str, reason: str = "", *, model: str = "m") -> None:
        """Say of an engine what the supervisor would."""
        note = self.settings.run_dir / f"engine-{model}-{version}.json"
        note.write_text(json.dumps({"state": state, "reason": reason}))

    def serve(self, *versions: int, model: str = "m") -> None:
        """Add versions, approve them, and make their engines look ready."""
        for version in versions:
            digest = self.add_version(version, model=model)
            self.store.register(model, version, digest)
            self.store.approve(model, version, actor="ada", reason="tests pass")
            self.ready(version, model=model)

    def predict(self, *models: str, slot: int = 0, time: str = "2012-03-01T06:00:00.000Z") -> list[str]:
        """Log one prediction of version 1 for each name, and a label after each; returns their ids."""
        ids = []
        stream = self.settings.spool_dir / f"front-{slot}"
        with closing(SpoolWriter(stream, slot=slot, settings=SpoolSettings())) as spool:
            for model in models:
                ids.append(format_id(spool.boot, spool.next_sequence))
                spool.append(
                    [
                        (KIND_PREDICTION, prediction(ids[-1], spool.next_sequence, model, time, self.digest(model))),
                        (KIND_FEEDBACK, b'{"id":"x","time":"2012-03-01T06:00:00Z","model":"m"}'),
                    ]
                )
        return ids

    def digest(self, model: str, version: int = 1) -> str:
        state = self.store.snapshot().versions.get((model, version))
        return state.digest if state else "sha256:" + "0" * 64

    def close(self) -> None:
        self.store.close()


def prediction(event_id: str, sequence: int, model: str, time: str, digest: str) -> bytes:
    record = msgspec.to_builtins(
        PredictionRecord(
            id=event_id,
            time=time,
            gateway="here",
            seq=sequence,
            model=model,
            version=1,
            digest=digest,
            arm="stable",
            weight=10.0,
            reason="weight",
            status=200,
            rows=1,
            timings=Timings(5, 40, 90),
            inputs=[TensorRecord("x", "FP32", (1, 2), [1.0, 2.5])],
            outputs=[TensorRecord("y", "FP32", (1, 1), [12.5])],
            parameters={},
        )
    )
    # A front leaves out what is not there.
    return msgspec.json.encode({name: value for name, value in record.items() if value is not None})
