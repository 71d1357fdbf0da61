"""What a worker and its device take while a partition is scored, sampled by a thread on the side.

Belongs here: when to sample, how many samples to keep and what they come to. Does not belong here:
how a GPU is read (`nvml.py`), where the samples are kept (`usage_files.py`). Sampling is there to
look at: whatever goes wrong in it is counted and never reaches the work. All memory is in MiB
(2**20 bytes).
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import psutil

from resources.nvml import DeviceUsage, device_reader
from resources.vram import CPU_DEVICE

DEFAULT_INTERVAL_SECONDS = 0.5
"""Between two samples, until they are thinned out. A sample takes 0.11 ms of a core for the CPU and
0.06 ms for a GPU (2,000 in a loop, 2-core virtual machine; the GPU's with the scripted library of
`tests/fake_nvml`, so without the driver's own part), 0.5 ms with the thread's waking up and cold
caches: a thousandth of a core."""

MAX_SAMPLE_COUNT = 600
"""Samples that are kept: five minutes of the default interval. A partition of a day has as many."""

_MIN_CPU_INTERVAL_SECONDS = 0.1
"""The kernel counts processor time in ticks of 10 ms; over less than ten of them a share means
nothing (psutil's documentation of `cpu_percent` names the same bound)."""

_THREAD_TIMEOUT_SECONDS = 5.0
"""How long the work waits for the first sample, and for the last: a driver that hangs must not hang
the partition."""

_BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class UsageSample:
    """One moment of a device and of this process on it.

    Attributes:
        sampled_at: When (UTC).
        elapsed_seconds: The same since sampling began.
        device_used_mib: Memory in use by anybody, in MiB. On the CPU: what others could not have.
        device_total_mib: All the device's memory, in MiB.
        process_mib: Memory that this process uses on the device, in MiB; on the CPU its resident
            memory. None where the driver does not tell.
        utilization_percent: How busy the device was, in [0, 100]; on the CPU all cores together.
            None where that is not told, or not yet.
    """

    sampled_at: datetime
    elapsed_seconds: float
    device_used_mib: int
    device_total_mib: int
    process_mib: int | None
    utilization_percent: int | None


@dataclass(frozen=True)
class UsageSummary:
    """What samples come to; None where no sample tells.

    Attributes:
        peak_device_mib: Most memory in use on the device at any sample ever taken, in MiB.
        mean_device_mib: The mean over the samples kept, in MiB.
        peak_process_mib: As `peak_device_mib`, of this process.
        mean_process_mib: As `mean_device_mib`, of this process.
        mean_utilization_percent: Over the samples kept, in [0, 100].
        peak_utilization_percent: At any sample ever taken, in [0, 100].
        sample_count: Samples kept.
    """

    peak_device_mib: int | None
    mean_device_mib: float | None
    peak_process_mib: int | None
    mean_process_mib: float | None
    mean_utilization_percent: float | None
    peak_utilization_percent: int | None
    sample_count: int


class UsageSampler:
    """Samples one device while the body of its `with` runs; for one such body.

    A sample is taken at the start, then in every interval, and at the end. When there are
    `MAX_SAMPLE_COUNT`, every second one is dropped and the interval doubles: what is kept is evenly
    spaced over the whole time, however long that is. Peaks are of all samples, dropped ones too.
    """

    def __init__(
        self, device_uuid: str, interval_seconds: float = DEFAULT_INTERVAL_SECONDS
    ) -> None:
        """Starts nothing yet.

        Args:
            device_uuid: NVML's UUID of a GPU or MIG instance, or `cpu`.
            interval_seconds: From one sample to the next, above 0.

        Raises:
            ValueError: If the interval is not above 0.
        """
        if not interval_seconds > 0:
            raise ValueError(f"an interval is above 0 seconds, got {interval_seconds = }")
        self._device_uuid = device_uuid
        self._interval_seconds = interval_seconds
        self._samples: list[UsageSample] = []
        self._peaks = _Peaks()
        self._failure_count = 0
        self._started = 0.0
        self._has_begun = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage sampler", daemon=True)

    @property
    def samples(self) -> tuple[UsageSample, ...]:
        """The samples kept so far, in order of time."""
        return tuple(self._samples)

    @property
    def failure_count(self) -> int:
        """How often the device could not be read, or not in time."""
        return self._failure_count

    def summary(self) -> UsageSummary:
        """What the samples so far come to."""
        samples = self.samples
        return UsageSummary(
            peak_device_mib=self._peaks.device_mib,
            mean_device_mib=_mean([sample.device_used_mib for sample in samples]),
            peak_process_mib=self._peaks.process_mib,
            mean_process_mib=_mean([sample.process_mib for sample in samples]),
            mean_utilization_percent=_mean([sample.utilization_percent for sample in samples]),
            peak_utilization_percent=self._peaks.utilization_percent,
            sample_count=len(samples),
        )

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread.start()
        self._has_begun.wait(_THREAD_TIMEOUT_SECONDS)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(_THREAD_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            self._failure_count += 1

    def _run(self) -> None:
        try:
            with _reader(self._device_uuid) as read:
                self._take(read)
                self._has_begun.set()
                while not self._is_over.wait(self._interval_seconds):
                    self._take(read)
                self._take(read)
        finally:
            self._has_begun.set()

    def _take(self, read: Callable[[], DeviceUsage | None]) -> None:
        usage = read()
        if usage is None:
            self._failure_count += 1
            return
        if len(self._samples) == MAX_SAMPLE_COUNT:
            del self._samples[1::2]
            self._interval_seconds *= 2
        self._samples.append(
            UsageSample(
                sampled_at=datetime.now(UTC),
                elapsed_seconds=time.monotonic() - self._started,
                device_used_mib=usage.used_mib,
                device_total_mib=usage.total_mib,
                process_mib=usage.own_mib,
                utilization_percent=usage.utilization_percent,
            )
        )
        self._peaks = self._peaks.with_usage(usage)


@dataclass(frozen=True)
class _Peaks:
    device_mib: int | None = None
    process_mib: int | None = None
    utilization_percent: int | None = None

    def with_usage(self, usage: DeviceUsage) -> "_Peaks":
        return _Peaks(
            device_mib=_larger(self.device_mib, usage.used_mib),
            process_mib=_larger(self.process_mib, usage.own_mib),
            utilization_percent=_larger(self.utilization_percent, usage.utilization_percent),
        )


def _larger(one: int | None, other: int | None) -> int | None:
    return max((figure for figure in (one, other) if figure is not None), default=None)


def _mean(figures: Sequence[int | None]) -> float | None:
    told = [figure for figure in figures if figure is not None]
    return sum(told) / len(told) if told else None


@contextmanager
def _reader(device_uuid: str) -> Generator[Callable[[], DeviceUsage | None], None, None]:
    if device_uuid == CPU_DEVICE:
        yield _CpuReader()
        return
    with device_reader(device_uuid) as read:
        yield read


class _CpuReader:
    """Reads the machine and this process as often as it is called, in one thread."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        # psutil tells the share since this thread's last call; what came before is not ours.
        psutil.cpu_percent()
        self._asked_at = time.monotonic()

    def __call__(self) -> DeviceUsage | None:
        try:
            memory = psutil.virtual_memory()
            return DeviceUsage(
                total_mib=memory.total // _BYTES_PER_MIB,
                # What is not available, page cache left out: the figure that slots are planned on.
                used_mib=-(-(memory.total - memory.available) // _BYTES_PER_MIB),
                own_mib=-(-self._process.memory_info().rss // _BYTES_PER_MIB),
                utilization_percent=self._read_utilization(),
            )
        except (psutil.Error, OSError):
            return None

    def _read_utilization(self) -> int | None:
        now = time.monotonic()
        if now - self._asked_at < _MIN_CPU_INTERVAL_SECONDS:
            return None
        self._asked_at = now
        return round(psutil.cpu_percent())
