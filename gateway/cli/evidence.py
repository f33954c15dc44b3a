"""What the monitor sees of a model, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.cli.screen import table_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ("alarms_table", "feedback_text", "readings_table", "verdict_text", "versions_table")

SHOWN_FEATURES = 3
SHOWN_ALARMS = 5


def versions_table(seen: Mapping[str, Any]) -> Table:
    """Per version: evidence of each detector as a share of the line at which it alarms, and quality."""
    return _titled(
        "versions: evidence of drift as a share of where it alarms",
        ("version", "arm", "drift", "most by", "labels", "miss rate", "mean loss"),
        list(_versions(seen)),
    )


def readings_table(seen: Mapping[str, Any]) -> Table | None:
    """The judge's evidence on the canary; None without a trial."""
    trial = seen.get("trial")
    if not trial:
        return None
    return _titled(
        f"trial of version {trial['canary']}: evidence in natural logarithms",
        ("metric", "shows", "evidence", "needed", "on stable", "on canary", "then"),
        [
            (
                reading["metric"],
                reading["direction"],
                _rounded(reading["log_evidence"]),
                _rounded(reading["threshold"]),
                reading["stable"],
                reading["canary"],
                reading["action"],
            )
            for reading in trial["readings"]
        ],
    )


def verdict_text(seen: Mapping[str, Any]) -> str:
    """What the judge says now, and what it still needs, in a sentence; empty when it says nothing."""
    verdict = (seen.get("trial") or {}).get("verdict")
    if not verdict:
        return ""
    return f"{verdict['kind']}: {verdict['reason']}" + (f"; needs {verdict['needs']}" if verdict["needs"] else "")


def feedback_text(seen: Mapping[str, Any]) -> str:
    """What became of the labels that were sent; empty where none were."""
    counts = [f"{count} {state}" for state, count in seen.get("feedback", {}).items() if count]
    return f"labels: {', '.join(counts)}" if counts else ""


def alarms_table(seen: Mapping[str, Any]) -> Table | None:
    """The last alarms, the newest first; None when there was none."""
    alarms = seen.get("alarms")
    if not alarms:
        return None
    return _titled(
        "alarms, the newest first",
        ("version", "detector", "tier", "since", "features", "asks for"),
        [
            (
                alarm["version"],
                alarm["detector"],
                alarm["tier"],
                alarm["since"],
                ", ".join(list(alarm["features"])[:SHOWN_FEATURES]),
                alarm["action"],
            )
            for alarm in alarms[:SHOWN_ALARMS]
        ],
    )


def _titled(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = table_of(columns, rows)
    table.title, table.title_justify = title, "left"
    return table


def _versions(seen: Mapping[str, Any]) -> Iterator[list[object]]:
    route = seen["route"]
    for version, watch in seen["versions"].items():
        arm = {str(route["stable"]): "stable", str(route["canary"]): "canary"}.get(version, "")
        line, quality = watch["line"], watch["quality"]
        shares = [f"{name} {max(0.0, value / line):.0%}" for name, value in watch["evidence"].items() if line]
        features = sorted(watch["features"].items(), key=lambda entry: -entry[1]["evidence"])
        most = ", ".join(name for name, entry in features[:SHOWN_FEATURES] if entry["evidence"] > 0)
        yield [
            version,
            arm,
            ", ".join(shares) if watch["profile"] else "no profile",
            most,
            quality["rows"],
            _rounded(quality["miss_rate"]),
            _rounded(quality["mean_loss"]),
        ]


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
