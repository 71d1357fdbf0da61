"""Kernel locks, one per device slot: what guarantees that no device carries one worker too many.

Belongs here: taking, awaiting, listing and freeing the slots of this machine. Does not belong here:
how many slots there are (`vram.py`), and anything of Dagster.

A slot is a file under `flock(2)`, held by the worker's own process. The kernel frees it when the
process ends, however it ends. No child inherits it: the descriptor closes on exec, and a fork hook
closes it in the forked child (a flock belongs to the open file, so a child that kept it open would
keep the slot after its parent's death).

Whoever looks at the slots or takes one locks their directory first, for the fraction of a
millisecond it takes. That makes counting exact: a probe never looks like a holder, simultaneous
takers see each other's choice, and a plan that shrank counts slots above its own range too.

The directory must be on a local file system, and containers share slots only if they share it.
"""

import fcntl
import logging
import math
import os
import random
import re
import stat
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

_logger = logging.getLogger(__name__)

_POLL_SECONDS = (0.05, 0.5)
"""Bounds of the random pause between two tries, so that waiters neither burn a core nor march in
step; the upper bound is how long a freed slot may stay unnoticed."""

_REPORT_SECONDS = 10.0
"""A waiter says at once what it waits for, and again after each of these."""

_DOOR_POLL_SECONDS = (0.001, 0.005)
"""Bounds of the pause while another process counts; it takes 0.02 ms per
slot in use (measured on a 2-core virtual machine)."""

_DOOR_TIMEOUT_SECONDS = 30.0
"""No process that runs counts for so long: the one inside the door was stopped."""

_SLOT_FILE = re.compile(r"(?P<device>.+)\.(?P<index>[0-9]+)\.lock")


class LeaseTimeoutError(TimeoutError):
    """No slot came free in time. The message says who held them."""


@dataclass(frozen=True)
class Lease:
    """The right to run one worker, from `SlotLeases.acquire`.

    Attributes:
        device_uuid: The device to run on: a GPU's or MIG instance's UUID, or `cpu`.
        slot_index: Which of the device's slots it is, from 0.
        waited_seconds: How long it took to get.
    """

    device_uuid: str
    slot_index: int
    waited_seconds: float


@dataclass(frozen=True)
class SlotHolder:
    """A slot that a living process holds. That it is held was asked of the kernel.

    Attributes:
        device_uuid: The device.
        slot_index: Which of its slots.
        pid: The holder, by its own account and in its own process-id namespace; None if unknown.
        since: When it took the slot (UTC), by its own account; None if unknown.
        need_mib: Memory that it reckons with, in MiB, by its own account; None if unknown.
    """

    device_uuid: str
    slot_index: int
    pid: int | None
    since: datetime | None
    need_mib: int | None


def default_lock_directory() -> Path:
    """Where every Dagster instance, script and user of this machine looks for the slots.

    `/run/lock` where anybody may write there (Debian's rule; empty after a reboot, never cleaned
    before), else `/tmp` (Fedora keeps `/run/lock` to root, macOS has none). `TMPDIR` is not asked:
    it differs from user to user.
    """
    shared = stat.S_IWOTH | stat.S_ISVTX
    run_lock = Path("/run/lock")
    is_shared = run_lock.is_dir() and run_lock.stat().st_mode & shared == shared
    return (run_lock if is_shared else Path("/tmp")) / "ocr_assets-slots"  # noqa: S108 (see _open_directory)


