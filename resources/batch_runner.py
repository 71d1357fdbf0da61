"""Batches that fit: split to what memory carries, halved when it does not, measured as they go.

Belongs here: what happens between a batch of frames and the detector. Does not belong here: which
frames make a batch (`ocr_assets/curation/batching.py`), and what the scores are.
"""

import gc
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from resources.detectors import network_input_size
from resources.detectors.base import TextBoxes, TextDetector
from resources.memory_meter import MemoryMeter
from resources.out_of_memory import is_out_of_memory

GROW_AFTER = 32
"""Batches that must fit at a lowered limit before a larger one is tried: whoever took the memory
may have gone. Doubled each time that fails."""

# What a detector raises over one frame: torch raises RuntimeError, OpenCV its own, a frame of
# impossible shape ValueError. Beside these only onnxruntime's errors, which are RuntimeErrors by
# name alone, and want of memory are told apart. Anything else is a defect of ours.
_FRAME_ERRORS = (RuntimeError, ValueError, cv2.error)


class DeviceFailedError(Exception):
    """The device gave up, and with it this process: no frame's fault. The message says how."""


@dataclass(frozen=True)
class FrameFailure:
    """Why one frame has no boxes.

    Attributes:
        detail: What the detector said of it alone.
        is_out_of_memory: Whether it did not fit; with more memory it may yet be scored.
    """

    detail: str
    is_out_of_memory: bool


@dataclass(frozen=True)
class Peak:
    """What one size of batch took.

    Attributes:
        height_px: Of the network's input.
        width_px: Of the network's input.
        frame_count: Frames in the batch; 0: the model was loaded, nothing had gone through it.
        peak_mib: The most that the process had used by then, in MiB; where the batch did not fit,
            what the process could have had.
        is_out_of_memory: Whether the batch did not fit.
    """

    height_px: int
    width_px: int
    frame_count: int
    peak_mib: int
    is_out_of_memory: bool = False


@dataclass
class BatchStatistics:
    """What went through the detector.

    Attributes:
        batch_sizes: How often each number of frames went through together.
        out_of_memory_count: How often a batch did not fit.
        detect_seconds: Time in the detector.
    """

    batch_sizes: Counter[int] = field(default_factory=Counter)
    out_of_memory_count: int = 0
    detect_seconds: float = 0.0


