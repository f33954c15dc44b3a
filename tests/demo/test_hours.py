"""The hours that are replayed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gateway.demo.acts import read_story
from gateway.demo.errors import DemoError
from gateway.demo.hours import days_between, read_hours
from gateway.demo.scene import ACTS

HOURS = Path(__file__).parents[2] / "training" / "bike-demand" / "hours.csv.gz"


def test_the_acts_are_whole_days_without_a_gap() -> None:
    hours = read_story(HOURS)
    days = days_between(hours, ACTS[0].first, ACTS[-1].last)
    assert [len(day) for day in days] == [24] * len(days)
    assert len(days) == sum(len(days_between(hours, act.first, act.last)) for act in ACTS)


def test_hours_come_in_order_of_time() -> None:
    times = [hour.time for hour in read_hours(HOURS)]
    assert times == sorted(times) and len(set(times)) == len(times)


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"time,hour\n2012-01-01T00:00,0\n")])
def test_a_file_that_is_no_hours_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hours.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DemoError, match=r"hours\.csv\.gz"):
        read_story(path)


def test_a_file_that_is_not_there_says_where_to_run_the_demo(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="--hours"):
        read_hours(tmp_path / "none.csv.gz")
