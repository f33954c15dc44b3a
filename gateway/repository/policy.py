"""The policy of one model: `models/<name>/model.toml`.

An unknown key or a wrong value is refused with the file, the key and what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.drift.streams import check_detector
from gateway.protocol.mistakes import told_mistake
from gateway.rollout.errors import PlanError
from gateway.rollout.plan import Plan, check_plan

__all__ = (
    "Action",
    "BatchingPolicy",
    "DetectorPolicy",
    "DriftPolicy",
    "EnginePolicy",
    "LoggingPolicy",
    "ModelPolicy",
    "PolicyError",
    "QualityPolicy",
    "RolloutPolicy",
    "RoutePolicy",
    "load_policy",
)

Action = Literal["alert", "pause", "rollback", "retrain"]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Days = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]


class PolicyError(Exception):
    """Raised when `model.toml` cannot be read or has a key or value that is not allowed."""


class RoutePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The route a model gets when the store sees it for the first time."""

    stable: int = 1
    canary: int | None = None
    weight: Percent = 0.0


class BatchingPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which requests share a run.

    `exact`: only where answers are equal bit for bit to those of each request alone.
    `max_rows`: of the requests that share a run, where a version was tried with so many; a larger request goes alone.
    `max_delay_us`: a request waits so long for others, in microseconds, when an engine is free (Triton's
    `max_queue_delay_microseconds`, 0 there too).
    """

    exact: bool = False
    max_rows: Annotated[int, msgspec.Meta(ge=1)] = 1024
    max_delay_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class EnginePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engines of this model run.

    `providers`: onnxruntime's execution providers in the order of preference; those that are not installed are passed
    over, and a version with none of them is not served. `options`: for a provider, its options as onnxruntime has them.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    options: dict[str, dict[str, str]] = {}


class DriftPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input and output drift against the reference profile (e-CUSUM).

    `false_alarm_days`: promised mean time between false alarms of one version, in days; at most a million.
    `tolerance`: density ratios below 1 + tolerance are no drift.
    `ignore`: inputs that are no evidence, such as a calendar.
    """

    ignore: tuple[str, ...] = ()
    tolerance: Positive = 0.10
    false_alarm_days: Days = 90.0
    inputs: Action = "alert"
    outputs: Action = "alert"


class QualityPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labelled quality: which output a label speaks of and what counts as a miss.

    `output`: the one that a label is the true value of, and a column of that name in a reference; empty, a label
    speaks of the first output, and no column is one.
    `loss`: `absolute_error` is the distance of the output's first value from the label; `zero_one`, for classes, is 0
    where the predicted class is the label and else 1. The class is the place of the largest of several values, or one
    value rounded.
    A row is a miss when its loss is above `miss_above`; left out, the 0.9 quantile of the reference's loss is taken,
    and of classes each wrong one is a miss.
    """

    output: str = ""
    loss: Literal["absolute_error", "zero_one"] = "absolute_error"
    miss_above: float | None = None
    tolerance: Positive = 0.05
    action: Action = "rollback"


class DetectorPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A river detector by name on the loss of each version; `action` is `alert` unless told otherwise."""

    name: str
    action: Action = "alert"
    parameters: dict[str, float] = {}


class RolloutPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a canary is judged and taken forward.

    `steps`: the canary's weights in percent, which rise, above 0 and below 100.
    `false_rollback` (alpha) and `bad_promotion` hold over the whole rollout, whenever and however often one looks.
    `harm_ratio`: a canary is harmful when its events are more than this many times as frequent as the stable's.
    `worse_ratio`: a canary is as good as stable when shown to have less than this many times its misses.
    """

    steps: tuple[Percent, ...] = (10.0, 50.0)
    false_rollback: Probability = 0.01
    bad_promotion: Probability = 0.05
    harm_ratio: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    worse_ratio: Annotated[float, msgspec.Meta(gt=1)] = 1.25
    require: tuple[Literal["errors", "quality"], ...] = ("quality",)
    errors: Action = "rollback"
    outputs: Action = "pause"
    inputs: Action = "rollback"
    max_hours: Positive = 168.0


class LoggingPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a prediction is logged; what is left out is named in the record.

    `redact`: inputs, or columns of inputs by their name in the profile, whose content is never logged.
    `sample`: share of answered predictions that are logged with their tensors, chosen by the hash of the routing key
    (without one, of the prediction's id); of the others everything else is logged. Failed ones are always whole.
    """

    redact: tuple[str, ...] = ()
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class ModelPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `model.toml`; every table may be left out.

    `labels`: for an output, the file beside `model.toml` with the names of its classes, one a line.
    """

    description: str = ""
    approvals: dict[str, str] = {}
    route: RoutePolicy = RoutePolicy()
    batching: BatchingPolicy = BatchingPolicy()
    engine: EnginePolicy = EnginePolicy()
    drift: DriftPolicy = DriftPolicy()
    quality: QualityPolicy = QualityPolicy()
    detectors: tuple[DetectorPolicy, ...] = (DetectorPolicy("ADWIN"),)
    rollout: RolloutPolicy = RolloutPolicy()
    logging: LoggingPolicy = LoggingPolicy()
    labels: dict[str, str] = {}


def load_policy(folder: Path) -> ModelPolicy:
    """Read `model.toml` of one model folder; a folder without the file has the default policy.

    Raises
    ------
    PolicyError
        With the file, the key and what is allowed.
    """
    path = folder / "model.toml"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ModelPolicy()
    except OSError as error:
        raise PolicyError(f"cannot read {path}: {error.strerror}") from None
    try:
        policy = msgspec.toml.decode(raw, type=ModelPolicy)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: {told_mistake(error, ModelPolicy)}") from None
    for version, digest in policy.approvals.items():
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise PolicyError(f"{path}: approvals.{version} = {digest!r}: expected a version and 'sha256:<64 hex>'")
    stray = sorted(set(policy.engine.options) - set(policy.engine.providers))
    if stray:
        raise PolicyError(f"{path}: engine.options.{stray[0]}: no such provider in engine.providers")
    if not policy.engine.providers:
        raise PolicyError(f"{path}: engine.providers = []: expected at least one, such as 'CPUExecutionProvider'")
    for key, number in _numbers(msgspec.to_builtins(policy)):
        if not math.isfinite(number):
            raise PolicyError(f"{path}: {key} = {number}: expected a finite number")
    for place, rule in enumerate(policy.detectors):
        try:
            check_detector(rule.name, rule.parameters)
        except ValueError as error:
            raise PolicyError(f"{path}: detectors[{place}]: {error}") from None
    try:
        check_plan(_plan_of(policy.rollout))
    except PlanError as error:
        raise PolicyError(f"{path}: rollout: {error}") from None
    return policy


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _numbers(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _numbers(each, f"{key}[{place}]")


def _plan_of(rollout: RolloutPolicy) -> Plan:
    """What a plan takes from the policy under the same name; its actions are checked by their type."""
    fields = msgspec.structs.asdict(rollout)
    return Plan(**{name: value for name, value in fields.items() if name in Plan.__struct_fields__})