class BatchRunner:
    """Runs one process's detector over batches of any size, and learns what fits.

    Args:
        detector: Loaded.
        meter: Of the memory that the detector uses.
        batch_px: The most pixels of network input per forward pass; one frame always goes.
        has_kernels_per_shape: Whether the first batch of a shape is slow, as on a GPU.
    """

    def __init__(
        self,
        detector: TextDetector,
        meter: MemoryMeter,
        *,
        batch_px: int,
        has_kernels_per_shape: bool = False,
    ) -> None:
        self.detector = detector
        self.batch_px = batch_px
        self._meter = meter
        self._has_kernels_per_shape = has_kernels_per_shape
        self._warm_sizes: set[tuple[int, int]] = set()
        self._limit_px = batch_px
        self._fitted_count = 0
        self._grow_after = GROW_AFTER
        self._has_grown = False
        self._statistics = BatchStatistics()
        self._largest_px = 0
        self._peaks = [Peak(0, 0, 0, meter.peak_mib())]

    def input_px(self, height_px: int, width_px: int) -> int:
        """Pixels of network input that a frame of this size makes."""
        try:
            input_height_px, input_width_px = network_input_size(
                self.detector.spec.name, height_px, width_px
            )
        except ValueError:
            # A shape that cannot be scored: the detector will say so of the frame.
            return height_px * width_px
        return input_height_px * input_width_px

    def warm_up(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Runs each frame size once where that makes the next run of it faster.

        Args:
            sizes: Heights and widths of the frames to come.
        """
        if not self._has_kernels_per_shape:
            return
        for height_px, width_px in set(sizes) - self._warm_sizes:
            self._warm_sizes.add((height_px, width_px))
            self.detect(np.zeros((1, height_px, width_px, 3), np.uint8))
        self._statistics = BatchStatistics()

    def detect(self, frames: NDArray[np.uint8]) -> list[TextBoxes | FrameFailure]:
        """Finds the text in frames of one size, however many fit at a time.

        A batch that does not fit is run again as two halves, down to single frames, and smaller
        batches are made from then on. A batch that fails otherwise is halved too: a frame that
        cannot be scored must not cost the others theirs.

        Args:
            frames: uint8 (N, H, W, 3) RGB, N >= 1.

        Returns:
            One answer per frame, in order.

        Raises:
            DeviceFailedError: If the device can compute no more in this process.
        """
        frame_px = self.input_px(*frames.shape[1:3])
        waiting = deque([frames])
        found: list[TextBoxes | FrameFailure] = []
        while waiting:
            batch = waiting.popleft()
            fitting_count = max(1, self._limit_px // frame_px)
            if len(batch) > fitting_count:
                waiting.extendleft([batch[fitting_count:], batch[:fitting_count]])
                continue
            answer = self._try(batch, frame_px)
            if isinstance(answer, FrameFailure) and len(batch) > 1:
                middle = len(batch) // 2
                waiting.extendleft([batch[middle:], batch[:middle]])
            elif isinstance(answer, FrameFailure):
                found.append(answer)
            else:
                found.extend(answer)
        return found

    def unload(self) -> None:
        """Gives the detector's memory back; there is no use for this object afterwards."""
        del self.detector
        gc.collect()
        self._meter.release()

    def take_statistics(self) -> BatchStatistics:
        """What went through since this was last asked."""
        taken, self._statistics = self._statistics, BatchStatistics()
        return taken

    def take_peaks(self) -> list[Peak]:
        """What was measured since this was last asked."""
        taken, self._peaks = self._peaks, []
        return taken

    def _try(self, frames: NDArray[np.uint8], frame_px: int) -> Sequence[TextBoxes] | FrameFailure:
        started = time.perf_counter()
        try:
            found = self.detector.detect(frames)
        except Exception as error:
            failure = FrameFailure(f"{type(error).__name__}: {error}", is_out_of_memory(error))
            if not failure.is_out_of_memory and not _is_of_a_frame(error):
                raise
            if not failure.is_out_of_memory and is_devices_fault(error):
                raise DeviceFailedError(failure.detail) from error
        else:
            self._on_fit(frames, frame_px)
            return found
        finally:
            self._statistics.detect_seconds += time.perf_counter() - started
        if failure.is_out_of_memory:
            self._on_out_of_memory(frames, frame_px)
        return failure

    def _on_fit(self, frames: NDArray[np.uint8], frame_px: int) -> None:
        self._statistics.batch_sizes[len(frames)] += 1
        self._measure(frames, frame_px)
        if self._limit_px == self.batch_px:
            return
        self._fitted_count += 1
        if self._fitted_count >= self._grow_after:
            self._fitted_count = 0
            self._limit_px = min(self.batch_px, 2 * self._limit_px)
            self._has_grown = True

    def _on_out_of_memory(self, frames: NDArray[np.uint8], frame_px: int) -> None:
        self._statistics.out_of_memory_count += 1
        self._peaks.append(self._peak(frames, is_out_of_memory=True))
        # What failed half-way through keeps its memory until the allocator is told.
        self._meter.release()
        if self._has_grown:
            self._grow_after *= 2
            self._has_grown = False
        self._fitted_count = 0
        self._limit_px = max(1, len(frames) * frame_px // 2)

    def _measure(self, frames: NDArray[np.uint8], frame_px: int) -> None:
        # A peak is the largest batch's so far: smaller ones after it did not cause it.
        batch_px = len(frames) * frame_px
        if batch_px > self._largest_px:
            self._largest_px = batch_px
            self._peaks.append(self._peak(frames))

    def _peak(self, frames: NDArray[np.uint8], *, is_out_of_memory: bool = False) -> Peak:
        height_px, width_px = network_input_size(self.detector.spec.name, *frames.shape[1:3])
        meter = self._meter
        peak_mib = meter.reachable_mib() if is_out_of_memory else meter.peak_mib()
        return Peak(height_px, width_px, len(frames), peak_mib, is_out_of_memory)


def _is_of_a_frame(error: Exception) -> bool:
    return isinstance(error, _FRAME_ERRORS) or type(error).__module__.startswith("onnxruntime.")


def is_devices_fault(error: BaseException) -> bool:
    """Whether an error leaves the process without its device, whatever was computed."""
    # torch.AcceleratorError: CUDA's own errors, after which every call of the process fails.
    return type(error).__name__ == "AcceleratorError"