class SlotLeases:
    """The slots of a plan, shared by all processes that name the same directory.

    Args:
        directory: Where the lock files lie. Made if missing, writable for every user.
        slots: By device UUID how many workers it carries.
        need_mib: Memory that each slot of this plan stands for, in MiB, at least 1. Holders with
            another need count by their memory: one of 4096 MiB fills two slots of 2048 MiB.
    """

    def __init__(self, directory: Path, slots: Mapping[str, int], *, need_mib: int) -> None:
        self.directory = directory
        self.slots = dict(slots)
        self.need_mib = need_mib

    @contextmanager
    def acquire(
        self,
        *,
        free_mib: Mapping[str, int] | None = None,
        timeout_seconds: float | None = None,
        report: Callable[[str], None] = _logger.info,
        waiting_since: float | None = None,
    ) -> Generator[Lease, None, None]:
        """Holds a slot while the body runs, and waits for one before.

        The slot is on the device that has most memory per worker, counting the one to come.

        Args:
            free_mib: Memory by device UUID, in MiB, to choose the device by. By default the
                devices' slot counts stand for it.
            timeout_seconds: How long to wait at most, in seconds; 0 to try once, None for ever.
            report: Is told in words what is waited for, at once and then every 10 s.
            waiting_since: From when the wait counts, of `time.monotonic()`, where this is not the
                first try; by default from now.

        Raises:
            LeaseTimeoutError: If no slot came free in time.
            ValueError: If the plan has no slot at all, so that waiting would never end.
            OSError: If the lock directory cannot be used.
        """
        if not any(self.slots.values()):
            raise ValueError(f"no device has a slot to wait for: {self.slots = }")
        started = time.monotonic() if waiting_since is None else waiting_since
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        device_uuid, slot_index, file = self._wait(
            self.slots if free_mib is None else free_mib, started, deadline, report
        )
        try:
            yield Lease(device_uuid, slot_index, time.monotonic() - started)
        finally:
            file.close()

    def holders(self) -> tuple[SlotHolder, ...]:
        """Who holds which slot now, of any plan and any device in this directory."""
        with self._door() as directory:
            return _holders(directory)

    def _wait(
        self,
        memory_mib: Mapping[str, int],
        started: float,
        deadline: float,
        report: Callable[[str], None],
    ) -> "tuple[str, int, _OpenFile]":
        next_report = -math.inf
        while (claim := self._claim(memory_mib)) is None:
            now = time.monotonic()
            if now >= deadline:
                raise LeaseTimeoutError(
                    f"no slot came free in {now - started:.1f} s: {self._occupation()}"
                )
            if now >= next_report:
                report(f"waiting for a slot, {now - started:.0f} s so far: {self._occupation()}")
                next_report = now + _REPORT_SECONDS
            time.sleep(min(_between(_POLL_SECONDS), deadline - now))
        return claim

    def _claim(self, memory_mib: Mapping[str, int]) -> "tuple[str, int, _OpenFile] | None":
        with self._door() as directory:
            holders = _holders(directory)
            taken = {(holder.device_uuid, holder.slot_index) for holder in holders}
            for uuid in self._open_devices(holders, memory_mib):
                for index in range(self.slots[uuid]):
                    if (uuid, index) in taken:
                        continue
                    file = _lock_slot(directory, uuid, index, self.need_mib)
                    if file is not None:
                        return uuid, index, file
        return None

    def _open_devices(
        self, holders: Collection[SlotHolder], memory_mib: Mapping[str, int]
    ) -> list[str]:
        filled = {uuid: self._filled(uuid, holders) for uuid in self.slots}
        return sorted(
            (uuid for uuid, count in self.slots.items() if filled[uuid] < count),
            key=lambda uuid: memory_mib.get(uuid, 0) / (filled[uuid] + 1),
            reverse=True,
        )

    def _filled(self, uuid: str, holders: Collection[SlotHolder]) -> int:
        needs_mib = [
            holder.need_mib or self.need_mib for holder in holders if holder.device_uuid == uuid
        ]
        return max(len(needs_mib), math.ceil(sum(needs_mib) / self.need_mib))

    def _occupation(self) -> str:
        holders = self.holders()
        return "; ".join(
            f"{uuid} has {count} slots, held by "
            + (
                ", ".join(
                    f"process {holder.pid or 'unknown'}"
                    for holder in holders
                    if holder.device_uuid == uuid
                )
                or "nobody"
            )
            for uuid, count in self.slots.items()
        )

    @contextmanager
    def _door(self) -> Generator[int, None, None]:
        directory = _open_directory(self.directory)
        deadline = time.monotonic() + _DOOR_TIMEOUT_SECONDS
        try:
            while not directory.try_lock():
                if time.monotonic() > deadline:
                    raise LeaseTimeoutError(
                        f"another process has kept {self.directory} locked for "
                        f"{_DOOR_TIMEOUT_SECONDS:.0f} s; it was probably stopped: find it with "
                        f"`lslocks` and let it run or end it"
                    )
                time.sleep(_between(_DOOR_POLL_SECONDS))
            yield directory.descriptor
        finally:
            directory.close()


