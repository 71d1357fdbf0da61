"""The GPU resource: what Dagster sees of the devices. Plans slots, leases one, loads onto it.

Belongs here: joining the pure plan, NVML's figures, the kernel locks and a detector. The arithmetic
is in `vram.py`, the locks are in `leases.py`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg
import psutil
from pydantic import Field

from resources.detectors import DetectorSpec, TextDetector, detector_spec, load_detector
from resources.leases import Lease, SlotLeases, default_lock_directory
from resources.nvml import NvmlReading, device_memory, read_devices
from resources.vram import (
    CPU_DEVICE,
    DEFAULT_NEED_MIB,
    Reserve,
    VramPlan,
    plan_cpu_slots,
    plan_slots,
)

CPU_THREADS_PER_SLOT = 1
"""Threads of one worker on a CPU: two workers of one thread each score more frames per second than
one of two, as `make bench` shows."""


class NoDeviceError(Exception):
    """No device carries a single worker. The message says what was found and what to do."""


@dataclass(frozen=True)
class OcrWorker:
    """A leased device with a detector on it.

    Attributes:
        lease: The slot that this process holds.
        detector: Loaded on the leased device.
    """

    lease: Lease
    detector: TextDetector


class GpuResource(dg.ConfigurableResource):
    """As many OCR workers as memory carries, never one more."""

    detector: Literal["craft", "ppocr"] = Field(default="craft", description="Text detector.")
    weights: str | None = Field(
        default=None, description="Folder or file of the weights; unset: looked for."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="auto: CUDA where a usable card is, else the CPU."
    )
    max_slots: int | None = Field(
        default=None, ge=1, description="At most so many OCR processes; unset: what memory carries."
    )
    reserve_mib: int = Field(
        default=1024, ge=0, description="Memory per device that is never planned with, in MiB."
    )
    keep_warm: bool = Field(
        default=False,
        description="Keep slot and detector until this process ends, for the shards to come.",
    )

    def spec(self) -> DetectorSpec:
        """What the detector's scores are filed under; loads no model."""
        return detector_spec(self.detector)

    def plan(self) -> VramPlan:
        """Plans the slots of this machine as it is now.

        Raises:
            NoDeviceError: If no worker fits anywhere, or `cuda` was asked for and is not to be had.
        """
        reading = read_devices()
        plan = self._plan_cuda(reading) if self._wants_cuda(reading) else self._plan_cpu()
        if plan.slot_count == 0:
            raise NoDeviceError(
                f"no device carries one OCR worker of {plan.need_mib} MiB; free memory or lower"
                f" reserve_mib (now {self.reserve_mib}):\n{plan.explanation}"
            )
        return plan

    @contextmanager
    def worker(self, report: Callable[[str], None]) -> Iterator[OcrWorker]:
        """Holds a slot with a detector on its device while the body runs.

        With `keep_warm` both stay with this process afterwards, and the kernel frees the slot when
        the process ends.

        Args:
            report: Is told in words what is waited for.

        Raises:
            NoDeviceError: As `plan`.
            WeightsError: If the detector's weights are missing or not the right ones.
        """
        key = (self.detector, self.weights, self.device)
        if key in _warm:
            yield _warm[key]
            return
        with ExitStack() as stack:
            worker = stack.enter_context(self._cold_worker(report))
            if self.keep_warm:
                _warm[key] = worker
                _kept.push(stack.pop_all())
            yield worker

    @contextmanager
    def _cold_worker(self, report: Callable[[str], None]) -> Iterator[OcrWorker]:
        plan = self.plan()
        leases = SlotLeases(default_lock_directory(), plan.slots, need_mib=plan.need_mib)
        with leases.acquire(free_mib=_budgets(plan), report=report) as lease:
            detector = load_detector(
                self.detector,
                device=_torch_device(lease, plan.need_mib),
                thread_count=CPU_THREADS_PER_SLOT,
                weights=Path(self.weights) if self.weights else None,
            )
            yield OcrWorker(lease, detector)

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

    def _plan_cuda(self, reading: NvmlReading) -> VramPlan:
        own_pids = _own_pids()
        return plan_slots(
            [
                device_memory(
                    device, own_pids=own_pids.get(device.uuid, ()), need_mib=DEFAULT_NEED_MIB
                )
                for device in reading.devices
            ],
            need_mib=DEFAULT_NEED_MIB,
            reserve=Reserve(mib=self.reserve_mib),
            max_slots=self.max_slots,
        )

    def _plan_cpu(self) -> VramPlan:
        own_mib = sum(_resident_mib(pid) for pid in _own_pids().get(CPU_DEVICE, ()))
        available_mib = psutil.virtual_memory().available // 2**20
        return plan_cpu_slots(
            core_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            available_mib=available_mib + own_mib - self.reserve_mib,
            need_mib=DEFAULT_NEED_MIB,
            threads_per_slot=CPU_THREADS_PER_SLOT,
            max_slots=self.max_slots,
        )


_warm: dict[tuple[str, str | None, str], OcrWorker] = {}
_kept = ExitStack()


def _budgets(plan: VramPlan) -> Mapping[str, int]:
    return {device.uuid: device.budget_mib for device in plan.devices}


def _own_pids() -> dict[str, list[int]]:
    """Process ids of the workers that hold a slot now, by device."""
    pids: dict[str, list[int]] = {}
    for holder in SlotLeases(default_lock_directory(), {}, need_mib=1).holders():
        if holder.pid is not None:
            pids.setdefault(holder.device_uuid, []).append(holder.pid)
    return pids


def _resident_mib(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss // 2**20
    except psutil.NoSuchProcess:
        return 0


def _torch_device(lease: Lease, need_mib: int) -> str:
    if lease.device_uuid == CPU_DEVICE:
        return "cpu"
    # By UUID, so that CUDA's own order of devices cannot matter; before CUDA starts up here.
    os.environ["CUDA_VISIBLE_DEVICES"] = lease.device_uuid
    import torch

    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, need_mib * 2**20 / total_bytes), 0)
    return "cuda:0"
