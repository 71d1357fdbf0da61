"""What stands in for CUDA in a process of the product: a detector and a meter that do as scripted.

Belongs here: what `sitecustomize` puts in the place of the names that would reach a device, and
their diary. Imports no torch before memory has to run out, and nothing of the tests.

The script is read again whenever it matters, so a test can change it while a process runs.
"""

import json
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resources.detectors.base import DetectorSpec, TextBoxes
from resources.detectors.craft import craft_spec

SCRIPT_VARIABLE = "SIMULATED_CARD_SCRIPT"
LOG_VARIABLE = "SIMULATED_CARD_LOG"

PEAK_MIB = 1706
"""With the product's margin of 1.2 just under its default of 2048 MiB per worker, so that what
workers measure does not change the plan that a test counts with."""

DEFAULTS: Mapping[str, Any] = {
    "seconds_per_frame": 0.0,  # What a frame takes; read again all the while it takes that.
    "is_loadable": True,  # Whether the model itself fits.
    "limit_px": None,  # More pixels in a batch than this do not fit; None: all do.
    "peak_mib": PEAK_MIB,  # What the meter says was used at most.
    "reachable_mib": 1000,  # What it says could have been had where memory ran out.
    "failing_token": None,  # A file: who removes it finds its device failed.
}

_SLICE_SECONDS = 0.02

_slot: dict[str, int | None] = {"index": None}


def replace_device(module: ModuleType) -> None:
    """Replaces what touches CUDA in `resources.ocr_worker`."""
    start_worker = module.start_worker

    def start_worker_and_note_slot(lease: Any, **arguments: Any) -> Any:
        _slot["index"] = lease.slot_index
        return start_worker(lease, **arguments)

    module.__dict__.update(
        start_worker=start_worker_and_note_slot,
        bind_device=bind_device,
        cap_allocator=lambda _limit_mib: None,
        context_mib=lambda: 300,
        CudaMeter=ScriptedMeter,
        load_detector=lambda *_arguments, **_options: ScriptedDetector(),
    )


def replace_imports(module: ModuleType) -> None:
    """Spares `ocr_assets.worker_process` the import of EasyOCR, which nobody calls here."""
    module.__dict__["import_detector"] = lambda _name: None


def bind_device(uuid: str) -> str:
    """In place of `resources.cuda.bind_device`."""
    log("bound", uuid=uuid, slot=_slot["index"])
    return "cuda:0"


class ScriptedMeter:
    """In place of `resources.memory_meter.CudaMeter`."""

    def __init__(self, _slot_mib: int, _context_mib: int) -> None:
        pass

    def peak_mib(self) -> int:
        return read_script()["peak_mib"]

    def reachable_mib(self) -> int:
        return read_script()["reachable_mib"]

    def release(self) -> None:
        pass


class ScriptedDetector:
    """Finds one box per frame, the wider the brighter the frame is; takes time and memory."""

    def __init__(self) -> None:
        if not read_script()["is_loadable"]:
            import torch

            log("out_of_memory", count=0)
            raise torch.OutOfMemoryError("CUDA out of memory: the model does not fit")
        # Called when the batch runner lets go of the detector, and at the end of the process.
        weakref.finalize(self, log, "unloaded")

    @property
    def spec(self) -> DetectorSpec:
        return craft_spec()

    def warm_up(self, height_px: int, width_px: int) -> None:
        pass

    def detect(self, frames: NDArray[np.uint8]) -> list[TextBoxes]:
        script = read_script()
        seen: dict[str, Any] = {
            "count": len(frames),
            "height_px": frames.shape[1],
            "width_px": frames.shape[2],
            # Warming up sends black frames.
            "is_black": not frames.any(),
        }
        _fail_once(script["failing_token"])
        frames_px = len(frames) * frames.shape[1] * frames.shape[2]
        if script["limit_px"] is not None and frames_px > script["limit_px"]:
            log("out_of_memory", **seen)
            import torch

            raise torch.OutOfMemoryError(
                f"CUDA out of memory: {frames_px} px, and {script['limit_px']} px fit"
            )
        _take_time(len(frames))
        log("detected", **seen)
        return [self.box(frame) for frame in frames]

    @staticmethod
    def box(frame: NDArray[np.uint8]) -> TextBoxes:
        """What there is to find in a frame (H, W, 3)."""
        height_px, width_px = frame.shape[:2]
        right = 1 + (width_px - 1) * float(frame.mean()) / 255
        bottom = height_px / 2
        points = np.array([[[0, 0], [right, 0], [right, bottom], [0, bottom]]], np.float32)
        return TextBoxes(points, np.array([0.9], np.float32))


def read_script() -> dict[str, Any]:
    """What is scripted now."""
    return {**DEFAULTS, **json.loads(Path(os.environ[SCRIPT_VARIABLE]).read_text())}


def log(event: str, **details: Any) -> None:
    """Adds a line to the diary, in one write, so that no other process' line cuts in."""
    # CLOCK_MONOTONIC is the machine's, so the lines of all processes compare.
    line = {"event": event, "pid": os.getpid(), "at": time.monotonic(), **details}
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(os.environ[LOG_VARIABLE], flags, 0o666)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def _take_time(frame_count: int) -> None:
    started = time.monotonic()
    while (
        remaining := started + read_script()["seconds_per_frame"] * frame_count - time.monotonic()
    ) > 0:
        time.sleep(min(remaining, _SLICE_SECONDS))


def _fail_once(token: str | None) -> None:
    if token is None:
        return
    try:
        Path(token).unlink()
    except FileNotFoundError:
        return
    import torch

    log("device_failed")
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
