from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from gateway.predictions.reconcile import FrontCounts, Life, balance, lives_of
from gateway.predictions.segments import LogRecord

BOOT = "0196f0c5d2a101"


def record(number: int, *, kind: int = 1, **more: object) -> LogRecord:
    payload = {"time": f"2012-03-01T00:00:{number % 60:02d}Z", "status": 200} | more
    return LogRecord(kind, BOOT, number, json.dumps(payload).encode())


@given(
    st.sets(st.integers(1, 60), min_size=1).flatmap(
        lambda numbers: st.tuples(st.just(numbers), st.lists(st.sampled_from(sorted(numbers)), max_size=10)).flatmap(
            lambda pair: st.tuples(st.just(pair[0]), st.permutations([*sorted(pair[0]), *pair[1]]))
        )
    )
)
def test_what_is_missing_is_named_in_whatever_order_records_come_and_however_often(
    case: tuple[set[int], list[int]],
) -> None:
    numbers, arrivals = case
    [life] = lives_of(record(number) for number in arrivals)
    assert life.records == len(numbers) and life.repeated == len(arrivals) - len(numbers)
    assert (life.first, life.last) == (min(numbers), max(numbers))
    missing = {number for gap in life.gaps for number in range(gap.first, gap.last + 1)}
    assert missing == set(range(life.first, life.last + 1)) - numbers
    assert life.missing == len(missing)


def test_a_gap_is_named_by_the_times_around_it() -> None:
    [life] = lives_of([record(1), record(2), record(7)])
    assert life.gaps == [(3, 6, "2012-03-01T00:00:02Z", "2012-03-01T00:00:07Z")]
    assert life.slot == 1


def test_records_are_counted_by_what_they_are() -> None:
    records = [record(1), record(2, sampled=False), record(3, status=503), record(4, kind=2), record(5, kind=3)]
    [life] = lives_of([*records, LogRecord(1, BOOT, 6, b"no json")])
    assert (life.predictions, life.sampled_out, life.failed, life.labels, life.unreadable) == (4, 1, 1, 1, 1)


def balanced(lives: Iterable[Life], counts: FrontCounts, before: FrontCounts | None = None) -> bool:
    [found] = balance(lives, {1: before or counts}, {1: counts})
    return found.holds


def test_nothing_is_answered_that_is_not_in_the_log() -> None:
    lives = lives_of([record(1), record(2), record(3, kind=2)])
    counts = FrontCounts(requests=2, labels=1, spooled=3)
    assert balanced(lives, counts)
    assert not balanced(lives, counts._replace(requests=3)), "one more was answered than was logged"
    assert balanced(lives, counts._replace(requests=3, refused=1)), "which was refused"
    assert not balanced(lives, counts._replace(requests=3, spooled=4)), "the last record is not in the log"
    assert balanced(lives, counts._replace(requests=4, spooled=3, dropped=2)), "dropped at the end"
    assert balanced(lives, counts._replace(requests=1)), "killed between writing and answering"


def test_as_many_must_be_sampled_out_in_the_log_as_were_counted() -> None:
    lives = lives_of([record(1), record(2, sampled=False)])
    assert balanced(lives, FrontCounts(requests=2, spooled=2, sampled_out=1))
    assert not balanced(lives, FrontCounts(requests=2, spooled=2, sampled_out=2))


def test_a_gap_is_explained_only_by_as_many_dropped() -> None:
    lives = lives_of([record(1), record(4)])
    assert balanced(lives, FrontCounts(requests=4, spooled=2, dropped=2))
    assert not balanced(lives, FrontCounts(requests=3, spooled=2, dropped=1))


def test_a_killed_front_counts_less_than_it_wrote_and_that_is_no_loss() -> None:
    [found] = balance(lives_of([record(1), record(2)]), {1: FrontCounts(1, spooled=1)}, {1: FrontCounts(1, spooled=1)})
    assert found.holds and found.uncounted == 1


def test_what_retention_has_removed_is_not_called_lost() -> None:
    [found] = balance(lives_of([record(3)]), {1: FrontCounts(3, spooled=3)}, {1: FrontCounts(3, spooled=3)})
    assert found.holds and found.removed == 2


def test_a_front_without_any_record_in_the_log_is_seen() -> None:
    assert not balanced([], FrontCounts(requests=2, spooled=2))
