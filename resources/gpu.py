"""The GPU resource: what Dagster sees of the devices. Plans slots, leases one, serves on it.

Belongs here: the configuration, and the way from a plan over a lease to a worker. The plan itself
is made in `planner.py`, the locks are in `leases.py`, and what happens on the device is in
`ocr_worker.py`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Literal

import dagster as dg
from pydantic import Field

from resources.batch_runner import DeviceFailedError, Peak, is_devices_fault
from resources.data_directory import DataDirectory
from resources.detectors import DetectorSpec, detector_spec
from resources.leases import Lease, LeaseTimeoutError, SlotLeases, default_lock_directory
from resources.nvml import read_devices
from resources.ocr_worker import OcrWorker, start_worker
from resources.out_of_memory import is_out_of_memory
from resources.planner import DeviceBusyError, NoDeviceError, OcrPlanner, dtype_of
from resources.vram import CPU_DEVICE, Reserve, VramPlan
from resources.worker_memory import MemoryRecord

__all__ = ["DeviceBusyError", "GpuResource", "NoDeviceError", "OcrWorker"]

REPLAN_SECONDS = 10.0
"""How long a waiting worker trusts a plan: cards, strangers and measurements come and go."""

MEMORY_WAIT_SECONDS = 15.0
"""How long a worker waits on its slot for memory that the plan says is free: the kernel frees a
killed worker's lock at once, the driver its memory a little later."""

_MEMORY_POLL_SECONDS = 0.5


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
    reserve_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="The same as a share of the device's memory; the larger of the two counts.",
    )
    batch_megapixels: float = Field(
        default=1.0,
        gt=0.0,
        description="Pixels of network input that a slot carries per forward pass, in 10^6.",
    )
    data_dir: str | None = Field(
        default=None,
        description="Whose frame sizes and measured peaks the plan goes by; unset: defaults.",
    )
    keep_warm: bool = Field(
        default=False,
        description="Keep slot and detector until this process ends, for the shards to come.",
    )

    def spec(self) -> DetectorSpec:
        """What the detector's scores are filed under; loads no model."""
        return detector_spec(self.detector)

    def plan(self) -> VramPlan:
        """Plans the slots of this machine as it is now; there may be none.

        Raises:
            NoDeviceError: If `cuda` was asked for and is not to be had.
        """
        return self._planner().plan()

    def require_plan(self) -> VramPlan:
        """As `plan`, with at least one slot.

        Raises:
            NoDeviceError: If no worker fits anywhere; `DeviceBusyError` if one would, were the
                memory not in use by others.
        """
        planner = self._planner()
        plan = planner.plan()
        planner.require_slots(plan)
        return plan

    @contextmanager
    def worker(
        self, report: Callable[[str], None], *, max_slots: int | None = None
    ) -> Iterator[OcrWorker]:
        """Holds a slot with a detector on its device while the body runs.

        With `keep_warm` both stay with this process afterwards, and the kernel frees the slot when
        the process ends; but they go at once when the body fails.

        Args:
            report: Is told in words what is waited for.
            max_slots: A cap beside the configured one, such as a limit that a person set.

        Raises:
            NoDeviceError: As `require_plan`.
            CudaUnusableError: If torch cannot compute on the leased device.
            DeviceFailedError: If the device gave up while the detector was loaded.
            WeightsError: If the detector's weights are missing or not the right ones.
        """
        key = self.model_dump_json(exclude={"keep_warm"})
        if key not in _warm:
            with ExitStack() as stack:
                _warm[key] = (self._start(stack, report, max_slots), stack.pop_all())
        worker, stack = _warm[key]
        is_kept = False
        try:
            yield worker
            is_kept = self.keep_warm
        finally:
            if not is_kept:
                del _warm[key]
                # First the memory, then the right to it.
                worker.batches.unload()
                stack.close()

    def remember(self, worker: OcrWorker) -> None:
        """Keeps what the worker's batches took, for the plans to come."""
        peaks = worker.batches.take_peaks()
        if self.data_dir is not None and peaks:
            records = [self._record(worker, peak) for peak in peaks]
            DataDirectory(Path(self.data_dir)).memory_records.add(records)

    def _planner(self, max_slots: int | None = None) -> OcrPlanner:
        caps = [cap for cap in (self.max_slots, max_slots) if cap is not None]
        return OcrPlanner(
            detector=self.detector,
            device=self.device,
            reserve=Reserve(mib=self.reserve_mib, share=self.reserve_share),
            batch_px=int(self.batch_megapixels * 1e6),
            max_slots=min(caps, default=None),
            data_dir=Path(self.data_dir) if self.data_dir else None,
        )

    def _start(
        self, stack: ExitStack, report: Callable[[str], None], max_slots: int | None
    ) -> OcrWorker:
        planner = self._planner(max_slots)
        lease, plan, waited_for = _lease(stack, planner, report)
        [name] = [device.name for device in plan.devices if device.uuid == lease.device_uuid]
        try:
            return start_worker(
                lease,
                detector=self.detector,
                weights=Path(self.weights) if self.weights else None,
                device_name=name,
                slot_mib=plan.need_mib,
                batch_px=planner.batch_px_on(name, plan.need_mib),
                waited_for=waited_for,
            )
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DeviceBusyError(
                    f"the model of {self.detector} did not fit {lease.device_uuid} ({name}), where"
                    f" {plan.need_mib} MiB were planned; others took them: {error}"
                ) from error
            if is_devices_fault(error):
                raise DeviceFailedError(f"{lease.device_uuid} ({name}): {error}") from error
            raise

    def _record(self, worker: OcrWorker, peak: Peak) -> MemoryRecord:
        spec = self.spec()
        return MemoryRecord(
            detector=spec.name,
            weights_sha256=spec.weights_sha256,
            dtype=dtype_of(spec),
            device_name=worker.device_name,
            host=gethostname(),
            height_px=peak.height_px,
            width_px=peak.width_px,
            frame_count=peak.frame_count,
            peak_mib=peak.peak_mib,
            is_out_of_memory=peak.is_out_of_memory,
            measured_at=datetime.now(UTC),
        )


