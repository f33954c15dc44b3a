from __future__ import annotations

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
    assert seen.row_seconds == 0.0
    seen.add(rows=10, run_seconds=0.001, seconds=0.05, pressed=True)
    assert abs(seen.row_seconds - 0.005) < 1e-12


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
        assert 0 <= seen.row_seconds <= max(each for _, _, each, _ in frames)
