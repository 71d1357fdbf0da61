"""PP-OCR's text detector, with the model and the code of RapidOCR, on the CPU.

Belongs here: loading the model that the rapidocr wheel carries, running it, and turning its map
into `TextBoxes`. Does not belong here: text recognition, and any judgement on areas beyond telling
text from none. Importing this module imports neither onnxruntime nor rapidocr.

RapidOCR's own steps run here one by one, rather than through its `TextDetector`: rapidocr 3.10.0
sorts the boxes into reading order after scoring them and leaves the scores as they were
(ch_ppocr_det/main.py, `TextDetector.__call__`), so that a box may carry another box's score.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from resources.detectors.base import DetectorSpec, TextBoxes
from resources.detectors.weights import PPOCR_WEIGHTS_SHA256, find_ppocr_weights

# rapidocr 3.10.0 enlarges the shorter side to 736 px whatever the longer one becomes: 32x3200 px
# would be 46,000 px high. At this ratio the network's input is nine times that of 16:9.
_MAX_ASPECT_RATIO = 16.0

# rapidocr 3.10.0, config.yaml, `Det.mean` and `Det.std`, on RGB in [0, 1].
_MEAN = (0.5, 0.5, 0.5)
_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PpOcrParameters:
    """RapidOCR's settings, and two of ours that tell text from none.

    RapidOCR's have its names and its defaults (rapidocr 3.10.0, config.yaml).

    Attributes:
        max_side_len: Frames with a longer side are shrunk to it (pixels).
        min_side_len: Frames with a shorter side are enlarged to it (pixels).
        min_height: Frames not above this height are padded above and below (pixels).
        width_height_ratio: Frames wider than this, relative to their height, are padded too.
        limit_side_len: The side that `limit_type` speaks of, for the network's input (pixels).
        limit_type: `min`: the shorter side is at least `limit_side_len`; `max`: the longer at most.
        thresh: Text probability from which a pixel is text, in [0, 1].
        max_candidates: Most regions looked at per frame.
        unclip_ratio: How far the shrunken regions that the network finds are grown again.
        use_dilation: Whether regions are dilated by a pixel before boxes are made.
        score_mode: `fast`: a box's confidence is the mean probability in its rectangle; `slow`: in
            its contour.
        min_confidence: Boxes below it are dropped; RapidOCR's `box_thresh`, which is 0.5 there. On
            textless video frames the model boxed much of the frame at 0.51 to 0.79, while real text
            had 0.78 to 0.86 (measured on Data-Juicer's test clips): this takes most of the false
            boxes, no floor takes them all.
        max_box_frame_ratio: A box that covers this share of the frame or more is not text, in
            (0, 1]: the boxes over textless frames that pass the floor cover 0.56 to 0.81 of them
            (measured on Data-Juicer's video4), a line of text on a full slide covers 0.1. The
            price: text that fills a cropped frame is not found.
    """

    max_side_len: int = 2000
    min_side_len: int = 30
    min_height: int = 30
    width_height_ratio: float = 8.0
    limit_side_len: int = 736
    limit_type: Literal["min", "max"] = "min"
    thresh: float = 0.3
    max_candidates: int = 1000
    unclip_ratio: float = 1.6
    use_dilation: bool = True
    score_mode: Literal["fast", "slow"] = "fast"
    min_confidence: float = 0.7
    max_box_frame_ratio: float = 0.5


_DEFAULTS = PpOcrParameters()


def ppocr_spec(parameters: PpOcrParameters = _DEFAULTS) -> DetectorSpec:
    """What PP-OCR's scores are filed under. Imports neither onnxruntime nor rapidocr."""
    return DetectorSpec(
        name="ppocr", weights_sha256=PPOCR_WEIGHTS_SHA256, parameters=asdict(parameters)
    )


def ppocr_input_size(
    height_px: int, width_px: int, parameters: PpOcrParameters = _DEFAULTS
) -> tuple[int, int]:
    """The size to which a frame is resized and padded for the network.

    The arithmetic is that of rapidocr 3.10.0: `resize_image_within_bounds` and
    `apply_vertical_padding` (utils/process_img.py), then `DetPreProcess.resize`
    (ch_ppocr_det/utils.py). Imports neither onnxruntime nor rapidocr.

    Args:
        height_px: Height of the frame, at least 1.
        width_px: Width of the frame, at least 1.
        parameters: RapidOCR's settings.

    Returns:
        Height and width in pixels, multiples of 32.

    Raises:
        ValueError: If one side is over 16 times the other, or a side vanishes.
    """
    _check_aspect(height_px, width_px)
    height, width = height_px, width_px
    if max(height, width) > parameters.max_side_len:
        height, width = _resized(height, width, parameters.max_side_len / max(height, width))
    if min(height, width) < parameters.min_side_len:
        height, width = _resized(height, width, parameters.min_side_len / min(height, width))
    is_flat = parameters.width_height_ratio != -1 and width / height > parameters.width_height_ratio
    if height <= parameters.min_height or is_flat:
        padded = max(int(width / parameters.width_height_ratio), parameters.min_height) * 2
        height += 2 * int(abs(padded - height) / 2)
    if parameters.limit_type == "max":
        ratio = min(1.0, parameters.limit_side_len / max(height, width))
    else:
        ratio = max(1.0, parameters.limit_side_len / min(height, width))
    return _resized(height, width, ratio)


def _check_aspect(height_px: int, width_px: int) -> None:
    if max(height_px, width_px) > _MAX_ASPECT_RATIO * min(height_px, width_px):
        raise ValueError(
            f"a frame of {width_px}x{height_px} px cannot be scored: one side is over "
            f"{_MAX_ASPECT_RATIO:g} times the other"
        )


def _resized(height_px: int, width_px: int, ratio: float) -> tuple[int, int]:
    """Both sides times the ratio, cut to whole pixels and rounded to multiples of 32."""
    height, width = (round(int(px * ratio) / 32) * 32 for px in (height_px, width_px))
    if min(height, width) < 1:
        raise ValueError(f"a frame of {width_px}x{height_px} px is too small for RapidOCR")
    return height, width


class PpOcrDetector:
    """PP-OCRv6 small through onnxruntime, with RapidOCR's pre- and post-processing.

    Args:
        weights: The ONNX file, or the folder that holds it; its checksum is verified.
        thread_count: Threads that one frame's forward pass may use, at least 1.
        parameters: RapidOCR's settings and ours.

    Raises:
        WeightsError: If the weights are missing or have another checksum.
    """

    def __init__(
        self, weights: Path, *, thread_count: int = 1, parameters: PpOcrParameters = _DEFAULTS
    ) -> None:
        path = find_ppocr_weights(weights)

        from onnxruntime import (
            InferenceSession,
            SessionOptions,  # pyright: ignore[reportAttributeAccessIssue] - from its C library
        )
        from rapidocr.ch_ppocr_det.utils import DBPostProcess, DetPreProcess

        self._parameters = parameters
        self._spec = ppocr_spec(parameters)
        self._preprocess = DetPreProcess(
            parameters.limit_side_len, parameters.limit_type, list(_MEAN), list(_STD)
        )
        self._postprocess = DBPostProcess(
            thresh=parameters.thresh,
            box_thresh=parameters.min_confidence,
            max_candidates=parameters.max_candidates,
            unclip_ratio=parameters.unclip_ratio,
            score_mode=parameters.score_mode,
            use_dilation=parameters.use_dilation,
        )
        options = SessionOptions()
        options.intra_op_num_threads = thread_count
        # As RapidOCR has it: the arena would keep the memory of the largest frame for ever.
        options.enable_cpu_mem_arena = False
        self._session = InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._input_name = self._session.get_inputs()[0].name

    @property
    def spec(self) -> DetectorSpec:
        """What this detector's scores are filed under."""
        return self._spec

    def warm_up(self, height_px: int, width_px: int) -> None:
        """Runs the network once on a black frame of that size, so that the first batch is not slow.

        Raises:
            ValueError: If the size cannot be scored; see `detect`.
        """
        self.detect(np.zeros((1, height_px, width_px, 3), np.uint8))

    def detect(self, frames: NDArray[np.uint8]) -> Sequence[TextBoxes]:
        """Finds the text in frames of one size, one frame at a time.

        The boxes are RapidOCR's, in the order in which it finds them, less those that
        `max_box_frame_ratio` rules out. The confidence of a box is the mean text probability in it.

        Args:
            frames: uint8 (N, H, W, 3) RGB, N >= 1, neither side over 16 times the other.

        Returns:
            One `TextBoxes` per frame, in order.

        Raises:
            ValueError: If `frames` has another shape or type.
        """
        if frames.shape[3:] != (3,) or frames.size == 0:
            raise ValueError(f"frames must be (N, H, W, 3) with no zero, got {frames.shape = }")
        if frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8, got {frames.dtype = }")
        _check_aspect(*frames.shape[1:3])
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: NDArray[np.uint8]) -> TextBoxes:
        """The text in one frame, uint8 (H, W, 3) RGB."""
        from rapidocr.utils.process_img import (
            apply_vertical_padding,
            map_boxes_to_original,
            resize_image_within_bounds,
        )

        parameters = self._parameters
        height_px, width_px = frame.shape[:2]
        # These are the steps of `RapidOCR.__call__` without its classifier and recognizer.
        image, ratio_h, ratio_w = resize_image_within_bounds(
            cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), parameters.min_side_len, parameters.max_side_len
        )
        image, steps = apply_vertical_padding(
            image,
            {"preprocess": {"ratio_h": ratio_h, "ratio_w": ratio_w}},
            parameters.width_height_ratio,
            parameters.min_height,
        )
        network_input = self._preprocess(image)
        if network_input is None:
            raise ValueError(f"a frame of {width_px}x{height_px} px is too small for RapidOCR")
        probability = self._session.run(None, {self._input_name: network_input})[0]
        boxes, scores = self._postprocess(np.asarray(probability), image.shape[:2])
        if len(boxes) == 0:
            return TextBoxes.none()
        points = map_boxes_to_original(boxes, steps, height_px, width_px).astype(np.float32)
        covered = np.array([cv2.contourArea(quad) for quad in points]) / (height_px * width_px)
        is_text = covered < parameters.max_box_frame_ratio
        confidence = np.clip(np.array(scores, np.float32), 0.0, 1.0)
        return TextBoxes(points[is_text], confidence[is_text])
