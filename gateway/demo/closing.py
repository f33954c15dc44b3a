"""The report as people read it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.screen import clean
from gateway.demo.report import Finding, Report

__all__ = ("print_report",)

_STYLES = {
    "harm": "bold yellow",
    "world_changed": "dim",
    "drift_alarm": "dim",
    "rollout_advanced": "green",
    "rollout_promoted": "bold green",
    "rollout_paused": "yellow",
    "rollback": "bold red",
}


def print_report(report: Report, console: Console) -> None:
    """What happened, when, on what evidence; then the proof."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What the gateway decided", title_justify="left")
    for name in ("day", "after", "what", "on what evidence", "decision"):
        table.add_column(name, justify="right" if name in ("after", "decision") else "left")
    for finding in report.findings:
        table.add_row(*_row(finding))
    console.print(table)
    for text, good in _sentences(report):
        console.print(Text.assemble(("  ✓ ", "bold green") if good else ("  ✗ ", "bold red"), text))
    console.print()


def _row(finding: Finding) -> tuple[Text, ...]:
    cells = (
        finding.data_time[:10],
        f"{finding.seconds:.1f} s",
        finding.what,
        finding.evidence,
        str(finding.decision),
    )
    return tuple(Text(clean(cell), style=_STYLES.get(finding.kind, "")) for cell in cells)


def _sentences(report: Report) -> list[tuple[str, bool]]:
    """Every sentence with whether it is as it should be, whatever the verdicts were."""
    proof = report.proof
    sentences = [
        (
            f"answered {proof.answered:,} = logged {proof.logged:,}: the same ids, versions, arms and values; "
            f"missing {proof.missing}, unknown {proof.unknown}, differing {proof.differing}, "
            f"damaged {proof.damaged}, repeated {proof.repeated}",
            proof.holds,
        ),
        (f"refused {proof.refused} = logged as failed {proof.refused_logged}", proof.refused == proof.refused_logged),
        (f"labels taken {proof.labels:,} = labels logged {proof.labels_logged:,}", proof.labels == proof.labels_logged),
        (f"{len(report.decisions)} decisions, one chain of hashes, unbroken", report.audit_ok),
    ]
    if report.seconds_to_switch is not None:
        late = max(0.0, report.seconds_to_switch)
        text = f"the last answer of the version rolled back came {late:g} s after the decision"
        sentences.append((text, report.seconds_to_switch <= 1.0))
    stable, weight = report.route["stable"], report.route["weight"]
    ends = {version: outcome.replace("_", " ") for version, outcome in sorted(report.outcomes.items())}
    outcome = ", ".join(f"version {version} {end}" for version, end in ends.items())
    sentences.append((f"version {stable} serves {100 - weight:g} % in the end ({outcome}); {report.seconds:g} s", True))
    return sentences
