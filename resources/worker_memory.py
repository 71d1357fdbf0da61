"""What one OCR worker needs, from what was measured: plain arithmetic on records of peaks.

Belongs here: the record of one measurement, and the way from records to the need of a worker and
to the batch that a slot carries. Does not belong here: measuring, keeping the records
(`memory_records.py`), the plan of slots (`vram.py`), and anything of Dagster or torch.

All memory is in MiB (2**20 bytes). The size of a batch is `input_px`: height x width x frames of
what the network is fed, after resizing and padding; a megapixel is 10**6 of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from resources.vram import DEFAULT_NEED_MIB

MARGIN = 1.2
"""What a worker is given over what was measured: how far the allocator fragments, and which
workspaces cuDNN or oneDNN choose, varies from run to run."""

DEFAULT_BASE_MIB = 512
"""What a worker takes before its first batch, until that was measured. CRAFT in float32 on a CPU
took 456 to 466 MiB with the model loaded (measured, see ADR 0009)."""

DEFAULT_MIB_PER_MEGAPIXEL = 650
"""What each megapixel of a batch adds, until that was measured. CRAFT in float32 on a CPU took
about 160 MiB per frame of 640x384 px (measured, see ADR 0009)."""

_MAX_EXTRAPOLATION = 2
"""A measurement speaks for batches of up to so many times its size."""

_MAX_BATCH_PX = 10**9
"""No batch is larger, whatever the slot."""


@dataclass(frozen=True)
class MemoryRecord:
    """The memory that one process was seen to take.

    Attributes:
        detector: The detector's name, e.g. `craft`.
        weights_sha256: SHA-256 of its weights, 64 lower-case hex digits.
        dtype: Type of the network's arithmetic, e.g. `float32`.
        device_name: What the driver calls the device, or `cpu`.
        host: Name of the machine.
        height_px: Height of the network's input, padding included; 0 where nothing went through.
        width_px: Width of the network's input, padding included; 0 where nothing went through.
        frame_count: Frames in the batch; 0: the model was loaded, nothing went through it.
        peak_mib: Highest memory of the process on its device, in MiB, at least 0.
        is_out_of_memory: Whether the batch did not fit, though the process had so much memory.
        measured_at: When, with a time zone.

    Raises:
        ValueError: If a figure is out of its range, or `measured_at` has no time zone.
    """

    detector: str
    weights_sha256: str
    dtype: str
    device_name: str
    host: str
    height_px: int
    width_px: int
    frame_count: int
    peak_mib: int
    is_out_of_memory: bool
    measured_at: datetime

    def __post_init__(self) -> None:
        least_px = 1 if self.frame_count else 0
        if min(self.height_px, self.width_px) < least_px or self.frame_count < 0:
            raise ValueError(
                "a batch has at least 0 frames, and a frame at least 1 pixel on each side, got "
                f"{self.height_px = }, {self.width_px = }, {self.frame_count = }"
            )
        if self.peak_mib < 0:
            raise ValueError(f"a peak is at least 0 MiB, got {self.peak_mib = }")
        if self.measured_at.tzinfo is None:
            raise ValueError(f"a time needs a time zone, got {self.measured_at = }")

    @property
    def input_px(self) -> int:
        """Pixels of the batch as the network is fed it, all frames together."""
        return self.height_px * self.width_px * self.frame_count


@dataclass(frozen=True)
class WorkerMemory:
    """What is known of one detector on a set of devices.

    Who builds it picks the records: of one detector, its weights and type, on devices that compare.

    Attributes:
        records: The measurements, in any order; none is fine.
    """

    records: tuple[MemoryRecord, ...]

    @classmethod
    def from_records(cls, records: Iterable[MemoryRecord]) -> "WorkerMemory":
        """What these records tell."""
        return cls(tuple(records))

    def need_mib(self, input_px: int) -> int:
        """What a worker needs whose largest batch is of that size.

        Where a batch as large or larger was measured, the smallest such counts. Else the largest
        counts that is at least half as large, carried on in a line from the loaded model. A batch
        never counts for less than a smaller one took, so a larger batch never needs less. All that
        times `MARGIN`. Where nothing suitable was measured, a default. And always more than any
        memory that a single frame of up to that size did not fit in, since no batch is smaller.

        Args:
            input_px: Pixels of the batch as the network is fed it, at least 1.

        Returns:
            MiB, at least 1.

        Raises:
            ValueError: If `input_px` is below 1.
        """
        if input_px < 1:
            raise ValueError(f"a batch has at least 1 pixel, got {input_px = }")
        return max(self._known_need_mib(input_px), self._unfit_need_mib(input_px))

    def _known_need_mib(self, input_px: int) -> int:
        size_px = self._measured_px(input_px)
        if size_px is None:
            return _default_need_mib(input_px)
        measured_mib = max(1, math.ceil(MARGIN * self._peak_mib(size_px, input_px)))
        if input_px <= _MAX_EXTRAPOLATION * size_px:
            return measured_mib
        # Beyond the measurement's reach the default counts, but never so that a larger batch would
        # need less than one that still lies within it.
        return max(_default_need_mib(input_px), measured_mib)

    def _unfit_need_mib(self, input_px: int) -> int:
        """More than single frames up to that size had when they did not fit; 0 where all did."""
        fitted_px = max(
            (record.input_px for record in self.records if not record.is_out_of_memory), default=0
        )
        return max(
            (
                math.ceil(MARGIN * record.peak_mib)
                for record in self.records
                if record.is_out_of_memory
                and record.frame_count == 1
                and fitted_px < record.input_px <= input_px
            ),
            default=0,
        )

    def batch_px(self, slot_mib: int) -> int:
        """The largest batch that a slot carries.

        At most half of any batch that did not fit in a slot at least as large. One that did not
        fit in less says nothing about this slot: somebody else held the memory.

        Args:
            slot_mib: Memory of the slot, in MiB.

        Returns:
            Pixels of the batch as the network is fed it, in [1, 10**9]; 1 also where nothing
            fits, for a batch has at least one frame.
        """
        fits_px, too_large_px = 1, _MAX_BATCH_PX + 1
        while too_large_px - fits_px > 1:
            middle_px = (fits_px + too_large_px) // 2
            if self.need_mib(middle_px) <= slot_mib:
                fits_px = middle_px
            else:
                too_large_px = middle_px
        failed_px = [
            record.input_px
            for record in self.records
            if record.is_out_of_memory and record.peak_mib >= slot_mib
        ]
        return max(1, min([fits_px, *(px // 2 for px in failed_px)]))

    def explain(self, input_px: int) -> str:
        """How `need_mib` came about, in words.

        Args:
            input_px: Pixels of the batch as the network is fed it, at least 1.

        Raises:
            ValueError: If `input_px` is below 1.
        """
        need = f"{self.need_mib(input_px)} MiB for batches of {input_px / 1e6:.2f} megapixels: "
        if self._unfit_need_mib(input_px) > self._known_need_mib(input_px):
            return need + "more than a single frame had that did not fit"
        size_px = self._measured_px(input_px)
        if size_px is None:
            return need + "the default, since nothing was measured yet"
        if input_px > _MAX_EXTRAPOLATION * size_px:
            return need + (
                "the default, or the measured need carried on if that is larger, since the "
                f"largest batch measured has {size_px / 1e6:.2f} megapixels"
            )
        record = self._heaviest(size_px)
        batch = (
            f"{record.frame_count} x {record.width_px}x{record.height_px} px"
            if record.frame_count
            else "the model loaded and no batch"
        )
        carried = "" if input_px <= size_px else f", carried on from {size_px / 1e6:.2f} megapixels"
        return need + (
            f"{record.peak_mib} MiB measured on {record.measured_at:%Y-%m-%d} on "
            f"{record.device_name} of {record.host} with {batch}{carried}, "
            f"plus {MARGIN - 1:.0%} margin"
        )

    def _measured_px(self, input_px: int) -> int | None:
        """The measured size that speaks for `input_px`: the next larger, or else the largest."""
        sizes_px = {
            record.input_px
            for record in self.records
            if record.frame_count and not record.is_out_of_memory
        }
        if not sizes_px:
            return None
        return min((px for px in sizes_px if px >= input_px), default=max(sizes_px))

    def _peak_mib(self, size_px: int, input_px: int) -> float:
        """The peak of the measured size, carried on to `input_px` where that is larger."""
        peak_mib = self._heaviest(size_px).peak_mib
        if input_px <= size_px:
            return peak_mib
        base_mib = max(
            (
                record.peak_mib
                for record in self.records
                if not record.frame_count and not record.is_out_of_memory
            ),
            default=0,
        )
        return base_mib + (peak_mib - base_mib) * input_px / size_px

    def _heaviest(self, size_px: int) -> MemoryRecord:
        """The highest peak among all batches of up to that size, the loaded model included."""
        return max(
            (
                record
                for record in self.records
                if record.input_px <= size_px and not record.is_out_of_memory
            ),
            key=lambda record: (record.peak_mib, record.measured_at),
        )


def _default_need_mib(input_px: int) -> int:
    grown_mib = DEFAULT_BASE_MIB + DEFAULT_MIB_PER_MEGAPIXEL * input_px / 1e6
    return max(DEFAULT_NEED_MIB, math.ceil(MARGIN * grown_mib))
