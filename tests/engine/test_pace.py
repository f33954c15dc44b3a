from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.pace import FIRST_ROWS, Pace


def pace(max_rows: int = 256) -> Pace:
    return Pace(max_rows=max_rows, batch_seconds=0.1, few=10_000)


def settle(seen: Pace, row_seconds: float, *, fixed_seconds: float = 0.0, frames: int = 20) -> None:
    for _ in range(frames):
        seconds = fixed_seconds + seen.rows * row_seconds
        seen.add(rows=seen.rows, run_seconds=seconds, seconds=seconds, pressed=True)


def test_the_first_batch_is_small_and_a_fast_engine_soon_gets_full_ones() -> None:
    seen = pace()
    assert seen.rows == FIRST_ROWS
    seen.add(rows=8, run_seconds=1e-5, seconds=1e-4, pressed=False)
    assert seen.rows == 256


def test_a_slow_engine_gets_batches_that_it_runs_within_the_time() -> None:
    for row_seconds, rows in ((0.003, 33), (0.04, 2), (10.0, 1)):
        seen = pace()
        settle(seen, row_seconds)
        assert seen.rows == rows


def test_a_cost_that_every_run_has_makes_batches_grow_until_they_fill_the_time() -> None:
    seen = pace()
    settle(seen, 0.001, fixed_seconds=0.05)
    assert 48 <= seen.rows <= 52


def test_one_run_that_was_held_up_does_not_cost_more_than_half() -> None:
    seen = pace()
    settle(seen, 1e-5)
    seen.add(rows=1, run_seconds=0.5, seconds=0.5, pressed=False)
    assert seen.rows == 128
    seen.add(rows=128, run_seconds=1e-3, seconds=1e-3, pressed=False)
    assert seen.rows == 256


def test_only_a_backlog_tells_what_a_row_takes() -> None:
    seen = pace()
    seen.add(rows=1, run_seconds=0.001, seconds=0.05, pressed=False)
    assert seen.seconds_of(10**6, 10) == 0.0
    seen.add(rows=10, run_seconds=0.001, seconds=0.05, pressed=True)
    assert abs(seen.seconds_of(1000, 4) - 5.0) < 1e-9


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.floats(0, 100), st.floats(0, 100), st.booleans()), min_size=1, max_size=50
    ),
    st.integers(1, 1000),
)
def test_whatever_is_measured_a_batch_has_at_least_one_row_and_at_most_the_models(
    frames: list[tuple[int, float, float, bool]], max_rows: int
) -> None:
    seen = pace(max_rows)
    for rows, run_seconds, seconds, pressed in frames:
        seen.add(rows=rows, run_seconds=run_seconds, seconds=seconds, pressed=pressed)
        assert 1 <= seen.few_rows <= seen.rows <= max_rows
        # No row takes longer than the slowest frame did, and no more frames are needed than rows.
        assert 0 <= seen.seconds_of(7, 7) <= 7.001 * max(each for _, _, each, _ in frames)


@given(st.floats(0, 1), st.floats(0, 0.1), st.lists(st.integers(1, 200), min_size=2, max_size=40))
def test_frames_of_different_rows_tell_what_a_large_queue_takes(
    per_frame: float, per_row: float, frames: list[int]
) -> None:
    seen = Pace(max_rows=256, batch_seconds=1000.0, few=10_000)
    for rows in frames:
        seconds = per_frame + rows * per_row
        seen.add(rows=rows, run_seconds=0.0, seconds=seconds, pressed=True)
    wanted = 1000 * per_row + 4 * per_frame
    if np.std(frames[-5:]) > 0.3 * np.mean(frames):
        assert abs(seen.seconds_of(1000, 4) - wanted) <= 0.01 * wanted + 1e-6


def test_small_frames_do_not_make_a_large_request_look_slow() -> None:
    seen = pace()
    for rows in (1, 2, 1, 3, 1, 1, 2):
        seen.add(rows=rows, run_seconds=1e-4, seconds=1e-4 + rows * 1e-6, pressed=True)
    assert seen.rows == 256 and seen.seconds_of(20_000, 1) < 0.05


def test_frames_that_are_alike_tell_what_a_row_takes() -> None:
    seen = pace()
    for _ in range(5):
        seen.add(rows=200, run_seconds=0.01, seconds=0.02, pressed=True)
    assert abs(seen.seconds_of(1000, 5) - 0.1) < 1e-9


def test_a_row_of_many_is_not_taken_for_as_dear_as_a_frame_of_one() -> None:
    seen = pace()
    for rows, seconds, frames in ((1, 0.001, 50), (100_000, 0.02, 1), (1, 0.001, 500)):
        for _ in range(frames):
            seen.add(rows=rows, run_seconds=seconds / 2, seconds=seconds, pressed=rows == 1)
    assert 0.02 < seen.seconds_of(100_005, 6) < 0.05
    assert abs(seen.seconds_of(6, 6) - 0.006) < 1e-6
    for _ in range(200):
        seen.add(rows=10, run_seconds=1.0, seconds=1.0, pressed=True)
    assert abs(seen.seconds_of(1000, 1) - 100) < 1, "what was long ago says nothing"