class _OpenFile:
    """An open file that neither exec nor fork hands on to a child."""

    def __init__(self, path: str | Path, flags: int, *, directory: int | None = None) -> None:
        self.descriptor = os.open(
            path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o666, dir_fd=directory
        )
        _open_files.add(self)

    def close(self) -> None:
        _open_files.discard(self)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_open_files: set[_OpenFile] = set()


def _close_in_forked_child() -> None:
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_close_in_forked_child)


def _open_directory(path: Path) -> _OpenFile:
    # Sticky, so that no user removes another's lock file; and opened without following a symbolic
    # link, which another user may have put there to have us write elsewhere.
    try:
        path.mkdir(parents=True)
        path.chmod(0o1777)
    except FileExistsError:
        pass
    return _OpenFile(path, os.O_RDONLY | os.O_DIRECTORY)


def _open_slot(directory: int, name: str) -> _OpenFile:
    # Opened first and made second: in sticky directories Linux forbids O_CREAT on files of others
    # (fs.protected_regular), even where they exist and may be written.
    try:
        file = _OpenFile(name, os.O_RDWR | os.O_NONBLOCK, directory=directory)
    except FileNotFoundError:
        file = _OpenFile(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, directory=directory)
        os.fchmod(file.descriptor, 0o666)
    status = os.fstat(file.descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        file.close()
        raise OSError(
            f"lock file {name} is not a plain file with one name, so a write to it might land "
            f"elsewhere; remove it: {status.st_mode = :o}, {status.st_nlink = }"
        )
    return file


def _lock_slot(directory: int, device_uuid: str, index: int, need_mib: int) -> _OpenFile | None:
    file = _open_slot(directory, f"{quote(device_uuid, safe='')}.{index}.lock")
    if not file.try_lock():
        file.close()
        return None
    note = f"{os.getpid()} {datetime.now(UTC).isoformat(timespec='milliseconds')} {need_mib}\n"
    try:
        os.ftruncate(file.descriptor, 0)
        os.pwrite(file.descriptor, note.encode(), 0)
    except OSError:
        file.close()
        raise
    return file


def _holders(directory: int) -> tuple[SlotHolder, ...]:
    """Who holds the slots. The directory must be locked: each free slot is taken for a moment."""
    holders: list[SlotHolder] = []
    for name in os.listdir(directory):
        match = _SLOT_FILE.fullmatch(name)
        if match is None:
            continue
        file = _open_slot(directory, name)
        try:
            if not file.try_lock():
                note = _read_note(os.pread(file.descriptor, 200, 0))
                holders.append(SlotHolder(unquote(match["device"]), int(match["index"]), *note))
        finally:
            file.close()
    return tuple(sorted(holders, key=lambda holder: (holder.device_uuid, holder.slot_index)))


def _read_note(note: bytes) -> tuple[int | None, datetime | None, int | None]:
    # Anybody may write anything there; that a slot is held does not hang on it.
    try:
        pid, since, need_mib = note.decode().split()
        return int(pid), datetime.fromisoformat(since), max(1, int(need_mib))
    except ValueError:
        return None, None, None


def _between(bounds: tuple[float, float]) -> float:
    return random.uniform(*bounds)  # noqa: S311 (jitter, not a secret)
