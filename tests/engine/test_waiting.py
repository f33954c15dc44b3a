"""Who is let in, who is next, and what goes together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.job import HIGH, LOW, NORMAL, Job
from gateway.engine.waiting import HEAD_START_SECONDS, LOOK_AHEAD, QueueLimits, WaitingLine
from gateway.protocol.errors import Overloaded

FAR = 1e9


def job(
    rows: int = 1, *, at: float = 0.0, rank: int = NORMAL, size: int = 0, deadline: float = FAR, width: int = 3
) -> Job:
    made = Job()
    made.inputs = [np.zeros((rows, width), "f4")]
    made.rows, made.rank, made.size = rows, rank, size
    made.queued_at, made.deadline = at, deadline
    return made


def line(max_rows: int = 8, *, free_axes: bool = False, **limits: Any) -> WaitingLine:
    made = WaitingLine("model 'm' version 1", limits=QueueLimits(**limits))
    made.join_up_to(max_rows, free_axes=free_axes)
    return made


def filled(made: WaitingLine, *jobs: Job) -> list[Job]:
    for each in jobs:
        made.put(each)
    return list(jobs)


def backlog(made: WaitingLine, *, row_seconds: float) -> None:
    """Teach the line what a row takes when others wait."""
    made.pace.add(rows=8, run_seconds=0.0, seconds=8 * row_seconds, pressed=True)


def test_a_batch_is_what_came_first_and_fits() -> None:
    made = line()
    a, b, c = filled(made, job(3), job(5), job(1))
    assert made.take(horizon=0.0) == ([a, b], [])
    assert made.take(horizon=0.0) == ([c], [])
    assert made.take(horizon=0.0) == ([], []) and made.rows == 0


def test_a_request_larger_than_a_batch_goes_alone() -> None:
    made = line()
    a, b, c = filled(made, job(1), job(9), job(1))
    assert [made.take(horizon=0.0)[0] for _ in range(3)] == [[a], [b], [c]]


def test_a_batch_holds_no_more_bytes_than_it_may() -> None:
    made = line(batch_bytes=100)
    a, b, c, d = filled(made, job(size=60), job(size=40), job(size=1), job(size=1000))
    assert [made.take(horizon=0.0)[0] for _ in range(3)] == [[a, b], [c], [d]]


def test_what_must_not_be_joined_goes_one_by_one() -> None:
    made = line(0)
    a, b = filled(made, job(), job())
    assert made.take(horizon=0.0)[0] == [a] and made.take(horizon=0.0)[0] == [b]


def test_requests_of_equal_axes_go_together_past_others_and_the_oldest_leads_the_next_batch() -> None:
    made = line(free_axes=True)
    a, b, c, d = filled(made, job(width=3), job(width=5), job(width=3), job(width=5))
    assert made.take(horizon=0.0)[0] == [a, c]
    assert made.take(horizon=0.0)[0] == [b, d]


def test_a_batch_looks_past_a_bounded_number_of_others() -> None:
    made = line(free_axes=True)
    others = [job(width=5) for _ in range(LOOK_AHEAD + 1)]
    first, *_, last = filled(made, job(width=3), *others, job(width=3))
    assert made.take(horizon=0.0)[0] == [first]
    assert made.take(horizon=0.0)[0] == others[:8]
    assert last in list(made) and len(made) == LOOK_AHEAD + 2 - 8


def test_late_and_abandoned_requests_leave_before_they_cost_a_run() -> None:
    made = line()
    a, b, c = filled(made, job(deadline=5.0), job(), job())
    b.abandoned = True
    assert made.take(horizon=6.0) == ([c], [a])
    assert made.rows == 0


def test_expiring_keeps_the_order_of_the_rest() -> None:
    made = line()
    high, late, gone, kept, low = filled(
        made, job(rank=HIGH), job(deadline=1.0), job(), job(size=7), job(rank=LOW, deadline=3.0)
    )
    gone.abandoned = True
    assert made.expire(2.0) == [late]
    assert list(made) == [high, kept, low] and made.rows == 3
    assert "7 bytes" in repr(made)
    assert made.expire(2.0) == [] and made.expire(4.0) == [low]


def test_ranks_go_first_and_within_a_rank_the_first_to_come() -> None:
    made = line(1)
    low, normal, high, other = filled(
        made, job(rank=LOW), job(at=0.01), job(rank=HIGH, at=0.02), job(rank=HIGH, at=0.03)
    )
    assert [made.take(horizon=0.0)[0] for _ in range(4)] == [[high], [other], [normal], [low]]


def test_requests_of_all_ranks_go_together() -> None:
    made = line()
    normal, high, other = filled(made, job(), job(rank=HIGH, at=0.01), job(at=0.02))
    assert made.take(horizon=0.0) == ([high, normal, other], [])
    normal, low = filled(made, job(), job(rank=LOW))
    assert made.take(horizon=0.0) == ([normal, low], [])


def test_a_low_rank_is_a_late_start_and_never_a_wait_without_end() -> None:
    made = line(1)
    low = filled(made, job(rank=LOW))[0]
    taken = []
    for step in range(20):
        made.put(job(rank=HIGH, at=step * 0.1))
        taken.append(made.take(horizon=0.0)[0][0])
    assert low in taken
    assert taken.index(low) == round(2 * HEAD_START_SECONDS / 0.1) + 1


def test_a_queue_of_as_many_requests_as_it_may_hold_refuses() -> None:
    made = line(max_requests=2)
    filled(made, job(), job())
    with pytest.raises(Overloaded, match=r"queue of model 'm' version 1 is full: 2 requests wait \(limits.max_queue_r"):
        made.put(job())
    assert made.closed_for == NORMAL and len(made) == 2
    made.take(horizon=0.0)
    assert made.closed_for > LOW
    made.put(job())


def test_requests_without_rows_are_counted_too() -> None:
    made = line(max_requests=2)
    filled(made, job(0), job(0))
    with pytest.raises(Overloaded):
        made.put(job(0))
    assert len(made.take(horizon=0.0)[0]) == 2


def test_a_queue_of_as_many_bytes_as_it_may_hold_refuses_but_takes_one_request_of_any_size() -> None:
    made = line(max_bytes=100)
    made.put(job(size=1000))
    with pytest.raises(Overloaded, match="1000 bytes wait"):
        made.put(job(size=1))


def test_one_that_is_too_large_for_what_is_left_closes_the_line_for_nobody() -> None:
    made = line(max_bytes=100)
    made.put(job(size=10))
    with pytest.raises(Overloaded):
        made.put(job(size=95))
    assert NORMAL < made.closed_for
    filled(made, *[job(size=10) for _ in range(5)])
    with pytest.raises(Overloaded):
        made.put(job(size=45))
    assert NORMAL < made.closed_for, "there is room for others like those that wait"
    made.take(horizon=0.0)
    made.put(job(size=90))
    with pytest.raises(Overloaded):
        made.put(job(size=20))
    assert made.closed_for == NORMAL


def test_what_would_wait_too_long_is_refused() -> None:
    made = line(4, max_wait_seconds=2.0)
    backlog(made, row_seconds=0.25)
    for _ in range(9):
        made.put(job())
    with pytest.raises(Overloaded, match=r"what waits takes 2.25 s \(limits.max_queue_wait_ms\)"):
        made.put(job())


def test_what_fits_the_next_batch_is_never_refused_for_its_wait() -> None:
    made = line(8, max_wait_seconds=2.0)
    backlog(made, row_seconds=100.0)
    for _ in range(9):
        made.put(job())
    with pytest.raises(Overloaded):
        made.put(job())


def test_what_would_be_answered_too_late_is_refused_at_once_and_others_are_not() -> None:
    made = line(1)
    backlog(made, row_seconds=0.1)
    filled(made, job(), job(), job())
    with pytest.raises(Overloaded, match="would not answer in time"):
        made.put(job(deadline=0.2))
    made.put(job(deadline=1.0))
    made.put(job(deadline=0.2, rank=HIGH))


def test_in_a_full_queue_a_higher_rank_takes_the_place_of_the_newest_of_the_lowest() -> None:
    made = line(max_requests=3)
    low, lower, normal = filled(made, job(rank=LOW), job(rank=LOW), job())
    high = filled(made, job(rank=HIGH))[0]
    assert made.displaced == [lower] and list(made) == [high, normal, low]
    made.put(job())
    assert made.displaced == [lower, low]
    with pytest.raises(Overloaded):
        made.put(job())
    assert made.closed_for == NORMAL
    made.put(job(rank=HIGH))
    assert len(made.displaced) == 3 and len(made) == 3


def test_nobody_makes_room_for_one_who_is_not_let_in_all_the_same() -> None:
    made = line(max_bytes=100)
    waiting = filled(made, job(size=50, rank=HIGH), job(size=20), job(size=20, rank=LOW))
    with pytest.raises(Overloaded, match="50 bytes wait"):
        made.put(job(size=60, rank=HIGH))
    assert (list(made), made.displaced, made.size_bytes) == (waiting, [], 90)
    late = line(1, max_requests=3)
    backlog(late, row_seconds=0.1)
    waiting = filled(late, job(), job(), job(rank=LOW))
    with pytest.raises(Overloaded, match="would not answer in time"):
        late.put(job(deadline=0.2))
    assert (list(late), late.displaced, late.rows) == (waiting, [], 3)


@given(
    steps=st.lists(
        st.one_of(
            st.builds(
                job,
                st.integers(0, 12),
                rank=st.sampled_from([HIGH, NORMAL, NORMAL, LOW]),
                size=st.integers(0, 400),
                deadline=st.sampled_from([FAR, FAR, 30.0]),
                width=st.integers(1, 2),
            ),
            st.sampled_from(["take", "take soon", "take late", "expire", "leave"]),
        ),
        max_size=60,
    ),
    max_rows=st.sampled_from([0, 1, 8]),
    free_axes=st.booleans(),
)
def test_every_request_leaves_once_in_order_and_the_line_never_holds_more_than_it_may(
    steps: list[Any], max_rows: int, free_axes: bool
) -> None:
    made = line(max_rows, free_axes=free_axes, max_requests=10, max_bytes=1000, batch_bytes=600)
    entered: list[Job] = []
    left: list[Job] = []
    batches: list[list[Job]] = []
    for clock, step in enumerate(steps):
        if isinstance(step, Job):
            step.queued_at = float(clock)
            before, displaced = list(made), list(made.displaced)
            try:
                made.put(step)
                entered.append(step)
            except Overloaded:
                assert len(made) == 10 or sum(each.size for each in made) + step.size > 1000
                assert (list(made), made.displaced) == (before, displaced), "nobody leaves for one who is not let in"
        elif step == "leave":
            for each in list(made)[::3]:
                each.abandoned = True
        elif step == "expire":
            left += made.expire(float(clock))
        else:
            batch, late = made.take(horizon=100.0 if step == "take late" else 0.0)
            batches.append(batch)
            left += batch + late
        waiting = list(made)
        assert made.rows == sum(each.rows or 1 for each in waiting)
        assert len(waiting) == len(made) <= 10
        assert len(waiting) == 1 or sum(each.size for each in waiting) <= 1000
    left += made.displaced + made.clear() + [each for each in entered if each.abandoned]
    assert {id(each) for each in left} == {id(each) for each in entered}
    for batch in batches:
        assert len(batch) <= 1 or sum(each.rows for each in batch) <= max_rows
        assert len(batch) <= 1 or sum(each.size for each in batch) <= 600
        assert len({each.inputs[0].shape[1] for each in batch}) <= 1 or not free_axes
        for rank in (HIGH, NORMAL, LOW):
            times = [each.queued_at for each in batch if each.rank == rank]
            assert times == sorted(times)


@pytest.mark.parametrize(("free_axes", "size"), [(True, 1), (False, 500)])
def test_a_queue_whose_frames_are_small_takes_as_long_as_its_frames(free_axes: bool, size: int) -> None:
    made = line(free_axes=free_axes, max_bytes=10**6, batch_bytes=1000, max_wait_seconds=2.0)
    for rows, seconds in ((1, 0.012), (2, 0.008), (1, 0.012), (2, 0.008)):  # times that do not follow the rows
        made.pace.add(rows=rows, run_seconds=0.0, seconds=seconds, pressed=True)
    with pytest.raises(Overloaded, match="max_queue_wait_ms"):
        for _ in range(1000):
            made.put(job(size=size))
    assert 280 <= len(made) <= 420


class Several(Job):
    """Requests of one row each as one job."""

    is_joint = True

    __slots__ = ("parts", "requests")

    def __init__(self, requests: int, *, at: float = 0.0) -> None:
        super().__init__()
        self.rows = self.requests = requests
        self.size, self.queued_at, self.deadline = 10 * requests, at, FAR
        self.parts = [job(size=10, at=at) for _ in range(requests)]

    @property
    def is_deserted(self) -> bool:
        return any(part.abandoned for part in self.parts)

    def apart(self) -> list[Job]:
        return self.parts


def test_the_newest_grows_as_long_as_all_that_waits_fits_one_batch() -> None:
    made = line(8, batch_bytes=60)
    [several] = filled(made, Several(2))
    assert made.newest is several and len(made) == 2
    assert made.grow(3, 10) and (len(made), made.rows, made.size_bytes) == (3, 5, 30)
    assert not made.grow(4, 10) and not made.grow(1, 40)
    assert (len(made), made.rows, made.size_bytes) == (3, 5, 30)


@pytest.mark.parametrize("how", ["take", "expire", "clear", "another"])
def test_none_is_the_newest_once_the_line_has_moved(how: str) -> None:
    made = line()
    filled(made, job(deadline=1.0), Several(2))
    match how:
        case "take":
            made.take(horizon=0.0)
        case "expire":
            made.expire(2.0)
        case "clear":
            made.clear()
        case _:
            [another] = filled(made, job(rank=HIGH))
            assert made.newest is another
            return
    assert made.newest is None


def test_several_that_no_longer_fit_a_batch_go_in_parts() -> None:
    made = line(8)
    first, several = filled(made, job(), Several(6))
    assert isinstance(several, Several)
    made.pace.add(rows=8, run_seconds=1.0, seconds=1.0, pressed=False)  # halved
    assert made.pace.rows == 4
    assert made.take(horizon=0.0)[0] == [first, *several.parts[:3]]
    assert (len(made), made.rows, made.size_bytes) == (3, 3, 30)
    assert made.take(horizon=0.0)[0] == several.parts[3:]
    assert len(made) == made.rows == made.size_bytes == 0


def test_one_of_several_is_pushed_out_not_all() -> None:
    made = line(4, max_requests=4)
    [several] = filled(made, Several(4))
    assert isinstance(several, Several)
    [high] = filled(made, job(rank=HIGH, size=10))
    assert made.displaced == several.parts[3:]
    assert (len(made), made.rows) == (4, 4)
    assert made.take(horizon=0.0)[0] == [high, *several.parts[:3]]


def test_of_several_those_that_are_late_or_have_gone_leave_and_the_others_stay() -> None:
    made = line(8)
    several = Several(4)
    gone, late, *others = several.parts
    gone.abandoned, late.deadline = True, 1.0
    several.deadline = 1.0
    filled(made, several, Several(2))
    assert made.expire(2.0) == [late]
    assert (len(made), made.rows, made.size_bytes) == (4, 4, 40)
    assert made.take(horizon=2.0)[0][:2] == others
    assert len(made) == made.rows == made.size_bytes == 0


def test_of_several_only_those_that_are_late_leave() -> None:
    made = line(8)
    several = Several(3)
    several.deadline = several.parts[0].deadline = 1.0
    filled(made, several)
    assert made.expire(2.0) == several.parts[:1]
    assert made.take(horizon=2.0)[0] == several.parts[1:]


def test_several_whose_first_is_late_are_looked_at_one_by_one() -> None:
    made = line(8)
    several = Several(3)
    several.deadline = several.parts[0].deadline = 1.0
    filled(made, several)
    assert made.take(horizon=2.0) == (several.parts[1:], several.parts[:1])
    assert len(made) == made.rows == made.size_bytes == 0


def test_a_line_counts_requests_not_jobs() -> None:
    made = line(8, max_requests=4)
    filled(made, Several(3), job())
    with pytest.raises(Overloaded, match="4 requests wait"):
        made.put(job())
    made.expire(FAR * 2)
    assert len(made) == 0
