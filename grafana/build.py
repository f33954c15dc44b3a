"""Writes `dashboards/gateway.json`, which Grafana loads; to be run after a change here: `python grafana/build.py`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

with warnings.catch_warnings():
    # The classic model is what file provisioning takes; the library would rather have the next one used.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.variants import Dataquery
    from grafana_foundation_sdk.models import common as looks
    from grafana_foundation_sdk.models import dashboard as shapes

__all__ = ("ROWS", "Chart", "Number", "dashboard_json")

DASHBOARD = Path(__file__).parent / "dashboards" / "gateway.json"

_MODEL = 'model="$model"'
_DATASOURCE = looks.DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Chart:
    """Lines over time; `queries` are (PromQL, legend), `line` is drawn where something is decided."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    line: float | None = None
    stacked: bool = False
    steps: bool = False
    maximum: float | None = None
    width: int = 12


@dataclass(frozen=True)
class Number:
    """One number with a spark line; it turns red from `red` on."""

    title: str
    description: str
    unit: str
    query: str
    red: float | None = None


Panel = Chart | Number


def _rate(series: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({series}[$__rate_interval]))"


def _quantiles(metric: str, *by: str, selector: str = _MODEL) -> tuple[tuple[str, str], ...]:
    name = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(
        (
            f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket{{{selector}}}', *by, 'le')})",
            f"{'version ' if by else ''}{name} p{quantile * 100:g}".strip(),
        )
        for quantile in (0.5, 0.95, 0.99)
    )


