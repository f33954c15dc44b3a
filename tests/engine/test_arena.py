from __future__ import annotations

import fcntl
import gc
import logging
import mmap
import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.arena import ALIGNMENT, Arena, open_arena

PAGE = mmap.PAGESIZE


def test_a_place_is_lent_until_its_last_view_is_gone() -> None:
    arena = Arena(4 * PAGE)
    place = arena.lend(2 * PAGE)
    assert place is not None
    view = memoryview(place)[100:]
    tensor = np.frombuffer(view[:400], "<f4").reshape(10, 10)
    row = tensor[3]
    del place, view, tensor
    gc.collect()
    assert arena.lent_bytes == 2 * PAGE and arena.lend(3 * PAGE) is None
    del row
    assert arena.lent_bytes == 0 and arena.lend(4 * PAGE) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * PAGE), st.integers(0, 30)), max_size=60))
def test_places_that_are_lent_never_overlap_and_none_is_lost(steps: list[tuple[bool, int, int]]) -> None:
    arena = Arena(16 * PAGE)
    lent: list[tuple[Any, int]] = []
    for number, (give_back, size, which) in enumerate(steps):
        if give_back and lent:
            lent.pop(which % len(lent))
        elif (place := arena.lend(size)) is not None:
            assert len(place) == size
            place[:] = number % 256
            lent.append((place, number % 256))
        place = None
        assert all((place == written).all() for place, written in lent)
        assert arena.lent_bytes == sum(-(-len(place) // PAGE) * PAGE for place, _ in lent)
    lent.clear()
    whole = arena.lend(16 * PAGE)
    assert whole is not None and arena.lend(1) is None


def test_every_place_begins_where_any_tensor_may() -> None:
    arena = Arena(2**20)
    places = [arena.lend(size) for size in (1, ALIGNMENT, PAGE + 1, 70_000)]
    offsets = [arena.offset_of(place) for place in places if place is not None]
    assert len(offsets) == 4 and all(offset is not None and offset % ALIGNMENT == 0 for offset in offsets)
    assert offsets == sorted(set(offsets), key=lambda offset: offset or 0)


def test_what_lies_elsewhere_has_no_place() -> None:
    arena, other = Arena(2**16), Arena(2**16)
    place = other.lend(100)
    assert place is not None
    assert arena.offset_of(place) is None and arena.offset_of(np.zeros(9)) is None
    assert other.offset_of(place[64:]) == 64


def test_the_lowest_place_is_lent_again() -> None:
    arena = Arena(2**20)
    first, second = arena.lend(5000), arena.lend(5000)
    del first
    third = arena.lend(5000)
    assert third is not None and arena.offset_of(third) == 0 and second is not None


@pytest.mark.parametrize("size", [0, 2**16 + 1, 2**40])
def test_what_does_not_fit_is_not_lent(size: int) -> None:
    arena = Arena(2**16)
    assert arena.lend(size) is None and arena.lent_bytes == 0


def test_a_place_may_be_dropped_by_any_thread() -> None:
    arena = Arena(2**22)
    places = [arena.lend(5000) for _ in range(400)]

    def drop() -> None:
        while places:
            places.pop()

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        arena.lend(9000)
    for thread in threads:
        thread.join()
    assert arena.lent_bytes == 0


def test_who_is_given_the_memory_sees_it_and_can_neither_write_nor_cut_it() -> None:
    arena = Arena(2**16)
    place = arena.lend(8)
    assert place is not None
    place[:] = list(b"a tensor")
    # As the other end of a socket would get it.
    given = os.dup(arena.descriptor)
    try:
        seen = mmap.mmap(given, 2**16, prot=mmap.PROT_READ)
        assert seen[:8] == b"a tensor"
        place[0] = ord("A")
        assert seen[:1] == b"A"
        with pytest.raises(PermissionError):
            mmap.mmap(given, 2**16)
        for change in (
            lambda: os.ftruncate(given, 0),
            lambda: os.ftruncate(given, 2**17),
            lambda: os.write(given, b"x"),
        ):
            with pytest.raises(PermissionError):
                change()
        with pytest.raises(PermissionError):
            fcntl.fcntl(given, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        seen.close()
    finally:
        os.close(given)


def test_an_arena_leaves_no_descriptor_and_its_places_outlive_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arenas = [Arena(2**16) for _ in range(5)]
    place = arenas[0].lend(100)
    assert place is not None
    place[:] = 7
    arenas.clear()
    gc.collect()
    assert place.sum() == 700
    del place
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_shared_memory_there_is_no_arena(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_arena(0) is None and caplog.records == []
    assert open_arena(4096) is not None

    def refused(*_: Any) -> int:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "memfd_create", refused)
    with caplog.at_level(logging.WARNING):
        assert open_arena(4096) is None
    assert "not here" in caplog.text
