"""The committed dashboard as tests read it: each panel's queries, as Grafana would send them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ("DASHBOARD", "has_data", "panel_queries")

DASHBOARD = Path(__file__).parents[1] / "grafana" / "dashboards" / "gateway.json"


def panel_queries(model: str = "bike-demand", *, rate_interval: str = "20s") -> dict[str, str]:
    """Return the PromQL of each panel's targets, and of the annotations, with the variables filled in."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = {f"annotation {one['name']}": one["expr"] for one in board["annotations"]["list"]}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return {
        title: expression.replace("$__rate_interval", rate_interval).replace("$model", model)
        for title, expression in found.items()
    }


def has_data(series: list[dict[str, Any]]) -> bool:
    """Whether a range query's answer has a number to draw."""
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])
