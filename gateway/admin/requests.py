"""The bodies of the admin API's writes. Types are strict: a weight of "50" is refused."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

__all__ = ("ApproveRequest", "ReasonRequest", "RejectRequest", "RollbackRequest", "RolloutRequest", "RouteRequest")

Reason = Annotated[str, msgspec.Meta(max_length=2000, description="Why, for those who read the audit trail.")]
Version = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]


class ReasonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Reason = ""


class ApproveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`digest`, where given, is the one the approver has looked at; another one is refused."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    digest: Digest | None = None


class RejectRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class RouteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`weight` is the canary's share in percent."""

    stable: Version
    canary: Version | None = None
    weight: Percent = 0.0
    reason: Reason = ""
    allow_signature_change: bool = False


class RolloutRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`plan` changes fields of the plan that `model.toml` gives."""

    model: str
    canary: Version
    plan: dict[str, Any] = {}
    reason: Reason = ""
    allow_signature_change: bool = False


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`version`, where given, is the one to take back; it must carry traffic."""

    version: Version | None = None
    reason: Reason = ""
