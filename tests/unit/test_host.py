"""Control groups as the kernel shows them, in folders made here."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from resources.host import available_memory_mib, usable_core_count

MIB = 2**20
CORE_COUNT = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
UNLIMITED_V1 = 9223372036854771712

needs_two_cores = pytest.mark.skipif(CORE_COUNT == 1, reason="a quota below one core is one core")


@dataclass(frozen=True)
class Host:
    """A hierarchy of groups, and the file that says where in it the process is."""

    root: Path
    membership: Path

    def with_group(self, path: str, **files: object) -> "Host":
        """Adds a group's files; `memory_max` stands for `memory.max`."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")
        return self

    def core_count(self) -> int:
        return usable_core_count(cgroup_root=self.root, membership=self.membership)

    def available_mib(self) -> int:
        return available_memory_mib(cgroup_root=self.root, membership=self.membership)


def host(tmp_path: Path, *membership: str) -> Host:
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in membership))
    return Host(tmp_path / "fs", tmp_path / "cgroup")


def test_without_control_groups_the_system_decides(tmp_path: Path):
    nowhere = Host(tmp_path / "none", tmp_path / "neither")
    assert nowhere.core_count() == CORE_COUNT
    # Others use memory between the two readings.
    assert nowhere.available_mib() == pytest.approx(
        psutil.virtual_memory().available / MIB, rel=0.2
    )


def test_this_very_machine_offers_something():
    assert 1 <= usable_core_count() <= (os.cpu_count() or 1)
    assert 0 < available_memory_mib() <= psutil.virtual_memory().total // MIB


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("199999 100000", 1), ("max 100000", CORE_COUNT)],
)
def test_a_quota_of_version_2_is_rounded_down_to_one_core_at_least(
    tmp_path: Path, quota: str, expected: int
):
    assert host(tmp_path, "0::/").with_group("", cpu_max=quota).core_count() == expected


@needs_two_cores
def test_a_quota_of_two_cores_and_a_half_is_two(tmp_path: Path):
    assert host(tmp_path, "0::/").with_group("", cpu_max="250000 100000").core_count() == 2


def test_a_quota_beyond_the_cores_adds_none(tmp_path: Path):
    machine = host(tmp_path, "0::/").with_group("", cpu_max="99900000 100000")
    assert machine.core_count() == CORE_COUNT


@pytest.mark.parametrize(("quota_us", "expected"), [(100000, 1), (-1, CORE_COUNT)])
def test_a_quota_of_version_1_counts(tmp_path: Path, quota_us: int, expected: int):
    machine = host(tmp_path, "3:cpu,cpuacct:/job", "2:memory:/elsewhere").with_group(
        "cpu/job", cpu_cfs_quota_us=quota_us, cpu_cfs_period_us=100000
    )
    assert machine.core_count() == expected


def test_a_quota_of_a_group_above_counts(tmp_path: Path):
    machine = host(tmp_path, "0::/pod/container")
    machine.with_group("pod", cpu_max="100000 100000")
    machine.with_group("pod/container", cpu_max="max 100000")
    assert machine.core_count() == 1


def test_what_is_left_of_a_limit_of_version_2_is_available(tmp_path: Path):
    machine = host(tmp_path, "0::/job").with_group(
        "job",
        memory_max=100 * MIB,
        memory_current=70 * MIB,
        memory_stat=f"anon {50 * MIB}\ninactive_file {20 * MIB}\nactive_file 0",
    )
    assert machine.available_mib() == 50


def test_what_is_left_of_a_limit_of_version_1_is_available(tmp_path: Path):
    machine = host(tmp_path, "4:memory:/job").with_group(
        "memory/job",
        memory_limit_in_bytes=100 * MIB,
        memory_usage_in_bytes=70 * MIB,
        memory_stat=f"inactive_file 0\ntotal_inactive_file {20 * MIB}",
    )
    assert machine.available_mib() == 50


def test_groups_without_a_limit_limit_nothing(tmp_path: Path):
    free = host(tmp_path, "0::/a", "4:memory:/b")
    free.with_group("a", memory_max="max", memory_current=5)
    free.with_group("memory/b", memory_limit_in_bytes=UNLIMITED_V1, memory_usage_in_bytes=5)
    assert free.available_mib() == pytest.approx(psutil.virtual_memory().available / MIB, rel=0.2)


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path):
    machine = host(tmp_path, "0::/pod/container")
    machine.with_group("", memory_max=90 * MIB, memory_current=0)
    machine.with_group("pod", memory_max=30 * MIB, memory_current=10 * MIB)
    machine.with_group("pod/container", memory_max=50 * MIB, memory_current=0)
    assert machine.available_mib() == 20


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../outside"])
def test_a_container_that_sees_only_its_own_part_reads_the_mount(tmp_path: Path, path: str):
    machine = host(tmp_path, f"0::{path}").with_group("", memory_max=9 * MIB, memory_current=0)
    assert machine.available_mib() == 9
    machine = host(tmp_path, f"4:memory:{path}").with_group(
        "memory", memory_limit_in_bytes=7 * MIB, memory_usage_in_bytes=0
    )
    assert machine.available_mib() == 7


def test_groups_of_other_controllers_say_nothing(tmp_path: Path):
    machine = host(tmp_path, "5:pids:/job", "1:name=systemd:/job").with_group(
        "memory/job", memory_limit_in_bytes=MIB, memory_usage_in_bytes=0
    )
    assert machine.available_mib() > 1


def test_a_group_over_its_limit_has_nothing_available(tmp_path: Path):
    machine = host(tmp_path, "0::/").with_group("", memory_max=MIB, memory_current=3 * MIB)
    assert machine.available_mib() == 0


def test_a_group_whose_path_has_a_colon_is_found(tmp_path: Path):
    machine = host(tmp_path, "0::/a:b").with_group("a:b", memory_max=2 * MIB, memory_current=0)
    assert machine.available_mib() == 2
