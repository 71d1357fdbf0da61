"""Slots under real processes: what is counted here is what the kernel granted."""

import fcntl
import itertools
import multiprocessing
import os
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from resources import leases
from resources.leases import LeaseTimeoutError, SlotLeases, default_lock_directory

NEED_MIB = 2048

_HOLD = """
import sys, time
from pathlib import Path
from resources.leases import SlotLeases
with SlotLeases(Path(sys.argv[1]), {"GPU-a": 1}, need_mib=2048).acquire():
    print("held", flush=True)
    time.sleep(600)
"""

_HOLD_AND_FORK = """
import os, subprocess, sys, time
from pathlib import Path
from resources.leases import SlotLeases
with SlotLeases(Path(sys.argv[1]), {"GPU-a": 1}, need_mib=2048).acquire():
    children = [os.fork()]
    if children == [0]:
        time.sleep(600)
    children.append(subprocess.Popen(["sleep", "600"], close_fds=False).pid)
    print(*children, flush=True)
    time.sleep(600)
"""

_HOLD_AS_NOBODY = """
import os, sys
from pathlib import Path
from resources.leases import SlotLeases
leases = SlotLeases(Path(sys.argv[1]), {"GPU-a": 2}, need_mib=2048)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with leases.acquire(timeout_seconds=0) as lease:
    print(lease.slot_index, flush=True)
    sys.stdin.read()
"""


def slots(directory: Path, counts: Mapping[str, int], need_mib: int = NEED_MIB) -> SlotLeases:
    return SlotLeases(directory, counts, need_mib=need_mib)


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def seconds_until_free(slot_leases: SlotLeases) -> float:
    started = time.monotonic()
    while time.monotonic() < started + 5:
        try:
            with slot_leases.acquire(timeout_seconds=0):
                return time.monotonic() - started
        except LeaseTimeoutError:
            time.sleep(0.001)
    raise AssertionError("the slot is still held after 5 s")


def burst_worker(directory: Path, barrier: Any, wins: Any, round_count: int) -> None:
    slot_leases = slots(directory, {"GPU-a": 1, "GPU-b": 1})
    for round_index in range(round_count):
        with ExitStack() as stack:
            barrier.wait()
            try:
                stack.enter_context(slot_leases.acquire(timeout_seconds=0))
            except LeaseTimeoutError:
                pass
            else:
                with wins.get_lock():
                    wins[round_index] += 1
            barrier.wait()


def queueing_worker(directory: Path, barrier: Any, spans: Any, span_count: int) -> None:
    slot_leases = slots(directory, {"GPU-a": 2})
    barrier.wait()
    for _ in range(span_count):
        with slot_leases.acquire() as lease:
            started = time.monotonic()
            time.sleep(0.02)
            spans.put((lease.slot_index, started, time.monotonic()))


def most_at_once(spans: list[tuple[float, float]]) -> int:
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(step for _, step in events))


def test_eight_processes_released_at_once_never_hold_more_nor_fewer_than_the_limit(tmp_path: Path):
    round_count = 200
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(8), context.Array("i", round_count)
    workers = [
        context.Process(target=burst_worker, args=(tmp_path / "slots", barrier, wins, round_count))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert wins[:] == [2] * round_count


def test_processes_in_a_queue_all_get_their_turn_and_never_overlap(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=queueing_worker, args=(tmp_path / "slots", barrier, queue, 4))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    spans = [queue.get(timeout=60) for _ in range(4 * 4)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert most_at_once([(start, end) for _, start, end in spans]) == 2
    for index in range(2):
        assert most_at_once([(start, end) for slot, start, end in spans if slot == index]) == 1


def test_a_killed_holder_frees_its_slot_within_100_ms(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 1})
    waits: list[float] = []
    for _ in range(10):
        with running(_HOLD, tmp_path) as holder:
            assert first_line(holder) == "held"
            with pytest.raises(LeaseTimeoutError), slot_leases.acquire(timeout_seconds=0):
                pass
            holder.kill()
            waits.append(seconds_until_free(slot_leases))
    # The kernel takes about 4 ms; a busy machine may not let either process run for longer.
    assert statistics.median(waits) < 0.1
    assert max(waits) < 1


def test_children_of_a_killed_holder_do_not_keep_its_slot(tmp_path: Path):
    with running(_HOLD_AND_FORK, tmp_path) as holder:
        children = [int(pid) for pid in first_line(holder).split()]
        try:
            holder.kill()
            assert seconds_until_free(slots(tmp_path, {"GPU-a": 1})) < 1
            for pid in children:
                os.kill(pid, 0)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_shares_the_slots():
    # Not tmp_path: pytest keeps that to the user who runs it.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        directory = Path(parent) / "slots"
        slot_leases = slots(directory, {"GPU-a": 2})
        with slot_leases.acquire(), running(_HOLD_AS_NOBODY, directory) as nobody:
            assert first_line(nobody) == "1"
            with pytest.raises(LeaseTimeoutError), slot_leases.acquire(timeout_seconds=0):
                pass


def test_an_error_in_the_body_frees_the_slot(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 1})
    with pytest.raises(RuntimeError, match="out of memory"), slot_leases.acquire():
        raise RuntimeError("out of memory")
    assert slot_leases.holders() == ()
    with slot_leases.acquire(timeout_seconds=0) as lease:
        assert (lease.device_uuid, lease.slot_index) == ("GPU-a", 0)


