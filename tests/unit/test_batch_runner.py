"""Batches: split to what fits, halved when they do not, measured, and learnt from."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resources.batch_runner import GROW_AFTER, BatchRunner, DeviceFailedError, FrameFailure, Peak
from resources.detectors.base import DetectorSpec, TextBoxes
from resources.detectors.craft import craft_spec

SIDE_PX = 64
FRAME_PX = SIDE_PX * SIDE_PX
SLOT_MIB = 2048


class Memory:
    """A meter whose peak follows the largest batch: 100 MiB, and 1 MiB per frame."""

    def __init__(self) -> None:
        self.peak = 100
        self.released_count = 0

    def peak_mib(self) -> int:
        return self.peak

    def reachable_mib(self) -> int:
        return SLOT_MIB

    def release(self) -> None:
        self.released_count += 1


class Detector:
    """Answers each frame with one box as wide as its first pixel says; takes so many at a time."""

    def __init__(self, memory: Memory, most_frames: int = 1000) -> None:
        self.memory = memory
        self.most_frames = most_frames
        self.batch_sizes: list[int] = []
        self.error: Exception | None = None
        self.bad_value: int | None = None

    @property
    def spec(self) -> DetectorSpec:
        return craft_spec()

    def warm_up(self, height_px: int, width_px: int) -> None:
        raise NotImplementedError

    def detect(self, frames: NDArray[np.uint8]) -> Sequence[TextBoxes]:
        self.batch_sizes.append(len(frames))
        if self.error is not None:
            raise self.error
        if len(frames) > self.most_frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        values = frames[:, 0, 0, 0].tolist()
        if self.bad_value in values:
            raise ValueError("a frame that nobody can score")
        self.memory.peak = max(self.memory.peak, 100 + len(frames))
        return [
            TextBoxes(np.full((1, 4, 2), value, np.float32), np.ones(1, np.float32))
            for value in values
        ]


def runner(
    most_frames: int = 1000, *, batch_frames: int = 16
) -> tuple[BatchRunner, Detector, Memory]:
    memory = Memory()
    detector = Detector(memory, most_frames)
    return BatchRunner(detector, memory, batch_px=batch_frames * FRAME_PX), detector, memory


def frames(count: int, side_px: int = SIDE_PX) -> NDArray[np.uint8]:
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (count, side_px, side_px, 3)).copy()


def values(found: list[TextBoxes | FrameFailure]) -> list[int | None]:
    return [None if isinstance(f, FrameFailure) else int(f.points[0, 0, 0]) for f in found]


def test_a_batch_that_fits_goes_through_whole():
    batches, detector, _ = runner()
    assert values(batches.detect(frames(16))) == list(range(16))
    assert detector.batch_sizes == [16]


def test_a_batch_above_the_limit_is_split_to_it():
    batches, detector, _ = runner(batch_frames=6)
    assert values(batches.detect(frames(16))) == list(range(16))
    assert detector.batch_sizes == [6, 6, 4]


def test_one_frame_goes_however_large_it_is():
    batches, detector, _ = runner(batch_frames=1)
    batches.detect(frames(2, side_px=4 * SIDE_PX))
    assert detector.batch_sizes == [1, 1]


def test_a_batch_that_does_not_fit_is_halved_and_every_frame_keeps_its_place():
    batches, detector, memory = runner(most_frames=3)
    assert values(batches.detect(frames(16))) == list(range(16))
    assert detector.batch_sizes == [16, 8, 4, *[2] * 8]
    assert memory.released_count == 3
    assert batches.take_statistics().out_of_memory_count == 3


def test_what_did_not_fit_is_not_tried_again_at_once():
    batches, detector, _ = runner(most_frames=3)
    batches.detect(frames(16))
    detector.batch_sizes.clear()
    batches.detect(frames(16))
    assert detector.batch_sizes == [2] * 8


def test_batches_grow_again_once_the_memory_is_back():
    batches, detector, _ = runner(most_frames=3)
    batches.detect(frames(16))
    detector.most_frames = 1000
    for _ in range(GROW_AFTER):
        batches.detect(frames(16))
    assert detector.batch_sizes[-1] == 16


def test_growing_in_vain_is_tried_ever_more_rarely():
    batches, _, _ = runner(most_frames=3)
    for _ in range(16 * GROW_AFTER // 8):
        batches.detect(frames(16))
    # 512 batches of two or so: 3 at the start, then after 32, 64, 128 and 256 that fitted.
    assert batches.take_statistics().out_of_memory_count == 3 + 4


def test_a_frame_that_does_not_fit_alone_says_so_and_costs_nobody_else():
    batches, _, _ = runner(most_frames=0)
    found = batches.detect(frames(3))
    assert [isinstance(f, FrameFailure) and f.is_out_of_memory for f in found] == [True] * 3
    assert "CUDA out of memory" in str(found[0])


def test_a_frame_that_fails_by_itself_costs_nobody_else_and_no_batch_size():
    batches, detector, memory = runner()
    detector.bad_value = 5
    found = batches.detect(frames(16))
    assert values(found) == [*range(5), None, *range(6, 16)]
    assert found[5] == FrameFailure("ValueError: a frame that nobody can score", False)
    assert memory.released_count == 0
    detector.bad_value = None
    detector.batch_sizes.clear()
    batches.detect(frames(16))
    assert detector.batch_sizes == [16]


def test_a_device_that_failed_is_no_frames_fault():
    batches, detector, _ = runner()
    detector.error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceFailedError, match="illegal memory access"):
        batches.detect(frames(4))
    assert detector.batch_sizes == [4]


def test_a_defect_of_our_own_is_not_swallowed():
    batches, detector, _ = runner()
    detector.error = KeyError("a defect")
    with pytest.raises(KeyError):
        batches.detect(frames(4))


def test_only_the_largest_batch_so_far_is_measured():
    batches, _, _ = runner()
    for count in (4, 2, 8, 8):
        batches.detect(frames(count))
    loaded = Peak(0, 0, 0, 100)
    assert batches.take_peaks() == [
        loaded,
        Peak(SIDE_PX, SIDE_PX, 4, 104),
        Peak(SIDE_PX, SIDE_PX, 8, 108),
    ]
    assert batches.take_peaks() == []


def test_what_did_not_fit_is_measured_with_what_could_be_had():
    batches, _, _ = runner(most_frames=8)
    batches.detect(frames(16))
    assert Peak(SIDE_PX, SIDE_PX, 16, SLOT_MIB, is_out_of_memory=True) in batches.take_peaks()


def test_pixels_are_those_of_the_networks_input():
    batches, _, _ = runner()
    assert batches.input_px(360, 640) == 384 * 640
    assert batches.input_px(4320, 7680) == 1440 * 2560
    # No canvas for it; the detector will say so of the frame.
    assert batches.input_px(1, 10_000) == 10_000
