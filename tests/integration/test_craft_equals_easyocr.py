"""CRAFT's boxes are EasyOCR's: the real network, the real `easyocr.Reader`, small drawn frames."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from resources.detectors.base import WeightsError
from resources.detectors.craft import CraftDetector, CraftParameters, boxes_from_maps, craft_spec
from resources.detectors.torchvision_ops import ensure_torchvision_imports
from resources.detectors.weights import CRAFT_WEIGHTS_FILE, find_craft_weights


@pytest.fixture(scope="module")
def detector():
    return CraftDetector(find_craft_weights())


@pytest.fixture(scope="module")
def easyocr_reader():
    ensure_torchvision_imports()
    import easyocr

    return easyocr.Reader(
        ["en"],
        gpu=False,
        recognizer=False,
        download_enabled=False,
        model_storage_directory=str(find_craft_weights().parent),
        verbose=False,
    )


def draw_text(height, width, lines, *, degrees=0.0, size=26):
    """A dark frame, uint8 (H, W, 3) RGB, with lines of light text, turned about its centre."""
    image = Image.new("RGB", (width, height), (30, 40, 60))
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        place = (width // 8, height // 6 + index * size * 2)
        draw.text(place, line, font=ImageFont.load_default(size=size), fill=(240, 230, 210))
    return np.array(image.rotate(degrees, fillcolor=(30, 40, 60)))


def draw_noise(height, width):
    """A frame of noise, which holds no text."""
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def easyocr_boxes(reader, frame, **parameters):
    """What EasyOCR says, one frame at a time, as float32 (N, 4, 2) in its order."""
    horizontal, free = reader.detect(frame[None], reformat=False, **parameters)
    quads = [
        [[left, top], [right, top], [right, bottom], [left, bottom]]
        for left, right, top, bottom in horizontal[0]
    ]
    return np.array(quads + free[0], np.float32).reshape(-1, 4, 2)


def assert_same_boxes(found, expected):
    """Same count, same order, corners within 1 px.

    Not exact: a batch may take other kernels than a single frame, which moves scores by about 1e-6,
    and EasyOCR truncates corners to whole pixels.
    """
    assert found.points.shape == expected.shape
    np.testing.assert_allclose(found.points, expected, rtol=0, atol=1)


def test_a_batch_has_the_boxes_that_easyocr_finds_frame_by_frame(detector, easyocr_reader):
    frames = np.stack(
        [
            draw_text(192, 320, ["Hello world", "second line"]),
            draw_text(192, 320, ["Turned text"], degrees=25),
            draw_text(192, 320, []),
        ]
    )
    expected = [easyocr_boxes(easyocr_reader, frame) for frame in frames]
    # Horizontal ones, a free one and none: otherwise the test would prove less than it says.
    assert len(expected[0]) >= 2
    assert len(expected[1]) >= 1
    assert np.unique(expected[1][0, :, 1]).size > 2
    for found, boxes in zip(detector.detect(frames), expected, strict=True):
        assert_same_boxes(found, boxes)


@pytest.mark.parametrize(("height", "width"), [(243, 321), (161, 97), (31, 150)])
def test_odd_sizes_have_easyocrs_boxes(detector, easyocr_reader, height, width):
    frame = draw_text(height, width, ["Odd sizes"], size=min(22, height // 2))
    expected = easyocr_boxes(easyocr_reader, frame)
    assert len(expected) >= 1
    assert_same_boxes(detector.detect(frame[None])[0], expected)


@pytest.mark.parametrize(
    "parameters",
    [
        {"canvas_size": 256},
        {"mag_ratio": 1.5},
        {"min_size": 60, "add_margin": 0.3, "width_ths": 0.05, "low_text": 0.3},
    ],
    ids=["shrunk", "magnified", "grouped otherwise"],
)
def test_every_parameter_reaches_easyocrs_code(detector, easyocr_reader, parameters):
    frame = draw_text(160, 320, ["One two  three", "a b"])
    expected = easyocr_boxes(easyocr_reader, frame, **parameters)
    assert len(expected) >= 1
    changed = CraftDetector(find_craft_weights(), parameters=CraftParameters(**parameters))
    assert_same_boxes(changed.detect(frame[None])[0], expected)
    assert changed.spec.digest() != detector.spec.digest()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (31, 33)])
def test_frames_below_the_padding_of_32_px_are_scored(detector, size):
    detector.warm_up(*size)
    assert len(detector.detect(draw_noise(*size)[None])) == 1


def test_textless_frames_have_no_boxes(detector):
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    gradient = np.broadcast_to(ramp[None, :, None], (96, 160, 3))
    black = np.zeros((96, 160, 3), np.uint8)
    for boxes in detector.detect(np.stack([gradient, black, draw_noise(96, 160)])):
        assert len(boxes) == 0


def test_confidence_is_a_peak_region_score_above_the_threshold(detector):
    boxes = detector.detect(draw_text(128, 256, ["Confident"])[None])[0]
    assert len(boxes) >= 1
    assert boxes.confidence.dtype == np.float32
    assert boxes.confidence.min() >= CraftParameters().text_threshold
    assert boxes.confidence.max() <= 1.0


def test_a_box_takes_its_confidence_from_its_own_place():
    region = np.zeros((64, 64), np.float32)
    region[10:18, 8:40] = 0.75
    region[40:48, 8:40] = 1.5  # The network is not bounded by 1.
    boxes = boxes_from_maps(region, np.zeros_like(region), 1.0, (128, 128), CraftParameters())
    assert boxes.points[:, :, 1].mean(axis=1) == pytest.approx([28, 88], abs=4)
    np.testing.assert_allclose(boxes.confidence, [0.75, 1.0])


def test_boxes_lie_clockwise_from_the_top_left(detector):
    boxes = detector.detect(draw_text(128, 256, ["Clockwise"])[None])[0]
    assert len(boxes) >= 1
    for quad in boxes.points:
        assert cv2.contourArea(quad, oriented=True) > 0
        assert quad.sum(axis=1).argmin() == 0


def test_mirrored_views_are_taken(detector):
    frames = draw_text(64, 128, ["Hello"])[None, :, ::-1]
    expected = detector.detect(frames.copy())[0]
    np.testing.assert_array_equal(detector.detect(frames)[0].points, expected.points)


def test_rejects_a_frame_whose_shorter_side_vanishes_on_the_canvas(detector):
    with pytest.raises(ValueError, match="a frame of 5000x1 px cannot be scored"):
        detector.detect(np.zeros((1, 1, 5000, 3), np.uint8))


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 4), (0, 8, 8, 3), (1, 0, 8, 3)])
def test_rejects_frames_of_another_shape(detector, shape):
    with pytest.raises(ValueError, match=r"frames must be \(N, H, W, 3\)"):
        detector.detect(np.zeros(shape, np.uint8))


def test_rejects_frames_of_another_type(detector):
    with pytest.raises(ValueError, match="must be uint8"):
        detector.detect(np.zeros((1, 8, 8, 3), np.float32))


def test_rejects_weights_with_another_checksum(tmp_path):
    (tmp_path / CRAFT_WEIGHTS_FILE).write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="expected 4a5efbfb"):
        CraftDetector(tmp_path)


def test_the_loaded_detector_carries_the_spec_that_needs_no_loading(detector):
    assert detector.spec == craft_spec()


def test_torchvision_is_made_importable_as_often_as_asked():
    first = ensure_torchvision_imports()
    assert ensure_torchvision_imports() is first
    assert hasattr(torch.ops.torchvision, "nms")


def test_operators_that_exist_are_not_defined_again():
    ensure_torchvision_imports()
    assert ensure_torchvision_imports.__wrapped__() is None