def test_two_objects_in_one_process_share_the_slots(tmp_path: Path):
    with slots(tmp_path, {"GPU-a": 1}).acquire(), pytest.raises(LeaseTimeoutError):
        slots(tmp_path, {"GPU-a": 1}).acquire(timeout_seconds=0).__enter__()


def test_a_waiter_burns_no_core_and_says_whom_it_waits_for(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 10})
    told: list[str] = []
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(slot_leases.acquire())
        cpu_seconds = time.process_time()
        started = time.monotonic()
        with pytest.raises(LeaseTimeoutError, match=rf"in 2\.\d s.*process {os.getpid()}"):
            stack.enter_context(slot_leases.acquire(timeout_seconds=2, report=told.append))
        # 2 s of a busy loop would be 2 s; polling measures 0.01 s on a machine that is idle.
        assert time.process_time() - cpu_seconds < 0.2
        assert 2 <= time.monotonic() - started < 4
    assert len(told) == 1
    assert told[0].startswith("waiting for a slot, 0 s so far: GPU-a has 10 slots, held by process")


def test_a_waiter_reports_again_and_gets_the_slot_that_frees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(leases, "_REPORT_SECONDS", 0.2)
    told: list[str] = []
    with running(_HOLD, tmp_path) as holder:
        assert first_line(holder) == "held"

        def tell(message: str) -> None:
            told.append(message)
            if len(told) == 2:
                holder.kill()

        with slots(tmp_path, {"GPU-a": 1}).acquire(report=tell) as lease:
            assert lease.waited_seconds > 0.2


def test_waiting_for_a_plan_without_slots_is_an_error(tmp_path: Path):
    with (
        pytest.raises(ValueError, match="no device has a slot"),
        slots(tmp_path, {"GPU-a": 0}).acquire(),
    ):
        pass


def test_equal_devices_fill_up_in_turn(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 3, "GPU-b": 3})
    with ExitStack() as stack:
        taken = [stack.enter_context(slot_leases.acquire()) for _ in range(6)]
    assert [lease.device_uuid for lease in taken] == ["GPU-a", "GPU-b"] * 3


def test_uneven_devices_fill_up_in_proportion(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-small": 10, "GPU-large": 36})
    with ExitStack() as stack:
        taken = [stack.enter_context(slot_leases.acquire()) for _ in range(9)]
    assert sum(lease.device_uuid == "GPU-large" for lease in taken) == 7


def test_the_device_with_more_free_memory_comes_first(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 3, "GPU-b": 3})
    with slot_leases.acquire(free_mib={"GPU-a": 8000, "GPU-b": 9000}) as lease:
        assert lease.device_uuid == "GPU-b"


