"""How often the judge is wrong and how soon it is right, by simulation: `python benchmarks/judge_rates.py [RUNS]`.

Every run is looked at after every event. `--write` puts the table into `docs/rollouts.md`. 4,000 runs take a few
minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.rollout.evidence import ArmBalance, Bet, BinShift, NonInferiority, OddsTest, RateRatio, log_factors
from gateway.rollout.guards import SeenUnits

PAGE = Path(__file__).parents[1] / "docs" / "rollouts.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SEED = 20_120_101
CHUNK = 200
NEVER = -1

Array = np.ndarray[Any, Any]
Row = tuple[str, str, str]


def odds_share(share: float, ratio: float) -> float:
    """Return the chance that an event falls on a canary that has `ratio` times as many."""
    return share * ratio / (share * ratio + 1.0 - share)


def log_paths(bets: Sequence[Bet], on_canary: Array, *, share: float) -> Array:
    """Return the log evidence after every event: (runs, events), from booleans of the same shape."""
    total = np.full(on_canary.shape, -np.inf)
    canary = np.cumsum(on_canary, axis=1)
    stable = np.arange(1, on_canary.shape[1] + 1) - canary
    for bet in bets:
        up, down = log_factors(bet, share)
        np.logaddexp(total, math.log(bet.mass) + canary * up + stable * down, out=total)
    return total


def first_crossings(
    test: OddsTest, log_threshold: float, *, share: float, ratio: float, runs: int, events: int
) -> tuple[Array, Array]:
    """Return at which event each run first reaches the threshold, -1 for never, and the canary's events by then."""
    generator = np.random.default_rng(SEED)
    moments: list[Array] = []
    on_canaries: list[Array] = []
    for begin in range(0, runs, CHUNK):
        drawn = generator.random((min(CHUNK, runs - begin), events)) < odds_share(share, ratio)
        crossed = log_paths(test.bets, drawn, share=share) >= log_threshold
        moment = np.where(crossed.any(axis=1), crossed.argmax(axis=1), NEVER)
        moments.append(moment)
        on_canaries.append(np.cumsum(drawn, axis=1)[np.arange(len(drawn)), moment])
    return np.concatenate(moments), np.concatenate(on_canaries)


def shift_crossings(
    shift: BinShift, log_threshold: float, *, share: float, ratios: Array, runs: int, events: int, look_every: int
) -> Array:
    """Return at which value each run of a shift first reaches the threshold; `ratios` are the canary's, by bin."""
    generator = np.random.default_rng(SEED)
    bins = len(ratios)
    up = np.array([[log_factors(bet, share)[0] for bet in bets] for bets in shift.families])
    down = np.array([[log_factors(bet, share)[1] for bet in bets] for bets in shift.families])
    masses = np.log([[bet.mass for bet in bets] for bets in shift.families])
    weights = share * ratios + (1.0 - share)
    wealth = np.zeros((runs, bins, *up.shape))
    moments = np.full(runs, NEVER)
    every = np.arange(runs)
    for moment in range(events):
        index = generator.choice(bins, size=runs, p=weights / weights.sum())
        on_canary = generator.random(runs) < share * ratios[index] / weights[index]
        wealth[every, index] += np.where(on_canary[:, None, None], up, down)
        if moment % look_every == look_every - 1:
            families = np.logaddexp.reduce(wealth + masses, axis=-1).sum(axis=1)
            evidence = np.logaddexp.reduce(families, axis=-1) - math.log(len(shift.families))
            moments[(moments == NEVER) & (evidence >= log_threshold)] = moment
    return moments


def sticky_false_rollbacks(unit_of: str, *, runs: int) -> float:
    """Return how often callers who always fail take a canary that is no worse back, the weight rising from 10 to 50.

    `unit_of` says what counts once: "event" (everything counts), "arm" (a caller on each arm) or "caller".
    """
    generator = np.random.default_rng(SEED)
    rollbacks = 0
    for _ in range(runs):
        points = generator.random(40)
        test, seen = RateRatio(), SeenUnits(16_384)
        for share in (0.1, 0.5):
            for caller in generator.zipf(1.5, size=400) % len(points):
                on_canary = bool(points[caller] < share)
                key = {"event": None, "arm": f"{caller} {on_canary}", "caller": f"{caller}"}[unit_of]
                if seen.first(key, "errors"):
                    test.update(on_canary, share)
            if test.log_evidence >= math.log(100.0):
                rollbacks += 1
                break
    return rollbacks / runs


