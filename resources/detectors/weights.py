"""Where the detectors' weights lie, and the proof that they are the ones whose boxes we know.

Belongs here: finding and checking files. Does not belong here: torch, onnxruntime, or loading.
"""

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from resources.detectors.base import WeightsError

# EasyOCR's CRAFT, as easyocr 1.7.2 names it (easyocr/config.py, `detection_models["craft"]`); the
# file whose MD5 stands there, 2f8227d2def4037cdb3b34389dcf9ec1, has this SHA-256.
CRAFT_WEIGHTS_FILE = "craft_mlt_25k.pth"
CRAFT_WEIGHTS_SHA256 = "4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17"

# rapidocr 3.10.0 carries this file in its wheel and states this sum in rapidocr/default_models.yaml
# (`onnxruntime.PP-OCRv6.det.multi_PP-OCRv6_det_small`).
PPOCR_WEIGHTS_FILE = "PP-OCRv6_det_small.onnx"
PPOCR_WEIGHTS_SHA256 = "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"

_CRAFT_FIX = (
    "install them with `pip install 'ocr-assets[weights]'`, or let EasyOCR download them: "
    '`python -c "from resources.detectors.torchvision_ops import ensure_torchvision_imports as e;'
    " e(); import easyocr; easyocr.Reader(['en'], gpu=False, recognizer=False)\"`"
)
_PPOCR_FIX = "they come with the wheel: `pip install --force-reinstall 'rapidocr>=3.10,<3.11'`"


def find_craft_weights(explicit: Path | None = None) -> Path:
    """Finds EasyOCR's CRAFT weights and checks them.

    Args:
        explicit: The file, or the folder that holds it. If None, the package `easyocr_en_models`
            is asked, then the folder into which EasyOCR downloads.

    Returns:
        The path of the file, whose SHA-256 is `CRAFT_WEIGHTS_SHA256`.

    Raises:
        WeightsError: If there is no such file, or the first one found has another checksum.
    """
    if explicit is not None:
        candidates = [_file_in(explicit, CRAFT_WEIGHTS_FILE)]
    else:
        candidates = [
            folder / CRAFT_WEIGHTS_FILE
            for folder in (_weights_package_folder(), _easyocr_model_folder())
            if folder is not None
        ]
    return _first_verified("CRAFT", candidates, CRAFT_WEIGHTS_SHA256, _CRAFT_FIX)


def find_ppocr_weights(explicit: Path | None = None) -> Path:
    """Finds the PP-OCR detection model that the rapidocr wheel carries and checks it.

    Args:
        explicit: The file, or the folder that holds it. If None, the installed rapidocr's.

    Returns:
        The path of the file, whose SHA-256 is `PPOCR_WEIGHTS_SHA256`.

    Raises:
        WeightsError: If there is no such file, or it has another checksum.
    """
    folder = _rapidocr_model_folder() if explicit is None else explicit
    candidates = [] if folder is None else [_file_in(folder, PPOCR_WEIGHTS_FILE)]
    return _first_verified("PP-OCR", candidates, PPOCR_WEIGHTS_SHA256, _PPOCR_FIX)


def _file_in(path: Path, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    return path / name if path.is_dir() else path


def _weights_package_folder() -> Path | None:
    """Where the package behind the `weights` extra put its files; None where it is missing."""
    try:
        package = importlib.import_module("easyocr_en_models")
    except ModuleNotFoundError:
        return None
    return Path(package.model_dir())


def _easyocr_model_folder() -> Path:
    """Where EasyOCR keeps its downloads (easyocr 1.7.2: config.py, `MODULE_PATH`; `Reader`)."""
    module_path = os.environ.get("EASYOCR_MODULE_PATH") or os.environ.get("MODULE_PATH")
    return (Path(module_path) if module_path else Path.home() / ".EasyOCR") / "model"


def _rapidocr_model_folder() -> Path | None:
    """The models folder of the installed rapidocr, found without importing it."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "models"


def _first_verified(model: str, candidates: Sequence[Path], expected: str, fix: str) -> Path:
    """The first candidate that exists, if its SHA-256 is the expected one.

    Raises:
        WeightsError: If none exists, or the first that does has another checksum.
    """
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        looked_at = ", ".join(str(candidate) for candidate in candidates) or "no installed package"
        raise WeightsError(
            f"{model} weights not found; looked at {looked_at}; "
            f"expected a file with sha256 {expected}; {fix}"
        )
    stat = path.stat()
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if found != expected:
        raise WeightsError(
            f"{model} weights at {path} have sha256 {found}, expected {expected}; "
            f"remove the file, then {fix}"
        )
    return path


@lru_cache(maxsize=16)
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001
    """SHA-256 of a file. Size and time are here for the cache: a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
