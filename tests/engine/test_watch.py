from __future__ import annotations

import math
import threading
import time

from gateway.engine.watch import LOOK_SECONDS, RunWatch


def test_a_run_past_its_moment_is_stopped_and_again_while_it_goes_on() -> None:
    stops = threading.Semaphore(0)
    watch = RunWatch(stops.release)
    watch.begin(time.monotonic() + 0.01)
    assert all(stops.acquire(timeout=10) for _ in range(3))
    watch.end()


def test_a_run_that_ends_in_time_is_left_alone() -> None:
    stops = threading.Semaphore(0)
    watch = RunWatch(stops.release)
    for _ in range(5):
        watch.begin(time.monotonic() + 3600)
        watch.end()
    watch.begin(math.inf)
    assert not stops.acquire(timeout=4 * LOOK_SECONDS)
    watch.end()


def test_a_watch_that_fell_asleep_wakes_with_the_next_run() -> None:
    stops = threading.Semaphore(0)
    watch = RunWatch(stops.release)
    for _ in range(2):
        for _ in range(1000):
            if "asleep" in repr(watch):
                break
            time.sleep(0.01)
        assert "asleep" in repr(watch)
        watch.begin(time.monotonic())
        assert stops.acquire(timeout=10)
        watch.end()