def false_rates(runs: int) -> Iterator[Row]:
    """Yield how often each test is wrong where its null holds."""
    for alpha in (0.01, 0.05):
        for share in (0.01, 0.05, 0.5):
            moments, _ = first_crossings(RateRatio(), -math.log(alpha), share=share, ratio=1.0, runs=runs, events=3_600)
            yield f"rollback of an equal canary, weight {share:.0%}, 3,600 events", f"{alpha:g}", _rate(moments)
    for ratio in (1.25, 2.0):
        moments, _ = first_crossings(
            NonInferiority(0.25), math.log(20.0), share=0.25, ratio=ratio, runs=runs, events=5_000
        )
        yield f"promotion of a canary with {ratio:g} times the misses, 5,000 misses", "0.05", _rate(moments)
    moments, _ = first_crossings(ArmBalance(), math.log(1000.0), share=0.1, ratio=1.0, runs=runs, events=10_000)
    yield "freeze of arms drawn at 10 %, 10,000 units", "0.001", _rate(moments)
    for name, ratios in (("equal", np.ones(12)), ("at the edge of the tolerance", np.array([1.25, 0.8] * 6))):
        found = shift_crossings(
            BinShift(0.25), math.log(100.0), share=0.1, ratios=ratios, runs=runs // 4, events=2_000, look_every=10
        )
        yield f"pause for outputs that are {name}, 2,000 values", "0.01", _rate(found)
    for unit_of in ("event", "arm", "caller"):
        rate = sticky_false_rollbacks(unit_of, runs=runs // 4)
        promised = "0.01" if unit_of == "caller" else "(none)"
        yield (
            f"rollback by 40 callers who always fail, each {unit_of} counting once, 10 then 50 %",
            promised,
            f"{rate:.4f}",
        )


def delays(runs: int) -> Iterator[Row]:
    """Yield how soon each test is right: the median, in requests at 1 % base rate or in events."""
    for ratio in (1.5, 2.0, 3.0, 5.0):
        moments, on_canary = first_crossings(
            RateRatio(), math.log(100.0), share=0.05, ratio=ratio, runs=runs, events=6_000
        )
        requests = _median(moments) / (0.01 * (0.95 + 0.05 * ratio))
        told = f"{requests:,.0f} requests, {np.median(on_canary):.0f} errors on the canary"
        yield f"rollback of a canary with {ratio:g} times the errors, weight 5 %, 1 % errors", "", told
    for share, ratio in ((0.05, 1.0), (0.25, 1.0), (0.5, 1.0), (0.5, 0.7), (0.5, 0.5)):
        moments, _ = first_crossings(
            NonInferiority(0.25), math.log(20.0), share=share, ratio=ratio, runs=runs, events=12_000
        )
        told = f"{_median(moments):,.0f} misses on both arms"
        yield f"promotion of a canary with {ratio:g} times the misses, margin 1.25, weight {share:.0%}", "", told
    for factor in (2.0, 3.0, 4.0):
        ratios = np.array([factor] * 6 + [1.0 / factor] * 6)
        found = shift_crossings(
            BinShift(0.25), math.log(100.0), share=0.1, ratios=ratios, runs=runs // 4, events=4_000, look_every=5
        )
        told = f"{_median(found):,.0f} values on both arms"
        yield f"pause for outputs {factor:g} times as likely in half of the bins, weight 10 %", "", told


def _rate(moments: Array) -> str:
    return f"{np.mean(moments != NEVER):.4f}"


def _median(moments: Array) -> float:
    return float(np.median(np.where(moments == NEVER, np.inf, moments)))


def table(runs: int) -> str:
    """Return both tables as Markdown."""
    lines = [f"{runs:,} runs, looked at after every event.", "", "| mistake | promised | measured |", "|---|---|---|"]
    lines += [f"| {what} | {promised} | {measured} |" for what, promised, measured in false_rates(runs)]
    lines += ["", "| right | median |", "|---|---|"]
    lines += [f"| {what} | {measured} |" for what, _, measured in delays(runs)]
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=4_000)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    arguments = parser.parse_args()
    measured = table(arguments.runs)
    print(measured)
    if arguments.write:
        page = PAGE.read_text("utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