_REQUESTS = f"gateway_requests_total{{{_MODEL}}}"
_LOST = "dropped|unsynced|dead_letter|discarded|corrupt|missing"
_FAILED = f'gateway_requests_total{{{_MODEL},outcome=~"model_error|unavailable|timeout"}}'

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Number(
            "Processes down",
            "Processes of the gateway that have ended and were not started again. Above 0: read the process log.",
            "short",
            "count(gateway_process_up == 0) or vector(0)",
            red=1,
        ),
        Number(
            "Requests",
            "Inference requests answered, of this model.",
            "reqps",
            f"sum(rate({_REQUESTS}[$__rate_interval]))",
        ),
        Number(
            "Failing",
            "Share of requests that failed through no fault of the caller. Above 1 %: see Errors below.",
            "percentunit",
            f"sum(rate({_FAILED}[$__rate_interval])) / sum(rate({_REQUESTS}[$__rate_interval]))",
            red=0.01,
        ),
        Number(
            "p99",
            "99 of 100 requests are answered within this time.",
            "s",
            f"histogram_quantile(0.99, {_rate(f'gateway_request_duration_seconds_bucket{{{_MODEL}}}', 'le')})",
            red=0.5,
        ),
        Number(
            "Events waiting for a reader",
            "Logged events the slowest reader has still to read. Growing: see Log below.",
            "short",
            "max(gateway_log_lag_events)",
        ),
        Number(
            "Events lost",
            "Events lost or set aside since the start, in each state that pages (EventsDropped). It must read 0; which "
            "state it is, see Events below. One loss counts more than once where several processes found it.",
            "short",
            f'sum(gateway_log_events_total{{state=~"{_LOST}"}})',
            red=1,
        ),
    ),
    "Traffic": (
        Chart(
            "Requests by version and arm",
            "Who answers. The canary's share follows the weight; if it does not, compare with Weights below.",
            "reqps",
            ((_rate(_REQUESTS, "version", "arm"), "version {{version}} {{arm}}"),),
            stacked=True,
        ),
        Chart(
            "Errors by version",
            "Requests not answered with a prediction. client_error is the caller's; model_error and timeout are the "
            "version's: compare the arms, roll back if only the canary fails; unavailable: its engine is down.",
            "reqps",
            (
                (
                    _rate(f'gateway_requests_total{{{_MODEL},outcome!="ok"}}', "version", "outcome"),
                    "version {{version}} {{outcome}}",
                ),
            ),
        ),
        Chart(
            "Latency by version",
            "From the last byte of a request to its answer. High with a low time in the model: see Waiting.",
            "s",
            _quantiles("gateway_request_duration_seconds", "version"),
        ),
        Chart(
            "Waiting and time in the model, p95",
            "Waiting grows first when a version has more traffic than its engine can take: give it less weight, or "
            "a core more. Time in the model grows with the rows of a batch.",
            "s",
            tuple(
                (
                    f"histogram_quantile(0.95, "
                    f"{_rate(f'gateway_{stage}_duration_seconds_bucket{{{_MODEL}}}', 'version', 'le')})",
                    f"version {{{{version}}}} {name}",
                )
                for stage, name in (("queue", "waiting"), ("inference", "model"))
            ),
        ),
        Chart(
            "Rows in a batch, mean",
            "More is cheaper for each row. 1 under load: the version's rows depend on one another and are never "
            "batched; `gateway models show` says so.",
            "short",
            (
                (
                    f"{_rate(f'gateway_batch_rows_sum{{{_MODEL}}}', 'version')} / "
                    f"{_rate(f'gateway_batch_rows_count{{{_MODEL}}}', 'version')}",
                    "version {{version}}",
                ),
            ),
        ),
    ),
    "Rollout": (
        Chart(
            "Weights",
            "Percent of the traffic the route gives to each version. `gateway route show` tells who set it and why.",
            "percent",
            ((f"max by (version, arm) (gateway_route_weight{{{_MODEL}}})", "version {{version}} {{arm}}"),),
            steps=True,
            maximum=100,
        ),
        Chart(
            "Phase of the rollout",
            "1 for the phase the rollout is in. frozen: the arms were not drawn at their weights; look at what "
            "stands before the gateway, then `gateway rollout resume`.",
            "short",
            ((f"max by (phase) (gateway_rollout_phase{{{_MODEL}}})", "{{phase}}"),),
            steps=True,
            maximum=1,
        ),
        Chart(
            "The judge's evidence",
            "Evidence for harm and for non-inferiority, metric by metric, as a share of what decides. Harm at 1 "
            "takes the canary back; it is promoted when every required metric is at 1. Nothing at 1: wait.",
            "short",
            ((f"max by (metric, direction) (gateway_judge_evidence{{{_MODEL}}})", "{{metric}} {{direction}}"),),
            line=1,
        ),
        Chart(
            "Decisions",
            "What the system or a person did, in each hour. `gateway audit list` has actor, reason and evidence.",
            "short",
            (("sum by (kind) (increase(gateway_decisions_total[1h]))", "{{kind}}"),),
        ),
    ),
    "Drift and quality": (
        Chart(
            "Drift by feature",
            "Evidence that a feature has left the version's reference, as a share of the alarm line. The ten highest. "
            "Both arms alike: the world changed, think of retraining; one arm: its version is at fault.",
            "short",
            (
                (
                    f"topk(10, max by (version, feature) (gateway_drift_evidence{{{_MODEL}}}))",
                    "version {{version}} {{feature}}",
                ),
            ),
            line=1,
        ),
        Chart(
            "Alarms",
            "Alarms raised in each hour, by detector. `gateway drift status` has features, numbers and since when.",
            "short",
            (
                (
                    f"sum by (version, detector) (increase(gateway_drift_alarms_total{{{_MODEL}}}[1h]))",
                    "version {{version}} {{detector}}",
                ),
            ),
        ),
        Chart(
            "Live miss rate by version",
            "Share of labelled rows the version missed. It stands on labels: no feedback, no line.",
            "percentunit",
            (
                (
                    f'max by (version) (gateway_quality{{{_MODEL},metric="miss_rate"}})',
                    "version {{version}}",
                ),
            ),
        ),
        Chart(
            "Labels",
            "received by the fronts; joined to their prediction, repeated, or without one. Many without one: the "
            "sender has wrong ids, or labels come later than predictions are remembered.",
            "short",
            ((_rate(f"gateway_feedback_total{{{_MODEL}}}", "state"), "{{state}}"),),
        ),
        Chart(
            "Delay of labels",
            "Time between a prediction and its label. Quality cannot be known sooner than this.",
            "s",
            _quantiles("gateway_feedback_delay_seconds"),
        ),
    ),
    "Log": (
        Chart(
            "Events",
            "spooled keeps level with the requests, labels and decisions of all models: what is answered is logged. "
            "shipped keeps level with spooled where Kafka is configured.",
            "ops",
            (
                ("sum by (state) (rate(gateway_log_events_total[$__rate_interval]))", "{{state}}"),
                ("sum(rate(gateway_requests_total[$__rate_interval]))", "requests answered"),
            ),
        ),
        Chart(
            "Events still to be read",
            "By reader. shipper growing: Kafka is away or too slow. monitor growing: drift and quality come late.",
            "short",
            (("max by (reader) (gateway_log_lag_events)", "{{reader}}"),),
        ),
        Chart(
            "Size of the spool",
            "At `spool.max_bytes` the gateway refuses predictions or drops events, as `spool.full` says.",
            "bytes",
            (("gateway_spool_bytes", "spool"),),
        ),
    ),
    "Processes": (
        Chart(
            "Memory of engines",
            "An engine is replaced at `engine.max_resident_bytes`. A steady climb: the model leaks.",
            "bytes",
            ((f"max by (version) (gateway_engine_resident_bytes{{{_MODEL}}})", "version {{version}}"),),
        ),
        Chart(
            "Restarts of engines",
            "In each 10 minutes. More than one: a request crashes the version; `gateway predictions tail` shows which.",
            "short",
            (
                (
                    f"sum by (version) (increase(gateway_engine_restarts_total{{{_MODEL}}}[10m]))",
                    "version {{version}}",
                ),
            ),
        ),
        Chart(
            "Memory of processes",
            "Resident memory of each process of the gateway; bounded by settings.",
            "bytes",
            (("gateway_process_resident_bytes", "{{process}}"),),
        ),
    ),
}


