"""PP-OCR finds text and leaves textless frames alone: the real model, small drawn frames."""

import dataclasses
import logging
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry import Polygon
from shapely.ops import unary_union

from resources.detectors import load_detector
from resources.detectors.base import WeightsError
from resources.detectors.ppocr import PpOcrDetector, PpOcrParameters, ppocr_spec
from resources.detectors.weights import PPOCR_WEIGHTS_FILE, find_ppocr_weights


@pytest.fixture(scope="module")
def detector():
    return load_detector("ppocr", device="cpu", thread_count=1)


def draw_text(height, width, lines, *, fill=(240, 230, 210), size=26):
    """A dark frame, uint8 (H, W, 3) RGB, with lines of light text."""
    image = Image.new("RGB", (width, height), (30, 40, 60))
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        place = (width // 8, height // 6 + index * size * 2)
        draw.text(place, line, font=ImageFont.load_default(size=size), fill=fill)
    return np.array(image)


def union(boxes):
    """The area under all boxes, as one shape."""
    return unary_union([Polygon(quad) for quad in boxes.points])


def rapidocr_result(frame, **parameters):
    """Boxes float32 (N, 4, 2) of RapidOCR's public call, with the same confidence floor."""
    from rapidocr import RapidOCR

    logger = logging.getLogger("RapidOCR")
    level = logger.level
    engine = RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.model_root_dir": str(find_ppocr_weights().parent),
            "Det.box_thresh": PpOcrParameters().min_confidence,
            **parameters,
        }
    )
    # Typed as any of four results; with detection alone it is the first or the empty one.
    result: Any = engine(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), use_cls=False, use_rec=False)
    logger.setLevel(level)
    if result.boxes is None:
        return np.zeros((0, 4, 2), np.float32)
    return np.asarray(result.boxes, np.float32)


def in_one_order(points):
    """Quadrilaterals as a sorted list, for comparing sets of them."""
    return sorted(quad.reshape(-1).tolist() for quad in points)


@pytest.mark.parametrize(
    ("height", "width"), [(192, 320), (243, 321), (96, 960)], ids=["even", "odd", "padded"]
)
def test_the_boxes_are_those_of_rapidocrs_public_call(detector, height, width):
    frame = draw_text(height, width, ["Hello world"])
    expected = rapidocr_result(frame)
    assert len(expected) >= 1
    assert in_one_order(detector.detect(frame[None])[0].points) == in_one_order(expected)


def test_every_frame_of_a_batch_gets_its_own_answer(detector):
    frames = np.stack([draw_text(96, 192, []), draw_text(96, 192, ["Second"])])
    assert [len(boxes) > 0 for boxes in detector.detect(frames)] == [False, True]


def test_the_boxes_cover_what_craft_covers(detector):
    frame = draw_text(192, 320, ["Hello world", "second line"])
    craft = load_detector("craft", device="cpu", thread_count=1)
    mine, theirs = union(detector.detect(frame[None])[0]), union(craft.detect(frame[None])[0])
    # The two pad text differently; half in common is far from what unrelated boxes share.
    assert mine.intersection(theirs).area / mine.union(theirs).area > 0.5


def test_each_box_carries_its_own_confidence():
    # A clear line above, one that is hard to see below: the lower box must be the less sure one.
    frame = draw_text(192, 320, ["Hello world"])
    faint = draw_text(192, 320, ["", "Hello world"], fill=(60, 70, 88))
    frame[80:] = faint[80:]
    sensitive = PpOcrDetector(
        find_ppocr_weights(), parameters=PpOcrParameters(thresh=0.15, min_confidence=0.15)
    )
    boxes = sensitive.detect(frame[None])[0]
    assert len(boxes) == 2
    upper, lower = boxes.points[:, :, 1].mean(axis=1).argsort()
    assert boxes.confidence[upper] > boxes.confidence[lower]


def test_textless_frames_have_no_boxes(detector):
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    gradient = np.broadcast_to(ramp[None, :, None], (96, 160, 3))
    noise = np.random.default_rng(7).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    for boxes in detector.detect(np.stack([gradient, noise])):
        assert len(boxes) == 0


def test_a_box_over_the_whole_frame_is_not_text(detector):
    frame = draw_text(192, 320, ["Hello world"])
    found = detector.detect(frame[None])[0]
    assert len(found) == 1
    ratio = union(found).area / (192 * 320)
    just_below = PpOcrParameters(max_box_frame_ratio=ratio)
    strict = PpOcrDetector(find_ppocr_weights(), parameters=just_below)
    assert len(strict.detect(frame[None])[0]) == 0
    just_above = dataclasses.replace(just_below, max_box_frame_ratio=ratio * 1.01)
    lax = PpOcrDetector(find_ppocr_weights(), parameters=just_above)
    assert len(lax.detect(frame[None])[0]) == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (31, 33)])
def test_tiny_frames_are_scored(detector, size):
    detector.warm_up(*size)
    assert len(detector.detect(np.zeros((1, *size, 3), np.uint8))[0]) == 0


def test_rejects_a_frame_that_is_too_long_and_thin(detector):
    with pytest.raises(ValueError, match="a frame of 20x400 px cannot be scored"):
        detector.detect(np.zeros((1, 400, 20, 3), np.uint8))


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 4), (0, 8, 8, 3), (1, 0, 8, 3)])
def test_rejects_frames_of_another_shape(detector, shape):
    with pytest.raises(ValueError, match=r"frames must be \(N, H, W, 3\)"):
        detector.detect(np.zeros(shape, np.uint8))


def test_rejects_frames_of_another_type(detector):
    with pytest.raises(ValueError, match="must be uint8"):
        detector.detect(np.zeros((1, 8, 8, 3), np.float32))


def test_rejects_weights_with_another_checksum(tmp_path):
    (tmp_path / PPOCR_WEIGHTS_FILE).write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="expected 090f04ab"):
        PpOcrDetector(tmp_path)


def test_the_loaded_detector_carries_the_spec_that_needs_no_loading(detector):
    assert detector.spec == ppocr_spec()


def test_nothing_is_printed_while_detecting(capfd):
    loaded = load_detector("ppocr", device="cpu", thread_count=1)
    loaded.detect(draw_text(64, 128, ["Hello"])[None])
    assert capfd.readouterr() == ("", "")
