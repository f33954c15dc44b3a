"""The shipped model on its real hours: what the monitor says of each version comes from the data."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.control.change import VersionState
from gateway.control.monitor import Monitor
from gateway.control.versions import FixedVersions, FolderVersions
from gateway.drift.profile import FeatureProfile, Profile
from gateway.engine.oneshot import open_engine
from gateway.events.records import TensorRecord
from gateway.repository.manifest import load_version

CHECKOUT = Path(__file__).parents[2]
LATE_HOURS = 48
FLUSH_HOURS = 25


@pytest.fixture(scope="module")
def bikes() -> SimpleNamespace:
    """Real hours with what versions 1 to 3 answer to them."""
    path = CHECKOUT / "training" / "bike-demand" / "hours.py"
    spec = importlib.util.spec_from_file_location("bike_demand_hours", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    hours = module.read_hours()
    answers, mended = {}, None
    for version in (1, 2, 3):
        with open_engine(CHECKOUT / "models" / "bike-demand" / str(version) / "model.onnx") as engine:
            answers[version] = answer(engine, hours.features)
            if version == 3:
                mended = answer(engine, in_fahrenheit(hours.features))
    return SimpleNamespace(
        times=hours.times, features=hours.features, counts=hours.counts, answers=answers, mended=mended
    )


def answer(engine: Any, features: Any) -> Any:
    return engine.run({"features": features})["count"][:, 0].astype(np.float64)


def in_fahrenheit(features: Any) -> Any:
    """What version 3 was trained on: columns 3 and 4 are temperatures."""
    fed = features.copy()
    fed[:, 3:5] = fed[:, 3:5] * 1.8 + 32.0
    return fed


def in_celsius(profile: Profile) -> Profile:
    """The reference of version 3 as it would be without the mistake."""

    def mended(feature: FeatureProfile) -> FeatureProfile:
        assert feature.low is not None and feature.high is not None and feature.mean is not None
        return msgspec.structs.replace(
            feature,
            edges=tuple((edge - 32.0) / 1.8 for edge in feature.edges),
            low=(feature.low - 32.0) / 1.8,
            high=(feature.high - 32.0) / 1.8,
            mean=(feature.mean - 32.0) / 1.8,
        )

    changed = {name: mended(profile.features[name]) for name in ("tmin", "tmax")}
    return msgspec.structs.replace(profile, features=profile.features | changed)


def bike_world(make_world: Any, *, mended: bool = False) -> Any:
    """A world whose model `m` is the shipped one, profiles and policy and all."""
    shipped = FolderVersions(CHECKOUT / "models")
    folders = [load_version(CHECKOUT / "models" / "bike-demand" / str(version)) for version in (1, 2, 3)]
    shipped.follow(VersionState(each.model, each.version, each.digest, "approved") for each in folders)
    profiles: dict[int, Any] = {version: shipped.profile("bike-demand", version) for version in (1, 2, 3)}
    assert None not in profiles.values(), shipped.news()
    if mended:
        profiles[3] = in_celsius(profiles[3])
    world = make_world()
    world.versions = FixedVersions(
        {"m": shipped.policy("bike-demand")}, {("m", version): profile for version, profile in profiles.items()}
    )
    return world


def replay(world: Any, bikes: Any, first: str, last: str, *, labels: bool = True, answers: Any = None) -> Monitor:
    """Every hour of these days through the route as it stands, labels two days late."""
    rows = [row for row, time in enumerate(bikes.times) if first <= time[:10] <= last]
    answered = bikes.answers | (answers or {})

    def send(row: int, route: Any) -> tuple[str, int]:
        on_canary = route.canary is not None and world.random.random() < route.weight / 100.0
        version = route.canary if on_canary else route.stable
        values = [float(value) for value in bikes.features[row]]
        found = world.predict(
            version,
            arm="canary" if on_canary else "stable",
            weight=route.weight,
            inputs=[TensorRecord("features", "FP32", (1, 6), values)],
            outputs=[TensorRecord("count", "FP32", (1, 1), [float(answered[version][row])])],
            parameters={"event_time": bikes.times[row]},
        )
        return found, row

    async def all_of_it() -> Monitor:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        sent: list[tuple[str, int]] = []
        for number, row in enumerate(rows):
            sent.append(send(row, monitor.models["m"].route))
            if labels and len(sent) > LATE_HOURS:
                late, late_row = sent[-LATE_HOURS - 1]
                world.label(late, float(bikes.counts[late_row]))
            if number % FLUSH_HOURS == 0:
                world.now[0] += 1.0
                await world.feed(monitor, flush_every=4096)
        await world.feed(monitor, flush_every=4096)
        await monitor.close()
        return monitor

    return asyncio.run(all_of_it())


def test_version_1_decays_in_2012_and_the_week_it_began_is_named(make_world: Any, bikes: Any) -> None:
    world = bike_world(make_world)
    replay(world, bikes, "2011-04-01", "2012-03-31")
    [harm] = [decision for decision in world.decisions() if decision.kind == "harm"]
    # Misses were 5.8 % in the last quarter of 2011, and are 42.5 % from the first week of 2012 on.
    assert harm.evidence["since_week"] == "2012-01-02"
    assert harm.evidence["miss_rate_since"] > harm.evidence["allowed_miss_rate"] > 0.057
    assert world.kinds().count("retrain_requested") == 1
    assert "rollback" not in world.kinds()


def test_with_labels_withheld_nothing_is_rolled_back(make_world: Any, bikes: Any) -> None:
    world = bike_world(make_world)
    replay(world, bikes, "2011-04-01", "2012-03-31", labels=False)
    assert "world_changed" in world.kinds()
    assert not {"rollback", "harm", "retrain_requested"} & set(world.kinds())


def test_version_2_takes_over_from_version_1(make_world: Any, bikes: Any) -> None:
    world = bike_world(make_world)
    world.store.start_rollout("m", 2, plan={"steps": [10.0, 50.0]}, actor="tester", reason="a better one")
    world.now[0] += 2.0
    replay(world, bikes, "2012-01-01", "2012-04-30")
    assert world.store.snapshot().routes["m"].stable == 2
    assert "rollback" not in world.kinds()


def test_version_3_is_caught_and_taken_back(make_world: Any, bikes: Any) -> None:
    world = bike_world(make_world)
    world.store.set_route("m", stable=2, actor="tester", reason="version 2 has taken over")
    world.store.start_rollout("m", 3, plan={"steps": [10.0, 50.0]}, actor="tester", reason="the newest")
    world.now[0] += 2.0
    replay(world, bikes, "2013-01-01", "2013-03-31")
    assert "rollback" in world.kinds()
    assert world.store.snapshot().routes["m"].canary is None
    assert world.store.snapshot().routes["m"].stable == 2


def test_version_3_without_its_mistake_is_not_taken_back(make_world: Any, bikes: Any) -> None:
    world = bike_world(make_world, mended=True)
    world.store.set_route("m", stable=2, actor="tester", reason="version 2 has taken over")
    world.store.start_rollout("m", 3, plan={"steps": [10.0, 50.0]}, actor="tester", reason="the newest")
    world.now[0] += 2.0
    replay(world, bikes, "2013-01-01", "2013-05-31", answers={3: bikes.mended})
    assert "rollback" not in world.kinds()
    assert world.store.snapshot().routes["m"].stable == 3
