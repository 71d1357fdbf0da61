"""What the machine, or the container the process is in, offers to workers on the CPU.

Belongs here: cores and main memory, with the limits of the process's control groups, which neither
psutil nor the operating system's own figures know. Does not belong here: GPUs (`nvml.py`) and the
plan of slots (`vram.py`).

Limits are looked for in the process's own group and in all above it, up to where the hierarchy is
mounted. A container may see the host's path of its group, but only its own part of the hierarchy:
then the mount itself is its group. The files' names are those of the kernel's Documentation:
admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where the control groups are mounted; version 1 has a folder per controller in it."""

CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
"""Which groups the process is in; there is no such file outside Linux."""

_BYTES_PER_MIB = 2**20


def usable_core_count(
    *, cgroup_root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> int:
    """The cores that this process may keep busy: by its affinity and its groups' quotas.

    Args:
        cgroup_root: Where the control groups are mounted.
        membership: The file that says which groups the process is in.

    Returns:
        At least 1; a quota is rounded down.
    """
    if hasattr(os, "sched_getaffinity"):
        core_count = len(os.sched_getaffinity(0))
    else:
        core_count = os.cpu_count() or 1
    for group in _groups(cgroup_root, membership, "cpu"):
        # Version 2 has `quota period` in one file, `max` for no quota; version 1 has -1 for none.
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            core_count = min(core_count, int(quota) // int(period))
    return max(1, core_count)


def available_memory_mib(
    *, cgroup_root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> int:
    """The main memory that this process may take, in MiB, without anything being swapped out.

    Args:
        cgroup_root: Where the control groups are mounted.
        membership: The file that says which groups the process is in.

    Returns:
        What the system has available, and no more than any of the process's groups has left: its
        limit less its usage, plus its page cache that was not used of late. At least 0.
    """
    available_bytes = psutil.virtual_memory().available
    for group in _groups(cgroup_root, membership, "memory"):
        # Without a limit, version 2 says `max` and version 1 a number beyond any memory.
        for limit_file, usage_file, cache_field in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _read(group / limit_file), _read(group / usage_file)
            if limit.isdecimal() and usage.isdecimal():
                stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                left_bytes = int(limit) - int(usage) + int(stat.get(cache_field, 0))
                available_bytes = min(available_bytes, left_bytes)
    return max(0, available_bytes) // _BYTES_PER_MIB


def _groups(cgroup_root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Where the limits of one controller may lie, of both versions, each folder and all above."""
    for line in _read(membership).splitlines():
        # `hierarchy:controllers:path`; version 2 has no controllers here.
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = cgroup_root
        elif controller in controllers.split(","):
            mount = cgroup_root / controller
        else:
            continue
        # A group outside the process's namespace is shown as `/../…`, and cannot be seen.
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    """A file's text; empty where there is none, as in the root group, or its group is gone."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
