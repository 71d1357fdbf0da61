"""The sizes that are said, against the sizes that the detectors' own preprocessing makes."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from resources.detectors import DETECTOR_NAMES, network_input_size, require_weights
from resources.detectors.craft import CraftParameters, _network_input, craft_input_size
from resources.detectors.ppocr import PpOcrDetector, PpOcrParameters, ppocr_input_size
from resources.detectors.torchvision_ops import ensure_torchvision_imports

_RANDOM = random.Random(20261122)
VIDEO_SIZES = [(384, 640), (1080, 1920), (1920, 1080), (240, 426), (2160, 3840), (2161, 3839)]
# Both small and large frames are resized, by rules of their own.
RANDOM_SIZES = [
    (_RANDOM.randint(1, longest), _RANDOM.randint(1, longest))
    for longest in (40, 200, 800, 1500, 3200)
    for _ in range(8)
]
THIN_SIZES = [(1, 1), (1, 16), (16, 1), (30, 480), (31, 496), (29, 300), (250, 4000), (4000, 250)]
SIZES = VIDEO_SIZES + RANDOM_SIZES + THIN_SIZES
THINNER_SIZES = [(1, 2560), (2560, 1), (2, 5000), (17, 1)]


class Fed(Exception):  # noqa: N818 - no error, but the way out of a detector.
    pass


class Mouth:
    """Takes the network's place and tells what it was fed."""

    def run(self, _outputs: object, inputs: dict[str, np.ndarray]) -> None:
        raise Fed(*inputs.values())


def black(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((1, *size, 3), np.uint8)


def fed_to_craft(size: tuple[int, int], parameters: CraftParameters) -> tuple[int, ...]:
    ensure_torchvision_imports()
    return _network_input(black(size), parameters)[0].shape[2:]


@pytest.fixture(scope="module")
def ppocr_weights():
    return require_weights("ppocr")


def fed_to_ppocr(detector: PpOcrDetector, size: tuple[int, int]) -> tuple[int, ...]:
    with pytest.raises(Fed) as fed:
        detector.detect(black(size))
    return fed.value.args[0].shape[2:]


def with_mouth(weights: Any, parameters: PpOcrParameters) -> PpOcrDetector:
    detector = PpOcrDetector(weights, parameters=parameters)
    detector._session = Mouth()  # pyright: ignore[reportAttributeAccessIssue]
    return detector


@pytest.mark.parametrize("size", SIZES + THINNER_SIZES)
def test_craft_is_fed_the_size_that_is_said(size: tuple[int, int]):
    assert network_input_size("craft", *size) == fed_to_craft(size, CraftParameters())


@pytest.mark.parametrize(
    "parameters",
    [CraftParameters(canvas_size=1000), CraftParameters(mag_ratio=1.5), CraftParameters(2, 2, 2)],
)
def test_craft_with_other_parameters_is_fed_the_size_that_is_said(parameters: CraftParameters):
    for size in [*VIDEO_SIZES[:4], *RANDOM_SIZES[:24]]:
        assert craft_input_size(*size, parameters) == fed_to_craft(size, parameters)


def is_scorable(size: tuple[int, int]) -> bool:
    return max(size) <= 16 * min(size)


def test_ppocr_is_fed_the_size_that_is_said(ppocr_weights):
    detector = with_mouth(ppocr_weights, PpOcrParameters())
    sizes = [size for size in SIZES if is_scorable(size)]
    assert len(sizes) > 40
    for size in sizes:
        assert network_input_size("ppocr", *size) == fed_to_ppocr(detector, size), size


@pytest.mark.parametrize(
    "parameters",
    [
        PpOcrParameters(limit_type="max", limit_side_len=960),
        PpOcrParameters(max_side_len=700, min_side_len=64),
        PpOcrParameters(width_height_ratio=-1, min_height=50),
        PpOcrParameters(width_height_ratio=2.0, limit_side_len=320),
    ],
)
def test_ppocr_with_other_parameters_is_fed_the_size_that_is_said(
    ppocr_weights, parameters: PpOcrParameters
):
    detector = with_mouth(ppocr_weights, parameters)
    for size in [*VIDEO_SIZES[:4], *RANDOM_SIZES[:24], *THIN_SIZES[:6]]:
        if is_scorable(size):
            assert ppocr_input_size(*size, parameters) == fed_to_ppocr(detector, size), size


@pytest.mark.parametrize("size", [(1, 2561), (2561, 1), (3, 9000)])
def test_rejects_what_vanishes_on_crafts_canvas_as_the_detector_does(size: tuple[int, int]):
    with pytest.raises(ValueError, match="cannot be scored: on a canvas of 2560 px") as refused:
        fed_to_craft(size, CraftParameters())
    with pytest.raises(ValueError, match="cannot be scored") as said:
        network_input_size("craft", *size)
    assert str(said.value) == str(refused.value)


@pytest.mark.parametrize("size", [(10, 161), (161, 10)])
def test_rejects_what_is_too_thin_for_ppocr_as_the_detector_does(
    ppocr_weights, size: tuple[int, int]
):
    detector = with_mouth(ppocr_weights, PpOcrParameters())
    with pytest.raises(ValueError, match="one side is over 16 times the other") as refused:
        detector.detect(black(size))
    with pytest.raises(ValueError, match="cannot be scored") as said:
        network_input_size("ppocr", *size)
    assert str(said.value) == str(refused.value)


def test_rejects_a_side_that_vanishes_on_the_way_to_ppocr(ppocr_weights):
    parameters = PpOcrParameters(limit_type="max", limit_side_len=64)
    with pytest.raises(ValueError, match="is too small for RapidOCR"):
        with_mouth(ppocr_weights, parameters).detect(black((100, 1000)))
    with pytest.raises(ValueError, match="is too small for RapidOCR"):
        ppocr_input_size(100, 1000, parameters)


@pytest.mark.parametrize("name", DETECTOR_NAMES)
@pytest.mark.parametrize("size", [(0, 640), (384, 0), (-1, -1)])
def test_rejects_a_frame_without_pixels(name: str, size: tuple[int, int]):
    with pytest.raises(ValueError, match="at least 1 pixel on each side"):
        network_input_size(name, *size)


def test_rejects_an_unknown_detector():
    with pytest.raises(ValueError, match="unknown detector 'tesseract'; allowed: craft, ppocr"):
        network_input_size("tesseract", 384, 640)


def test_sizes_need_neither_a_model_nor_its_libraries():
    code = (
        "import sys; from resources.detectors import DETECTOR_NAMES, network_input_size;"
        "[network_input_size(name, 384, 640) for name in DETECTOR_NAMES];"
        "heavy = {'torch', 'torchvision', 'easyocr', 'onnxruntime', 'rapidocr'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
