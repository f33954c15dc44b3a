"""What the admin API does, without HTTP: plain calls on the store, the model folders, the spool and the run directory.

They block, so the API runs them in threads. What comes back is ready to be written as JSON.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from gateway.admin.engines import EngineState, engine_state, note_time
from gateway.admin.errors import NotFound
from gateway.admin.plans import plan_from
from gateway.control.errors import Refused
from gateway.control.quality import NO_MISS, NO_MISS_NEEDS, miss_above, reference_miss
from gateway.control.store import Snapshot, Store, VersionState
from gateway.drift.profile import FeatureProfile, Profile, ProfileError, decode_profile
from gateway.events.encoding import seconds_of
from gateway.events.records import KIND_PREDICTION, DecisionRecord, PredictionRecord
from gateway.predictions.archive import Archive
from gateway.predictions.lookup import LogLookup
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import PROFILE_NAME, ModelVersion, is_model_name, load_version
from gateway.repository.policy import load_policy
from gateway.rollout.machine import Event, RolloutState
from gateway.routing.table import Route

__all__ = ("Operations",)

MAX_STATUS_BYTES = 16 * 2**20

Body = dict[str, Any]


class Operations:
    """Everything an operator can ask for.

    Parameters
    ----------
    store : Store
    models_dir, spool_dir, run_dir : Path
    status_file : Path
        Where the monitor writes what it sees, a JSON object per model.
    archive : Archive, optional
        Where predictions are that have left the spool.
    """

    def __init__(
        self,
        *,
        store: Store,
        models_dir: Path,
        spool_dir: Path,
        run_dir: Path,
        status_file: Path,
        archive: Archive | None = None,
    ) -> None:
        self._store = store
        self._models_dir = models_dir
        self._run_dir = run_dir
        self._status_file = status_file
        self.spool_dir = spool_dir
        self._log = LogLookup(spool_dir, archive)
        self._log_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Operations {self._store!r} models={self._models_dir}>"

    def health(self) -> Body:
        return {"status": "ok", "revision": self._store.revision()}

    def models(self) -> Body:
        """Every model the store knows, with its versions and its route."""
        snapshot = self._store.snapshot()
        names = sorted({model for model, _ in snapshot.versions} | set(snapshot.routes))
        return {"models": [self._model(snapshot, name) for name in names]}

    def model(self, model: str) -> Body:
        snapshot = self._store.snapshot()
        if model not in snapshot.routes and not any(name == model for name, _ in snapshot.versions):
            raise NotFound(f"there is no model {model!r}")
        return self._model(snapshot, model)

    def version(self, model: str, version: int) -> Body:
        """One version: status, engine, manifest with its lineage, and the gist of its profile."""
        snapshot = self._store.snapshot()
        state = snapshot.versions.get((model, version))
        folder = self._folder(model, version)
        try:
            found = load_version(folder)
        except RepositoryError as error:
            if state is None:
                raise NotFound(f"there is no version {version} of model {model!r}: {error}") from None
            return {**self._version(snapshot, state), "manifest": None, "problem": str(error), "profile": None}
        if state is None:
            state = VersionState(model, version, found.digest, "registered")
        body = self._version(snapshot, state)
        if found.digest != state.digest:
            body["problem"] = _of_other_files(found, state)
        return {**body, "manifest": msgspec.to_builtins(found.manifest), "profile": _gist(folder / PROFILE_NAME)}

    def approve(self, model: str, version: int, *, reason: str, digest: str | None, actor: str) -> bool:
        """Register the version by what its folder holds now, and approve exactly that; False when it was already."""
        found = self._found(model, version)
        if digest is not None and digest != found.digest:
            raise Refused(f"{model} version {version} has the digest {found.digest}, not {digest}; look at it again")
        before = self._store.register(model, version, found.digest)
        self._store.approve(model, version, digest=found.digest, actor=actor, reason=reason)
        return before.status != "approved"

    def reject(self, model: str, version: int, *, reason: str, actor: str) -> Body:
        state = self._store.reject(model, version, actor=actor, reason=reason)
        return self._version(self._store.snapshot(), state)

    def engine(self, model: str, version: int) -> EngineState:
        return engine_state(self._run_dir, model, version)

    def engine_note_time(self, model: str, version: int) -> int:
        return note_time(self._run_dir, model, version)

    def routes(self) -> Body:
        snapshot = self._store.snapshot()
        return {
            "revision": snapshot.revision,
            "routes": [_route(route) for _, route in sorted(snapshot.routes.items())],
        }

    def route(self, model: str) -> Body:
        route = self._store.snapshot().routes.get(model)
        if route is None:
            raise NotFound(f"there is no route for model {model!r}; `gateway route set` makes one")
        return _route(route)

    def set_route(
        self,
        model: str,
        *,
        stable: int,
        canary: int | None,
        weight: float,
        reason: str,
        allow_signature_change: bool,
        expected_revision: int | None,
        actor: str,
    ) -> Body:
        before = self._store.snapshot().routes.get(model)
        # Taking weight away must be possible while an engine is down, so only who gets more has to be ready.
        is_other = before is None or stable != before.stable
        gets_more = before is None or canary != before.canary or weight > before.weight
        if is_other:
            self._require_ready(model, stable)
        if canary is not None and gets_more:
            self._require_ready(model, canary)
        if canary is not None and (is_other or gets_more):
            self._require_alike(model, stable, canary, allowed=allow_signature_change)
        rollout = self._store.rollout(model)
        self._store.set_route(
            model,
            stable=stable,
            canary=canary,
            weight=weight,
            actor=actor,
            reason=reason,
            expected_revision=expected_revision,
        )
        return self.route(model) | self._superseded(rollout)

    def remove_route(self, model: str, *, reason: str, expected_revision: int | None, actor: str) -> Body:
        rollout = self._store.rollout(model)
        decision = self._store.remove_route(model, actor=actor, reason=reason, expected_revision=expected_revision)
        return {"decision": _decision(decision)} | self._superseded(rollout)

    def rollback(
        self, model: str, *, version: int | None, reason: str, expected_revision: int | None, actor: str
    ) -> Body:
        decision = self._store.rollback(
            model, version=version, actor=actor, reason=reason, expected_revision=expected_revision
        )
        return {"route": self.route(model), "decision": _decision(decision)}

    def start_rollout(
        self,
        model: str,
        *,
        canary: int,
        plan: dict[str, Any],
        reason: str,
        allow_signature_change: bool,
        actor: str,
    ) -> Body:
        route = self._store.snapshot().routes.get(model)
        if route is None:
            raise NotFound(f"there is no route for model {model!r}; `gateway route set` makes one")
        policy = load_policy(self._models_dir / model)
        whole = plan_from(policy, changes=plan)
        self._require_ready(model, canary)
        self._require_alike(model, route.stable, canary, allowed=allow_signature_change)
        started = self._store.start_rollout(model, canary, plan=whole, actor=actor, reason=reason)
        profiles = [_profile_at(self._folder(model, version) / PROFILE_NAME) for version in (route.stable, canary)]
        is_known = miss_above(policy.quality, reference_miss(*profiles)) is not None
        notes = [] if is_known or "quality" not in whole["require"] else [f"{NO_MISS}; it needs {NO_MISS_NEEDS}"]
        return {**self.rollout(started.after["rollout"]["id"]), "notes": notes}

    def rollouts(self, *, model: str | None, limit: int) -> Body:
        return {"rollouts": [self._rollout(state) for state in self._store.rollouts(model, limit)]}

    def rollout(self, rollout_id: str) -> Body:
        return self._rollout(self._store.rollout_by_id(rollout_id))

    def move_rollout(self, rollout_id: str, event: Event, *, reason: str, actor: str) -> Body:
        """Move a rollout by hand. To resume a frozen one is to say that what froze it is mended."""
        if event == "resume" and self._store.rollout_by_id(rollout_id).phase == "frozen":
            self._store.move_rollout(rollout_id, "thaw", actor=actor, reason=reason)
        self._store.move_rollout(rollout_id, event, actor=actor, reason=reason)
        return self.rollout(rollout_id)

    def prediction(self, prediction_id: str) -> Body:
        """One prediction with its labels, and where its version and its route came from."""
        found = self._log.find(prediction_id)
        if found is None or found.kind != KIND_PREDICTION:
            raise NotFound(f"the log here holds no prediction {prediction_id} (any more)")
        try:
            record = msgspec.json.decode(found.payload, type=PredictionRecord)
        except msgspec.DecodeError as error:
            raise NotFound(f"prediction {prediction_id} is not a record this gateway can read: {error}") from None
        with self._log_lock:
            labels = self._log.labels_of(prediction_id, model=record.model, since=seconds_of(record.time))
        state = self._store.snapshot().versions.get((record.model, record.version))
        return {
            "prediction": msgspec.json.decode(found.payload),
            "labels": [msgspec.json.decode(label.payload) for label in labels],
            "version": {"status": state.status if state else "unknown", **self._origin(record)},
            "approval": _optional(self._store.approval(record.model, record.version, record.digest, until=record.time)),
            "route": _optional(_led(record, self._store.route_decisions(record.model, until=record.time))),
        }

    def decisions(self, *, model: str | None, after: int | None, limit: int) -> Body:
        """Decisions after a sequence number, or the newest ones."""
        found = self._store.decisions(after_seq=after or 0, model=model, limit=limit, newest=after is None)
        return {"decisions": [_decision(decision) for decision in found]}

    def verify_audit(self) -> Body:
        report = self._store.audit()
        return {"ok": report.ok, **msgspec.to_builtins(report)}

    def drift(self, model: str | None) -> Body:
        """What the monitor wrote last: all of it, or what it sees of one model."""
        try:
            with self._status_file.open("rb") as file:
                raw = file.read(MAX_STATUS_BYTES + 1)
            status = msgspec.json.decode(raw, type=dict[str, Any])
        except FileNotFoundError:
            raise NotFound("the monitor has not written a status yet") from None
        except (OSError, msgspec.DecodeError) as error:
            raise NotFound(f"the monitor's status cannot be read: {error}") from None
        if model is None:
            return status
        seen = status.get("models", {})
        if model not in seen:
            raise NotFound(f"the monitor has not seen model {model!r} yet")
        return dict(seen[model])

    def _model(self, snapshot: Snapshot, model: str) -> Body:
        route = snapshot.routes.get(model)
        states = sorted((key, state) for key, state in snapshot.versions.items() if key[0] == model)
        return {
            "model": model,
            "route": None if route is None else _route(route),
            "versions": [self._version(snapshot, state) for _, state in states],
        }

    def _version(self, snapshot: Snapshot, state: VersionState) -> Body:
        route = snapshot.routes.get(state.model)
        engine = self.engine(state.model, state.version)
        if state.status == "approved" and engine.state == "stopped":
            engine = EngineState(reason=self._problem(state))
        return {
            **msgspec.to_builtins(state),
            "arm": _arm(route, state.version),
            "weight": _weight(route, state.version),
            "engine": msgspec.to_builtins(engine),
        }

    def _problem(self, state: VersionState) -> str:
        """What is wrong with the folder of a version; empty where nothing is."""
        try:
            found = load_version(self._folder(state.model, state.version))
        except RepositoryError as error:
            return str(error)
        return "" if found.digest == state.digest else _of_other_files(found, state)

    def _rollout(self, state: RolloutState) -> Body:
        return {
            **msgspec.to_builtins(state),
            "weight": state.weight,
            "over": state.over,
            "plan": msgspec.to_builtins(self._store.plan(state.id)),
        }

    def _superseded(self, rollout: RolloutState | None) -> Body:
        """The rollout that was open, where what was done by hand has ended it."""
        after = None if rollout is None else self._store.rollout_by_id(rollout.id)
        return {"superseded": self._rollout(after)} if after is not None and after.phase == "superseded" else {}

    def _origin(self, record: PredictionRecord) -> Body:
        try:
            found = self._found(record.model, record.version)
        except (RepositoryError, NotFound) as error:
            return {"lineage": None, "problem": str(error)}
        if found.digest != record.digest:
            return {"lineage": None, "problem": f"the folder has the digest {found.digest} now"}
        return {"lineage": msgspec.to_builtins(found.manifest.lineage)}

    def _folder(self, model: str, version: int) -> Path:
        if not is_model_name(model):
            raise NotFound(f"there is no model {model[:64]!r}")
        return self._models_dir / model / str(version)

    def _found(self, model: str, version: int) -> ModelVersion:
        folder = self._folder(model, version)
        if not folder.is_dir():
            raise NotFound(f"there is no version {version} of model {model!r} in {self._models_dir}")
        return load_version(folder)

    def _approved(self, model: str, version: int) -> ModelVersion:
        found = self._found(model, version)
        known = self._store.snapshot().versions.get((model, version))
        if known is None or known.status != "approved" or known.digest != found.digest:
            raise Refused(
                f"the folder of {model} version {version} has the digest {found.digest}, not the approved one; "
                "put the approved files back"
            )
        return found

    def _require_ready(self, model: str, version: int) -> None:
        engine = self.engine(model, version)
        if engine.state != "ready":
            known = self._store.snapshot().versions.get((model, version))
            if known is None:
                raise NotFound(f"there is no version {version} of model {model!r}")
            if known.status != "approved":
                raise Refused(
                    f"{model} version {version} is {known.status}, not approved; "
                    f"`gateway models approve {model} {version} --reason TEXT` approves it"
                )
            raise Refused(f"{model} version {version} is not ready: its engine is {engine.text}")

    def _require_alike(self, model: str, stable: int, canary: int, *, allowed: bool) -> None:
        if allowed:
            return
        one, other = (self._approved(model, version).manifest.signature for version in (stable, canary))
        for side in one.sides_unlike(other):
            raise Refused(
                f"{model} version {canary} has other {side} than version {stable}; "
                "callers would see which one answers (allow_signature_change permits it)"
            )


def _route(route: Route) -> Body:
    """A route as operators see it; the salt stays a secret."""
    body = msgspec.to_builtins(route)
    del body["salt"]
    return dict(body)


def _decision(decision: DecisionRecord) -> Body:
    return dict(msgspec.to_builtins(decision))


def _of_other_files(found: ModelVersion, state: VersionState) -> str:
    return f"the folder has the digest {found.digest}, not the one that is {state.status}"


def _optional(decision: DecisionRecord | None) -> Body | None:
    return None if decision is None else _decision(decision)


def _led(record: PredictionRecord, decisions: list[DecisionRecord]) -> DecisionRecord | None:
    """The decision that led a prediction to its version, of those before it was answered, the newest first.

    A front follows a route within a second, and an answer takes as long as it takes: a newer one may be there by then.
    """
    for decision in decisions:
        after = decision.after
        # The weight is 0, whatever the route says, where the canary cannot serve.
        if after.get(record.arm) == record.version and record.weight in (0.0, after.get("weight")):
            return decision
    return decisions[0] if decisions else None


def _arm(route: Route | None, version: int) -> str | None:
    if route is None:
        return None
    return "stable" if version == route.stable else "canary" if version == route.canary else None


def _weight(route: Route | None, version: int) -> float:
    arm = _arm(route, version)
    if route is None or arm is None:
        return 0.0
    return route.weight if arm == "canary" else 100.0 - route.weight


def _profile_at(path: Path) -> Profile | None:
    try:
        return decode_profile(path.read_bytes())
    except (OSError, ProfileError):
        return None


def _gist(path: Path) -> Body | None:
    profile = _profile_at(path)
    if profile is None:
        return None
    return {
        "rows": profile.rows,
        "features": {name: _range(feature) for name, feature in profile.features.items()},
        "outputs": {name: _range(feature) for name, feature in profile.outputs.items()},
        "loss": None if profile.loss is None else msgspec.to_builtins(profile.loss),
    }


def _range(feature: FeatureProfile) -> Body:
    return {name: getattr(feature, name) for name in ("kind", "low", "high", "mean")}
