"""EasyOCR's CRAFT text detector: the boxes of `easyocr.Reader.detect`, for batches of frames.

Belongs here: loading CRAFT, running it, and turning its maps into `TextBoxes`. Does not belong
here: text recognition, and any judgement on areas. Importing this module imports neither torch nor
easyocr, so that definitions can compute digests; the imports stand in the functions that need them.

EasyOCR calls CRAFT's two maps `score_text` and `score_link`; here they are the region score (how
surely a pixel belongs to a character) and the affinity score (how surely it lies between two
characters of one word), as in the paper: Baek et al., Character Region Awareness for Text
Detection, CVPR 2019, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from resources.detectors.base import DetectorSpec, TextBoxes
from resources.detectors.weights import CRAFT_WEIGHTS_SHA256, find_craft_weights

# The network halves the size of its input (Baek et al., figure 2); easyocr 1.7.2 writes it as
# `ratio_net` in craft_utils.py, `adjustResultCoordinates`.
_INPUT_PX_PER_MAP_PX = 2


@dataclass(frozen=True)
class CraftParameters:
    """What `easyocr.Reader.detect` can be told, with its names and its defaults (easyocr 1.7.2).

    Attributes:
        text_threshold: Least peak region score of a text component, in [0, 1].
        low_text: Region score from which a pixel belongs to a component, in [0, 1].
        link_threshold: Affinity score from which a pixel links characters, in [0, 1].
        canvas_size: Longest side of the network's input; larger frames are shrunk to it (pixels).
        mag_ratio: Magnification before the canvas limit; 1.0 takes frames as they are.
        slope_ths: Largest slope of a box that counts as horizontal.
        ycenter_ths: Largest shift of vertical centres within a line, in box heights.
        height_ths: Largest difference in height within a line, in box heights.
        width_ths: Largest gap at which neighbours in a line merge, in box heights.
        add_margin: Margin added around each box, relative to its shorter side.
        min_size: Boxes whose longer side is not above this are dropped (pixels); 0 keeps all.
    """

    text_threshold: float = 0.7
    low_text: float = 0.4
    link_threshold: float = 0.4
    canvas_size: int = 2560
    mag_ratio: float = 1.0
    slope_ths: float = 0.1
    ycenter_ths: float = 0.5
    height_ths: float = 0.5
    width_ths: float = 0.5
    add_margin: float = 0.1
    min_size: int = 20


_DEFAULTS = CraftParameters()


def craft_spec(parameters: CraftParameters = _DEFAULTS) -> DetectorSpec:
    """What CRAFT's scores are filed under. Imports neither torch nor easyocr.

    Beside EasyOCR's parameters it holds `dtype`, the type of the network's arithmetic, and
    `fp32_precision`, torch's word for how float32 is multiplied: `ieee`, never TF32.
    """
    return DetectorSpec(
        name="craft",
        weights_sha256=CRAFT_WEIGHTS_SHA256,
        parameters={**asdict(parameters), "dtype": "float32", "fp32_precision": "ieee"},
    )


def craft_input_size(
    height_px: int, width_px: int, parameters: CraftParameters = _DEFAULTS
) -> tuple[int, int]:
    """The size to which a frame is resized and padded for the network.

    The arithmetic is that of easyocr 1.7.2, imgproc.py, `resize_aspect_ratio`. Imports neither
    torch nor easyocr.

    Args:
        height_px: Height of the frame, at least 1.
        width_px: Width of the frame, at least 1.
        parameters: EasyOCR's parameters.

    Returns:
        Height and width in pixels, multiples of 32.

    Raises:
        ValueError: If the frame's shorter side vanishes on the canvas.
    """
    longest_px = max(height_px, width_px)
    magnification = min(parameters.mag_ratio * longest_px, parameters.canvas_size) / longest_px
    resized_px = (int(height_px * magnification), int(width_px * magnification))
    if min(resized_px) < 1:
        raise ValueError(
            f"a frame of {width_px}x{height_px} px cannot be scored: on a canvas of "
            f"{parameters.canvas_size} px its shorter side is less than one pixel"
        )
    padded_height_px, padded_width_px = (math.ceil(px / 32) * 32 for px in resized_px)
    return padded_height_px, padded_width_px


class CraftDetector:
    """CRAFT with EasyOCR's post-processing.

    Args:
        weights: The weights file, or the folder that holds it; its checksum is verified.
        device: A torch device, `cpu` or `cuda:0`. On CUDA, TF32 convolutions are turned off for
            the process: with them a GPU's boxes differ from a CPU's, under one digest.
        parameters: EasyOCR's parameters.

    Raises:
        WeightsError: If the weights are missing or have another checksum.
    """

    def __init__(
        self, weights: Path, device: str = "cpu", parameters: CraftParameters = _DEFAULTS
    ) -> None:
        path = find_craft_weights(weights)

        import torch

        from resources.detectors.torchvision_ops import ensure_torchvision_imports

        ensure_torchvision_imports()
        from easyocr.craft import CRAFT
        from easyocr.detection import copyStateDict

        self._parameters = parameters
        self._spec = craft_spec(parameters)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        # On the meta device, building the network neither fills 138 million parameters of VGG-16
        # with random numbers only to throw most of them away, nor holds 0.5 GB for them.
        with torch.device("meta"):
            network = CRAFT(pretrained=False)
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(copyStateDict(state), assign=True)
        self._network = network.to(self._device).eval()

    @property
    def spec(self) -> DetectorSpec:
        """What this detector's scores are filed under."""
        return self._spec

    def warm_up(self, height_px: int, width_px: int) -> None:
        """Runs the network once on a black frame of that size, so that the first batch is not slow.

        Raises:
            ValueError: If the size cannot be scored; see `detect`.
        """
        frames = np.zeros((1, height_px, width_px, 3), np.uint8)
        self._maps(_network_input(frames, self._parameters)[0])

    def detect(self, frames: NDArray[np.uint8]) -> Sequence[TextBoxes]:
        """Finds the text in frames of one size, in one forward pass.

        The boxes are those of `easyocr.Reader.detect(frames, reformat=False)`, in its order:
        horizontal boxes first, then free ones. The confidence of a box is the peak region score in
        it.

        Args:
            frames: uint8 (N, H, W, 3) RGB, N >= 1, any H and W >= 1.

        Returns:
            One `TextBoxes` per frame, in order.

        Raises:
            ValueError: If `frames` has another shape or type, or is so long and thin that its
                shorter side vanishes on EasyOCR's canvas (beyond 1:2560 at the default size).
        """
        network_input, input_px_per_frame_px = _network_input(frames, self._parameters)
        region_scores, affinity_scores = self._maps(network_input)
        frame_size_px = (frames.shape[1], frames.shape[2])
        return [
            boxes_from_maps(
                region, affinity, input_px_per_frame_px, frame_size_px, self._parameters
            )
            for region, affinity in zip(region_scores, affinity_scores, strict=True)
        ]

    def _maps(
        self, network_input: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Region and affinity scores, float32 (N, H', W') each, for input float32 (N, 3, H, W)."""
        import torch

        with torch.inference_mode():
            maps, _ = self._network(torch.from_numpy(network_input).to(self._device))
            # Channels first and contiguous, as OpenCV wants each map.
            region_scores, affinity_scores = maps.permute(3, 0, 1, 2).contiguous().cpu().numpy()
        return region_scores, affinity_scores


def boxes_from_maps(
    region_score: NDArray[np.float32],
    affinity_score: NDArray[np.float32],
    input_px_per_frame_px: float,
    frame_size_px: tuple[int, int],
    parameters: CraftParameters,
) -> TextBoxes:
    """EasyOCR's way from CRAFT's maps to boxes (easyocr 1.7.2: `get_textbox`, `Reader.detect`).

    Args:
        region_score: float32 (H', W'), CRAFT's region map of the padded network input.
        affinity_score: float32 (H', W'), its affinity map.
        input_px_per_frame_px: By how much the frame was magnified for the network.
        frame_size_px: Height and width of the frame.
        parameters: EasyOCR's parameters.

    Returns:
        Horizontal boxes, then free ones, in the coordinates of the frame. Confidence is the peak
        region score inside the box and the frame, clipped into [0, 1].
    """
    from easyocr.craft_utils import adjustResultCoordinates, getDetBoxes
    from easyocr.utils import group_text_box

    boxes, _, _ = getDetBoxes(
        region_score,
        affinity_score,
        parameters.text_threshold,
        parameters.link_threshold,
        parameters.low_text,
    )
    frame_px_per_input_px = 1 / input_px_per_frame_px
    boxes = adjustResultCoordinates(
        boxes, frame_px_per_input_px, frame_px_per_input_px, _INPUT_PX_PER_MAP_PX
    )
    # `get_textbox` truncates to whole pixels before boxes are merged; so must we.
    flat = [np.array(box).astype(np.int32).reshape(-1) for box in boxes]
    horizontal, free = group_text_box(
        flat,
        parameters.slope_ths,
        parameters.ycenter_ths,
        parameters.height_ths,
        parameters.width_ths,
        parameters.add_margin,
    )
    quads = [
        [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
        for x_min, x_max, y_min, y_max in horizontal
    ]
    points = np.array(quads + free, np.float64).reshape(-1, 4, 2)
    if parameters.min_size:
        # `max(width, height) > min_size`, on the axes, is EasyOCR's filter for both kinds.
        points = points[np.ptp(points, axis=1).max(axis=1) > parameters.min_size]
    points = points.astype(np.float32)
    map_px_per_frame_px = input_px_per_frame_px / _INPUT_PX_PER_MAP_PX
    height_px, width_px = (math.ceil(side * map_px_per_frame_px) for side in frame_size_px)
    confidence = _peaks(region_score[:height_px, :width_px], points * map_px_per_frame_px)
    return TextBoxes(points, confidence)


def _peaks(score: NDArray[np.float32], quads: NDArray[np.float32]) -> NDArray[np.float32]:
    """The highest score inside each quadrilateral, clipped into [0, 1]; 0 outside the map.

    Args:
        score: float32 (H', W').
        quads: float32 (N, 4, 2), convex, as (x, y) in pixels of the map.

    Returns:
        float32 (N,).
    """
    peaks = np.zeros(len(quads), np.float32)
    size = np.array([score.shape[1], score.shape[0]])
    for index, quad in enumerate(np.rint(quads).astype(np.int32)):
        left, top = np.clip(quad.min(axis=0), 0, size)
        right, bottom = np.clip(quad.max(axis=0) + 1, 0, size)
        window = score[top:bottom, left:right]
        if window.size == 0:
            continue
        inside = np.zeros(window.shape, np.uint8)
        cv2.fillConvexPoly(inside, quad - np.array([left, top], np.int32), 1)
        peaks[index] = np.max(window, where=inside.astype(bool), initial=0.0)
    return np.clip(peaks, 0.0, 1.0)


def _network_input(
    frames: NDArray[np.uint8], parameters: CraftParameters
) -> tuple[NDArray[np.float32], float]:
    """Resizes, pads and normalises frames as EasyOCR does (easyocr 1.7.2: `test_net`).

    Args:
        frames: uint8 (N, H, W, 3) RGB.
        parameters: EasyOCR's parameters.

    Returns:
        float32 (N, 3, H', W') with H' and W' multiples of 32, and the pixels of it per pixel of
        the frame, before the padding at the right and at the bottom.

    Raises:
        ValueError: See `CraftDetector.detect`.
    """
    from easyocr.imgproc import normalizeMeanVariance, resize_aspect_ratio

    if frames.shape[3:] != (3,) or frames.size == 0:
        raise ValueError(f"frames must be (N, H, W, 3) with no zero, got {frames.shape = }")
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8, got {frames.dtype = }")
    # Refuses what would vanish on the canvas, where OpenCV's message says nothing of the frame.
    craft_input_size(*frames.shape[1:3], parameters=parameters)
    inputs: list[NDArray[np.float32]] = []
    ratio = 1.0
    for frame in frames:
        # OpenCV refuses views with negative strides, such as a flipped frame.
        resized, ratio, _ = resize_aspect_ratio(
            np.ascontiguousarray(frame),
            parameters.canvas_size,
            interpolation=cv2.INTER_LINEAR,
            mag_ratio=parameters.mag_ratio,  # pyright: ignore[reportArgumentType] - its default is 1
        )
        inputs.append(normalizeMeanVariance(resized).transpose(2, 0, 1))
    return np.stack(inputs), ratio
