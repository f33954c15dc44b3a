"""Every row of the hostile table against a real front, with what must hold after each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.table import ELSEWHERE, GROUPS, ROWS, Row
from tests.hostile.world import Exchange, World, hostile_world
from tests.serving.fronts import get

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20
GROWTH_BYTES = 8 * MEBIBYTE


def test_every_row_is_in_the_table_or_names_the_test_that_has_it() -> None:
    numbers = {row.number for row in ROWS} | {row.number for row in ELSEWHERE}
    assert numbers == set(range(1, 98))
    for row in ELSEWHERE:
        assert not row.file or f"def {row.test}" in (ROOT / row.file).read_text(), row


async def answered_as_stated(world: World, exchange: Exchange, row: Row, raw: bytes) -> None:
    before = world.records
    got = await exchange.ask(raw, len(row.answers), closes=row.closes)
    assert tuple(status for status, _, _ in got) == row.answers, got[-1][2]
    if got[-1][0] != 200:
        assert row.text in got[-1][2]["error"] and len(got[-1][2]["error"]) < 1000
    assert world.records - before == row.records


@pytest.mark.promise("P6")
@pytest.mark.parametrize("group", GROUPS)
async def test_each_row_is_answered_as_stated_and_leaves_nothing_behind(tmp_path: Path, group: str) -> None:
    rows = [row for row in ROWS if row.number in GROUPS[group]]
    async with hostile_world(tmp_path) as world:
        exchange = Exchange(world)
        for row in rows:  # the first of an outcome makes its series
            await exchange.ask(row.raw, len(row.answers), closes=row.closes)
        world.lines.clear()
        series = world.series
        faults = {}
        for row in rows:
            try:
                await answered_as_stated(world, exchange, row, row.raw)
                await world.check_serving()
                world.check_quiet()
                assert world.series == series
            except (AssertionError, TimeoutError, EOFError, OSError) as error:
                faults[row.number, row.name] = repr(error)[:300]
                exchange.close()
        exchange.close()
        assert faults == {}


async def repeated(world: World, number: int, *, times: int) -> None:
    """Send all that a row has, so many times together."""
    rows = [row for row in ROWS if row.number == number]
    for row in rows:
        share = min(row.repeats, max(1, times // len(rows)))
        await Exchange(world).repeat(row.raw, len(row.answers), times=share, closes=row.closes)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("group", GROUPS)
async def test_a_hundred_repeats_of_each_row_hold_no_memory(tmp_path: Path, group: str) -> None:
    async with hostile_world(tmp_path) as world:
        grown: dict[int, int] = {}
        for number in GROUPS[group]:
            await repeated(world, number, times=10)
            for _ in range(2):  # what is held grows each time, what the allocator keeps for later only once
                before = world.resident_bytes()
                await repeated(world, number, times=100)
                grown[number] = world.resident_bytes() - before
                if grown[number] <= GROWTH_BYTES:
                    break
        assert {number: size for number, size in grown.items() if size > GROWTH_BYTES} == {}
        await world.check_serving()
        world.check_quiet(most_lines=0)


async def test_two_thousand_unknown_names_make_no_series_and_no_line(tmp_path: Path) -> None:
    async with hostile_world(tmp_path) as world:
        series, exchange = world.series, Exchange(world)
        for number in range(2000):
            await exchange.ask(get(f"/v2/models/unknown-{number}"), 1, closes=False)
        assert world.series == series
        world.check_quiet(most_lines=0)
        exchange.close()
