"""The statistics extension: what every process has counted, by model version.

Source: Triton's `extension_statistics`: `inference_count` counts rows, `execution_count` runs of the model, each
duration is how often and how long in nanoseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gateway.telemetry.catalog import BATCH_ROWS
from gateway.telemetry.exposition import collect

__all__ = ("read_statistics",)

_NONE = {"count": 0, "ns": 0}
_PARTS = ("outcome", "stage", "rows")

_Counts = Counter[tuple[str, str]]


def read_statistics(metrics_dir: Path, versions: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """The statistics of some versions, summed over all processes; it reads files, so not on the loop.

    Parameters
    ----------
    metrics_dir : Path
        Where the processes keep their metric files.
    versions : iterable of (model, version)

    Returns
    -------
    dict
        `{"model_stats": [...]}`, in the order of model and version.
    """
    counts = _counts_by_version(metrics_dir)
    return {"model_stats": [_entry(*key, counts.get((key[0], str(key[1])), Counter())) for key in sorted(versions)]}


def _counts_by_version(metrics_dir: Path) -> dict[tuple[str, str], _Counts]:
    counts: dict[tuple[str, str], _Counts] = {}
    for family in collect(metrics_dir):
        for sample in family.samples:
            labels = sample.labels
            if "model" in labels and "version" in labels and not sample.name.endswith("_bucket"):
                part = next((labels[name] for name in _PARTS if name in labels), "")
                counts.setdefault((labels["model"], labels["version"]), Counter())[sample.name, part] += sample.value  # type: ignore[assignment]
    return counts


def _entry(model: str, version: int, counts: _Counts) -> dict[str, Any]:
    succeeded = int(counts["gateway_requests_total", "ok"])
    answered = sum(int(value) for (name, _), value in counts.items() if name == "gateway_requests_total")
    stages = {
        stage: counts["gateway_stage_seconds_total", stage] for stage in ("input", "queue", "inference", "output")
    }
    seconds = sum(stages.values())
    failed_seconds = max(0.0, counts["gateway_request_duration_seconds_sum", ""] - seconds)
    batches = {rows: int(counts["gateway_batches_total", rows]) for rows in BATCH_ROWS}
    return {
        "name": model,
        "version": str(version),
        "last_inference": int(counts["gateway_last_inference_timestamp_seconds", ""] * 1000),
        "inference_count": int(counts["gateway_rows_total", ""]),
        "execution_count": sum(batches.values()),
        "inference_stats": {
            "success": _duration(succeeded, seconds),
            "fail": _duration(answered - succeeded, failed_seconds),
            "queue": _duration(succeeded, stages["queue"]),
            "compute_input": _duration(succeeded, stages["input"]),
            "compute_infer": _duration(succeeded, stages["inference"]),
            "compute_output": _duration(succeeded, stages["output"]),
            "cache_hit": _NONE,
            "cache_miss": _NONE,
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": int(rows),
                "compute_input": _NONE,
                "compute_infer": _duration(count, counts["gateway_batch_seconds_total", rows]),
                "compute_output": _NONE,
            }
            for rows, count in batches.items()
            if count
        ],
        "memory_usage": _memory(int(counts["gateway_engine_resident_bytes", ""])),
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9) if count else 0}


def _memory(resident: int) -> list[dict[str, Any]]:
    return [{"type": "CPU", "id": 0, "byte_size": resident}] if resident else []
