"""How many OCR workers this machine carries now: the driver's figures, the needs, the plan.

Belongs here: reading the machine and what was measured on it, and giving both to the arithmetic of
`vram.py` and `worker_memory.py`. Does not belong here: holding a slot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from resources.data_directory import DataDirectory
from resources.detectors import DetectorSpec, detector_spec, network_input_size
from resources.host import available_memory_mib, usable_core_count
from resources.leases import SlotHolder, SlotLeases, default_lock_directory
from resources.nvml import GpuDevice, NvmlReading, device_memory, read_devices
from resources.ocr_worker import CPU_THREADS_PER_SLOT
from resources.vram import (
    CPU_DEVICE,
    Reserve,
    VramPlan,
    plan_cpu_slots,
    plan_slots,
)
from resources.worker_memory import WorkerMemory


class NoDeviceError(Exception):
    """No device carries a single worker. The message says what was found and what to do."""


class DeviceBusyError(NoDeviceError):
    """A device would carry a worker, were its memory not in use by others just now."""


@dataclass(frozen=True)
class OcrPlanner:
    """Plans the slots of this machine for one detector and one corpus.

    Attributes:
        detector: The detector's name.
        device: `auto`, `cuda` or `cpu`.
        reserve: Memory that is never planned with, on each device.
        batch_px: Pixels of network input per forward pass that a slot is to carry.
        max_slots: Cap on the workers of all devices together; None for no cap.
        data_dir: Whose corpus and measurements count; None: neither is known.
    """

    detector: str
    device: Literal["auto", "cuda", "cpu"]
    reserve: Reserve
    batch_px: int
    max_slots: int | None = None
    data_dir: Path | None = None

    def plan(self) -> VramPlan:
        """Plans the slots of this machine as it is now; there may be none.

        Raises:
            NoDeviceError: If `cuda` was asked for and is not to be had.
        """
        reading = read_devices()
        if self._wants_cuda(reading):
            return self._plan_cuda(reading.devices)
        return self._plan_cpu()

    def batch_px_on(self, device_name: str, slot_mib: int) -> int:
        """Pixels of network input per forward pass that fit a slot, as far as is known."""
        return min(self.batch_px, self._memory(device_name).batch_px(slot_mib))

    def require_slots(self, plan: VramPlan) -> None:
        """Makes sure that a plan has a slot.

        Raises:
            NoDeviceError: If it has none; `DeviceBusyError` if others hold what it would take.
        """
        if plan.slot_count:
            return
        if self.max_slots == 0:
            raise NoDeviceError(
                "no OCR process may run: the limit is 0; raise max_slots, or the limit of pool"
                f" ocr_gpu where a person set it (Dagster's UI, Deployment, Concurrency):"
                f"\n{plan.explanation}"
            )
        if any(
            device.strangers_mib and device.budget_mib + device.strangers_mib >= plan.need_mib
            for device in plan.devices
        ):
            raise DeviceBusyError(
                f"others use the memory that an OCR worker of {plan.need_mib} MiB needs; wait for"
                f" them, or free memory:\n{plan.explanation}"
            )
        raise NoDeviceError(
            f"no device carries one OCR worker of {plan.need_mib} MiB; free memory or lower the"
            f" reserve (now {self.reserve.mib} MiB, share {self.reserve.share:g}):"
            f"\n{plan.explanation}"
        )

    def _wants_cuda(self, reading: NvmlReading) -> bool:
        if self.detector == "ppocr" and self.device == "cuda":
            raise NoDeviceError(
                "detector ppocr runs on the CPU only, but device is cuda; set device to auto or"
                " cpu, or detector to craft"
            )
        if self.device == "cpu" or self.detector == "ppocr":
            return False
        if reading.devices:
            return True
        if self.device == "cuda":
            raise NoDeviceError(
                f"device is cuda, but there is no usable card ({reading.state}:"
                f" {reading.detail}); set device to auto or cpu, or mend the driver"
            )
        return False

    def _plan_cuda(self, devices: Sequence[GpuDevice]) -> VramPlan:
        own_pids = holder_pids()

        def plan(need_mib: int) -> VramPlan:
            memory = [
                device_memory(device, own_pids=own_pids.get(device.uuid, ()), need_mib=need_mib)
                for device in devices
            ]
            return plan_slots(
                memory, need_mib=need_mib, reserve=self.reserve, max_slots=self.max_slots
            )

        return self._plan_for_largest(plan, sorted({device.name for device in devices}))

    def _plan_cpu(self) -> VramPlan:
        own_mib = sum(_resident_mib(pid) for pid in holder_pids().get(CPU_DEVICE, ()))
        usable_mib = available_memory_mib() + own_mib
        total_mib = psutil.virtual_memory().total // 2**20

        def plan(need_mib: int) -> VramPlan:
            return plan_cpu_slots(
                core_count=usable_core_count(),
                available_mib=usable_mib - self.reserve.on(usable_mib),
                need_mib=need_mib,
                threads_per_slot=CPU_THREADS_PER_SLOT,
                max_slots=self.max_slots,
                strangers_mib=max(0, total_mib - usable_mib),
            )

        return self._plan_for_largest(plan, [CPU_DEVICE])

    def _plan_for_largest(
        self, plan: Callable[[int], VramPlan], device_names: Iterable[str]
    ) -> VramPlan:
        """Plans slots that carry the corpus' largest frame, or where none does, a usual batch."""
        memories = {name: self._memory(name) for name in device_names}
        largest_px = max(self.batch_px, self._largest_input_px())
        planned = _plan_for(largest_px, plan, memories)
        if planned.slot_count or largest_px == self.batch_px:
            return planned
        return _plan_for(self.batch_px, plan, memories)

    def _memory(self, device_name: str) -> WorkerMemory:
        if self.data_dir is None:
            return WorkerMemory.from_records([])
        spec = detector_spec(self.detector)
        return WorkerMemory.from_records(
            record
            for record in DataDirectory(self.data_dir).memory_records.rows()
            if record.device_name == device_name
            and (record.detector, record.weights_sha256) == (spec.name, spec.weights_sha256)
            and record.dtype == dtype_of(spec)
        )

    def _largest_input_px(self) -> int:
        if self.data_dir is None:
            return 0
        sizes = DataDirectory(self.data_dir).catalog.frame_sizes()
        return max((_input_px(self.detector, *size) for size in sizes), default=0)