_warm: dict[str, tuple[OcrWorker, ExitStack]] = {}


def _lease(
    stack: ExitStack, planner: OcrPlanner, report: Callable[[str], None]
) -> tuple[Lease, VramPlan, str]:
    """Waits for a slot, and for its memory, planning anew all the while."""
    started = time.monotonic()
    waited_for = ""

    def tell(message: str) -> None:
        nonlocal waited_for
        waited_for = message
        report(message)

    while True:
        plan = planner.plan()
        planner.require_slots(plan)
        leases = SlotLeases(default_lock_directory(), plan.slots, need_mib=plan.need_mib)
        budgets_mib = {device.uuid: device.budget_mib for device in plan.devices}
        try:
            with ExitStack() as attempt:
                lease = attempt.enter_context(
                    leases.acquire(
                        free_mib=budgets_mib,
                        timeout_seconds=REPLAN_SECONDS,
                        report=tell,
                        waiting_since=started,
                    )
                )
                _await_memory(lease, plan.need_mib, tell)
                stack.push(attempt.pop_all())
        except LeaseTimeoutError:
            continue
        return replace(lease, waited_seconds=time.monotonic() - started), plan, waited_for


def _await_memory(lease: Lease, need_mib: int, report: Callable[[str], None]) -> None:
    """Waits on the slot until its memory can be had.

    Raises:
        DeviceBusyError: If it cannot within `MEMORY_WAIT_SECONDS`.
    """
    if lease.device_uuid == CPU_DEVICE:
        return
    deadline = time.monotonic() + MEMORY_WAIT_SECONDS
    while (free_mib := _free_mib(lease.device_uuid)) < need_mib:
        told = f"{lease.device_uuid} has {free_mib} MiB free, a worker needs {need_mib} MiB"
        if time.monotonic() > deadline:
            raise DeviceBusyError(f"{told}; others took it since the slots were planned")
        report(f"waiting for memory: {told}")
        time.sleep(_MEMORY_POLL_SECONDS)


def _free_mib(device_uuid: str) -> int:
    free_mib = [device.free_mib for device in read_devices().devices if device.uuid == device_uuid]
    return max(free_mib, default=0)
