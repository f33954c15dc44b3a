"""Draw the rollout machine into `docs/rollouts.md` from its table.

Run it after a change of the table: `python docs/draw_rollouts.py`.
"""

from __future__ import annotations

from pathlib import Path

from gateway.rollout.machine import EVENTS, TERMINAL, TRANSITIONS

PAGE = Path(__file__).with_name("rollouts.md")
BEGIN = "<!-- drawn by docs/draw_rollouts.py: begin -->"
END = "<!-- drawn by docs/draw_rollouts.py: end -->"


def diagram() -> str:
    """Return the table as a Mermaid state diagram; events between the same two phases share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> running: start"]
    for phase, moves in TRANSITIONS.items():
        arrows: dict[str, list[str]] = {}
        for event, target in moves.items():
            arrows.setdefault(target, []).append(event)
        lines += [f"    {phase} --> {target}: {', '.join(events)}" for target, events in arrows.items()]
    lines += [f"    {phase} --> [*]" for phase in TRANSITIONS if phase in TERMINAL]
    return "\n".join([*lines, "```"])


def table() -> str:
    """Return the table as rows of phases and columns of events; an empty cell is refused."""
    lines = [f"| phase | {' | '.join(EVENTS)} |", f"|---|{'---|' * len(EVENTS)}"]
    for phase, moves in TRANSITIONS.items():
        lines.append(f"| {phase} | {' | '.join(moves.get(event, '') for event in EVENTS)} |")
    return "\n".join(lines)


def redrawn(page: str) -> str:
    """Return the page with the part between the marks drawn anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{diagram()}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text("utf-8")), "utf-8")