def test_a_plan_that_shrank_gives_nothing_while_old_holders_fill_it(tmp_path: Path):
    with ExitStack() as old:
        leases_of_old_plan = slots(tmp_path, {"GPU-a": 5})
        held = [leases_of_old_plan.acquire() for _ in range(5)]
        for lease in held:
            old.enter_context(lease)
        shrunk = slots(tmp_path, {"GPU-a": 3})
        for lease in held[:2]:
            lease.__exit__(None, None, None)
        # Slots 0 and 1 are free, but three workers still run in slots 2, 3 and 4.
        with pytest.raises(LeaseTimeoutError), shrunk.acquire(timeout_seconds=0):
            pass
        held[4].__exit__(None, None, None)
        with shrunk.acquire(timeout_seconds=0) as lease:
            assert lease.slot_index == 0


def test_workers_of_another_need_count_by_their_memory(tmp_path: Path):
    large = slots(tmp_path, {"GPU-a": 3}, need_mib=2048)
    small = slots(tmp_path, {"GPU-a": 12}, need_mib=512)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(large.acquire(timeout_seconds=0))
        for _ in range(4):
            stack.enter_context(small.acquire(timeout_seconds=0))
        for full in (small, large):
            with pytest.raises(LeaseTimeoutError):
                stack.enter_context(full.acquire(timeout_seconds=0))


def test_holders_are_listed_with_pid_and_time(tmp_path: Path):
    slot_leases = slots(tmp_path, {"MIG-GPU-a/1/0": 2})
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with slot_leases.acquire():
        (holder,) = slots(tmp_path, {}).holders()
    assert (holder.device_uuid, holder.slot_index) == ("MIG-GPU-a/1/0", 0)
    assert (holder.pid, holder.need_mib) == (os.getpid(), NEED_MIB)
    assert holder.since is not None
    assert before <= holder.since <= datetime.now(UTC)


def test_what_a_lock_file_says_does_not_make_its_slot_held(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 1})
    (tmp_path / "GPU-a.0.lock").write_text(f"{os.getpid()} 2026-01-01T00:00:00+00:00 2048\n")
    assert slot_leases.holders() == ()
    with slot_leases.acquire(timeout_seconds=0):
        (tmp_path / "GPU-a.0.lock").write_bytes(b"\xff nonsense")
        (holder,) = slot_leases.holders()
        assert (holder.pid, holder.since, holder.need_mib) == (None, None, None)
        with pytest.raises(LeaseTimeoutError, match="process unknown"):
            slots(tmp_path, {"GPU-a": 1}).acquire(timeout_seconds=0).__enter__()


def test_a_lock_taken_from_outside_blocks_its_slot_only(tmp_path: Path):
    slot_leases = slots(tmp_path, {"GPU-a": 2})
    with (tmp_path / "GPU-a.0.lock").open("w") as outside:
        fcntl.flock(outside, fcntl.LOCK_EX)
        with slot_leases.acquire(timeout_seconds=0) as lease:
            assert lease.slot_index == 1


def test_directory_and_files_are_for_every_user(tmp_path: Path):
    mask = os.umask(0o077)
    try:
        with slots(tmp_path / "slots", {"GPU-a": 1}).acquire():
            pass
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "slots").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "slots" / "GPU-a.0.lock").stat().st_mode) == 0o666


def test_a_symbolic_link_for_a_directory_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "slots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="slots"), slots(tmp_path / "slots", {"GPU-a": 1}).acquire():
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_linked_lock_file_is_refused_and_its_target_kept(tmp_path: Path, link: Any):
    target = tmp_path / "target"
    target.write_text("precious")
    directory = tmp_path / "slots"
    directory.mkdir()
    link(target, directory / "GPU-a.0.lock")
    with pytest.raises(OSError, match=r"GPU-a\.0\.lock"), slots(directory, {"GPU-a": 1}).acquire():
        pass
    assert target.read_text() == "precious"


def test_a_stopped_process_inside_the_door_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(leases, "_DOOR_TIMEOUT_SECONDS", 0.1)
    door = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        with pytest.raises(LeaseTimeoutError, match="probably stopped"):
            slots(tmp_path, {"GPU-a": 1}).holders()
    finally:
        os.close(door)


def test_the_default_directory_is_the_same_for_every_user(monkeypatch: pytest.MonkeyPatch):
    here = default_lock_directory()
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert default_lock_directory() == here
    assert here.name == "ocr_assets-slots"
    assert here.parent.stat().st_mode & 0o1002 == 0o1002
