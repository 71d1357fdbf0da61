"""An OCR worker: one process's detector on the device that it leased, ready to serve.

Belongs here: what happens between the lease and the first frame. Does not belong here: choosing
the device and waiting for it (`gpu.py`), and the scores.
"""

from dataclasses import dataclass
from pathlib import Path

from resources.batch_runner import BatchRunner
from resources.cuda import CONTEXT_MIB, bind_device, cap_allocator, context_mib
from resources.detectors import load_detector
from resources.leases import Lease
from resources.memory_meter import CudaMeter, HostMeter
from resources.vram import CPU_DEVICE

CPU_THREADS_PER_SLOT = 1
"""Threads of one worker on a CPU: two workers of one thread each score more frames per second than
one of two, as `make bench` shows."""

_WARM_UP_SIDE_PX = 64
"""Small: what a first forward pass sets up once per process does not depend on the frame's size. On
a CPU it took 0.18 s of a first CRAFT pass, and the next, of 640x384, was no slower than those after
it; on a GPU each shape is warmed up besides, by `BatchRunner.warm_up`."""


@dataclass(frozen=True)
class OcrWorker:
    """A leased slot with a detector on its device.

    Attributes:
        lease: The slot that this process holds.
        device_name: What people call the device.
        slot_mib: Memory that the slot stands for, in MiB.
        batches: Runs the detector.
        waited_for: In words what the slot was waited for; empty if it was free.
    """

    lease: Lease
    device_name: str
    slot_mib: int
    batches: BatchRunner
    waited_for: str


def start_worker(
    lease: Lease,
    *,
    detector: str,
    weights: Path | None,
    device_name: str,
    slot_mib: int,
    batch_px: int,
    waited_for: str,
) -> OcrWorker:
    """Loads a detector onto the leased device and warms it up.

    Args:
        lease: Held by this process.
        detector: The detector's name.
        weights: Its file or folder; None: looked for.
        device_name: What people call the device.
        slot_mib: Memory that the slot stands for, in MiB.
        batch_px: The most pixels of network input per forward pass.
        waited_for: As in `OcrWorker`.

    Raises:
        CudaUnusableError: If torch cannot compute on the device.
        WeightsError: If the weights are missing or not the right ones.
    """
    is_on_cpu = lease.device_uuid == CPU_DEVICE
    device = "cpu" if is_on_cpu else bind_device(lease.device_uuid)
    if not is_on_cpu:
        cap_allocator(slot_mib - CONTEXT_MIB)
    loaded = load_detector(
        detector,
        device=device,
        thread_count=CPU_THREADS_PER_SLOT,
        weights=weights,
    )
    loaded.warm_up(_WARM_UP_SIDE_PX, _WARM_UP_SIDE_PX)
    if is_on_cpu:
        meter = HostMeter()
    else:
        # Only now is CUDA's own share known: kernels are loaded when they are first run.
        cuda_mib = context_mib()
        cap_allocator(slot_mib - cuda_mib)
        meter = CudaMeter(slot_mib, cuda_mib)
    batches = BatchRunner(loaded, meter, batch_px=batch_px, has_kernels_per_shape=not is_on_cpu)
    return OcrWorker(lease, device_name, slot_mib, batches, waited_for)
