from __future__ import annotations

from pathlib import Path

import pytest

from gateway.engine.cores import usable_cores


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("200000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("150000 100000", 2)]
)
def test_a_quota_bounds_the_cores_and_a_part_of_one_counts_whole(tmp_path: Path, cpu_max: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert usable_cores(affinity=8, membership="0::/\n", cgroups=tmp_path) == cores


def test_the_smallest_quota_of_the_group_and_those_above_it_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000")
    (tmp_path / "a" / "cpu.max").write_text("300000 100000")
    assert usable_cores(affinity=8, membership="0::/a/b\n", cgroups=tmp_path) == 3


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    group = tmp_path / "cpu" / "docker" / "x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("400000")
    (group / "cpu.cfs_period_us").write_text("100000")
    membership = "12:memory:/docker/x\n5:cpu,cpuacct:/docker/x\n"
    assert usable_cores(affinity=8, membership=membership, cgroups=tmp_path) == 4


def test_affinity_bounds_the_cores_where_there_is_no_quota(tmp_path: Path) -> None:
    assert usable_cores(affinity=3, membership="", cgroups=tmp_path) == 3
    assert usable_cores(affinity=3, membership="0::/a\nnonsense\n", cgroups=tmp_path) == 3
