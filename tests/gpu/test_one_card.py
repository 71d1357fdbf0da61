"""Real EasyOCR on a real card: the planned number of processes, with and without a co-tenant."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resources.batch_runner import FrameFailure
from resources.gpu import GpuResource
from resources.nvml import read_devices

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

MOST_WORKERS = 8
BATCHES = 6
FRAMES_PER_BATCH = 4


@pytest.fixture(autouse=True)
def _needs_a_card() -> None:
    reading = read_devices()
    if reading.devices:
        return
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but there is no usable card: {reading.state} {reading.detail}")
    pytest.skip("no NVIDIA card")


def resource(data_dir: Path, **changes: Any) -> GpuResource:
    return GpuResource(device="cuda", max_slots=MOST_WORKERS, data_dir=str(data_dir), **changes)


def used_mib_by_device() -> dict[str, int]:
    return {device.uuid: device.used_mib for device in read_devices().devices}


def noise() -> NDArray[np.uint8]:
    shape = (FRAMES_PER_BATCH, 384, 640, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def serve(data_dir: str, start: Any, sender: Any) -> None:
    """One worker: leases, loads, waits for the others, scores, tells what it took."""
    gpu = resource(Path(data_dir))
    with gpu.worker(lambda _: None) as worker:
        start.wait(300)
        found = [answer for _ in range(BATCHES) for answer in worker.batches.detect(noise())]
        statistics = worker.batches.take_statistics()
        peaks = worker.batches.take_peaks()
        # Together to the end, so that the card holds all of them at once.
        start.wait(300)
    sender.send(
        {
            "slot_mib": worker.slot_mib,
            "peak_mib": max(peak.peak_mib for peak in peaks if not peak.is_out_of_memory),
            "failed_count": sum(isinstance(answer, FrameFailure) for answer in found),
            "boxes": [
                answer.points.tolist() for answer in found if not isinstance(answer, FrameFailure)
            ],
            "out_of_memory_count": statistics.out_of_memory_count,
            "seconds": statistics.detect_seconds,
        }
    )


class Team:
    """Worker processes that start scoring together."""

    def __init__(self, data_dir: Path, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.start = context.Barrier(count + 1)
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        self.processes = [
            context.Process(target=serve, args=(str(data_dir), self.start, sender), daemon=True)
            for _, sender in pipes
        ]
        for process in self.processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        self.receivers = [receiver for receiver, _ in pipes]

    def answers(self) -> list[dict[str, Any]]:
        return [receiver.recv() for receiver in self.receivers]


def test_the_planned_number_of_workers_stay_within_their_slots(
    tmp_path: Path, record_property: Any
):
    before = used_mib_by_device()
    plan = resource(tmp_path).require_plan()
    team = Team(tmp_path, plan.slot_count)
    team.start.wait(300)
    team.start.wait(300)
    held = {uuid: used - before[uuid] for uuid, used in used_mib_by_device().items()}
    answers = team.answers()
    for device in plan.devices:
        record_property(f"held_mib_{device.uuid}", held[device.uuid])
        assert held[device.uuid] <= device.slot_count * plan.need_mib
    record_property("peaks_mib", [answer["peak_mib"] for answer in answers])
    record_property("slot_mib", plan.need_mib)
    record_property("seconds", [answer["seconds"] for answer in answers])
    assert all(answer["peak_mib"] <= answer["slot_mib"] for answer in answers)
    assert all(answer["failed_count"] == 0 for answer in answers)
    assert all(answer["boxes"] == answers[0]["boxes"] for answer in answers)


def test_a_co_tenant_costs_time_and_no_frame(tmp_path: Path, record_property: Any):
    import torch

    team = Team(tmp_path, 2)
    team.start.wait(300)
    # All but what one frame at a time needs, as somebody else's job would take it.
    free_bytes, _ = torch.cuda.mem_get_info(0)
    held = torch.empty(max(0, free_bytes - (1536 << 20)), dtype=torch.uint8, device="cuda:0")
    try:
        team.start.wait(300)
        answers = team.answers()
    finally:
        del held
        torch.cuda.empty_cache()
    record_property("out_of_memory", [answer["out_of_memory_count"] for answer in answers])
    assert all(answer["failed_count"] == 0 for answer in answers)


def test_torch_cannot_take_more_than_the_slot(tmp_path: Path):
    import torch

    gpu = resource(tmp_path, keep_warm=False)
    with gpu.worker(lambda _: None) as worker, pytest.raises(torch.OutOfMemoryError):
        torch.empty(worker.slot_mib << 20, dtype=torch.uint8, device="cuda:0")


def test_a_killed_workers_memory_is_waited_for(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    _, sender = context.Pipe(duplex=False)
    holder = context.Process(target=serve, args=(str(tmp_path), start, sender), daemon=True)
    holder.start()
    start.wait(300)
    holder.kill()
    started = time.monotonic()
    with GpuResource(device="cuda", max_slots=1).worker(lambda _: None) as worker:
        assert worker.lease.waited_seconds < 30
    assert time.monotonic() - started < 120