def _plan_for(
    input_px: int, plan: Callable[[int], VramPlan], memories: Mapping[str, WorkerMemory]
) -> VramPlan:
    needs_mib = {name: memory.need_mib(input_px) for name, memory in memories.items()}
    name = max(needs_mib, key=lambda name: needs_mib[name])
    planned = plan(needs_mib[name])
    why = f"On {name}: {memories[name].explain(input_px)}"
    return replace(planned, explanation=f"{planned.explanation}\n{why}")


def dtype_of(spec: DetectorSpec) -> str:
    """The type of the network's arithmetic."""
    return str(spec.parameters.get("dtype", "float32"))


def holder_pids() -> Mapping[str, Sequence[int]]:
    """Process ids of the workers that hold a slot now, by device."""
    pids: dict[str, list[int]] = {}
    for holder in slot_holders():
        if holder.pid is not None:
            pids.setdefault(holder.device_uuid, []).append(holder.pid)
    return pids


def slot_holders() -> Sequence[SlotHolder]:
    """Who holds a slot of this machine now."""
    return SlotLeases(default_lock_directory(), {}, need_mib=1).holders()


def _input_px(detector: str, height_px: int, width_px: int) -> int:
    try:
        input_height_px, input_width_px = network_input_size(detector, height_px, width_px)
    except ValueError:
        return 0
    return input_height_px * input_width_px


def _resident_mib(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss // 2**20
    except psutil.NoSuchProcess:
        return 0
