"""Text detectors, by the name the settings use.

Importing this package loads no model and no torch.
"""

from pathlib import Path

from resources.detectors.base import DetectorSpec, TextDetector

DETECTOR_NAMES = ("craft", "ppocr")


def detector_spec(name: str) -> DetectorSpec:
    """What the scores of the detector of that name are filed under. Loads no model.

    Raises:
        ValueError: If there is no detector of that name.
    """
    if name == "craft":
        from resources.detectors.craft import craft_spec

        return craft_spec()
    if name == "ppocr":
        from resources.detectors.ppocr import ppocr_spec

        return ppocr_spec()
    raise _unknown(name)


def load_detector(
    name: str, *, device: str, thread_count: int, weights: Path | None = None
) -> TextDetector:
    """Loads the detector of that name, with its default parameters.

    Args:
        name: One of `DETECTOR_NAMES`.
        device: A torch device, `cpu` or `cuda:0`. `ppocr` runs on the CPU only.
        thread_count: CPU threads for the network, at least 1. For `craft` this sets the number for
            the whole process (`torch.set_num_threads`).
        weights: The weights file, or the folder that holds it; if None it is looked for.

    Raises:
        ValueError: If there is no detector of that name, `thread_count` is below 1, or the
            detector cannot run on `device`.
        WeightsError: If the weights are missing or have another checksum.
    """
    if name not in DETECTOR_NAMES:
        raise _unknown(name)
    if thread_count < 1:
        raise ValueError(f"thread_count must be at least 1, got {thread_count}")
    if name == "craft":
        import torch

        from resources.detectors.craft import CraftDetector

        torch.set_num_threads(thread_count)
        return CraftDetector(require_weights(name, weights), device)
    if device != "cpu":
        raise ValueError(
            f"detector 'ppocr' runs on device 'cpu' only, got {device!r}; use 'craft' on a GPU"
        )
    from resources.detectors.ppocr import PpOcrDetector

    return PpOcrDetector(require_weights(name, weights), thread_count=thread_count)


def network_input_size(name: str, height_px: int, width_px: int) -> tuple[int, int]:
    """The size of what a detector's network is fed for a frame, resized and padded.

    Loads no model and imports neither torch nor the detector's libraries.

    Args:
        name: One of `DETECTOR_NAMES`; the detector has its default parameters.
        height_px: Height of the frame, at least 1.
        width_px: Width of the frame, at least 1.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: If there is no detector of that name, or the detector cannot score frames of
            that size; the message is the one with which it refuses them.
    """
    if height_px < 1 or width_px < 1:
        raise ValueError(f"a frame has at least 1 pixel on each side, got {width_px}x{height_px}")
    if name == "craft":
        from resources.detectors.craft import craft_input_size

        return craft_input_size(height_px, width_px)
    if name == "ppocr":
        from resources.detectors.ppocr import ppocr_input_size

        return ppocr_input_size(height_px, width_px)
    raise _unknown(name)


def import_detector(name: str) -> None:
    """Imports what a detector runs on, which takes longer than loading it; touches no device."""
    if name == "craft":
        from resources.detectors.torchvision_ops import ensure_torchvision_imports

        ensure_torchvision_imports()
        import easyocr  # noqa: F401
    else:
        import onnxruntime  # noqa: F401


def require_weights(name: str, weights: Path | None = None) -> Path:
    """Finds and verifies a detector's weights without loading them.

    Raises:
        ValueError: If there is no detector of that name.
        WeightsError: If the weights are missing or have another checksum.
    """
    from resources.detectors.weights import find_craft_weights, find_ppocr_weights

    if name == "craft":
        return find_craft_weights(weights)
    if name == "ppocr":
        return find_ppocr_weights(weights)
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"unknown detector {name!r}; allowed: {', '.join(DETECTOR_NAMES)}")