def dashboard_json() -> str:
    """Return the dashboard as Grafana's file provisioning reads it."""
    board = (
        dashboard.Dashboard("Inference gateway")
        .uid("inference-gateway")
        .description("Traffic, rollouts, drift, quality and the log of one inference gateway.")
        .tags(["inference", "gateway"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(shapes.DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .query("label_values(gateway_route_weight, model)")
            .datasource(_DATASOURCE)
            .refresh(shapes.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(shapes.VariableSort.ALPHABETICAL_ASC)
        )
        .annotation(_decisions())
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board.with_panel(_number(panel, number) if isinstance(panel, Number) else _chart(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _decisions() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Decisions")
        .datasource(_DATASOURCE)
        .enable(True)
        .icon_color("purple")
        .expr("sum by (kind) (changes(gateway_decisions_total[$__rate_interval])) > 0")
        .title_format("{{kind}}")
        .text_format("gateway audit list tells why")
        .tag_keys("kind")
    )


def _targets(queries: tuple[tuple[str, str], ...]) -> list[Builder[Dataquery]]:
    return [
        prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + place)).range()
        for place, (expression, legend) in enumerate(queries)
    ]


def _thresholds(line: float | None, below: str) -> dashboard.ThresholdsConfig:
    steps = [shapes.Threshold(value=None, color=below)]
    if line is not None:
        steps.append(shapes.Threshold(value=line, color="red"))
    return dashboard.ThresholdsConfig().mode(shapes.ThresholdsMode.ABSOLUTE).steps(steps)


def _number(panel: Number, number: int) -> stat.Panel:
    return (
        stat.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(_DATASOURCE)
        .unit(panel.unit)
        .span(4)
        .height(4)
        .thresholds(_thresholds(panel.red, "green"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets(_targets(((panel.query, panel.title),)))
    )


def _chart(panel: Chart, number: int) -> timeseries.Panel:
    chart = (
        timeseries.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(_DATASOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(8)
        .fill_opacity(30 if panel.stacked else 5)
        .line_interpolation(looks.LineInterpolation.STEP_AFTER if panel.steps else looks.LineInterpolation.LINEAR)
        .thresholds(_thresholds(panel.line, "transparent"))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(looks.LegendDisplayMode.TABLE)
            .placement(looks.LegendPlacement.RIGHT)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
        .targets(_targets(panel.queries))
    )
    if panel.line is None:
        chart.min(0)
    else:
        chart.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.LINE))
    if panel.stacked:
        chart.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if panel.maximum is not None:
        chart.max(panel.maximum)
    return chart


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard_json(), encoding="utf-8")
