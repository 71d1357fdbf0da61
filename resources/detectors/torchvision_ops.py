"""Lets `torchvision`, and so `easyocr`, be imported beside a torch build it was not compiled for.

Belongs here: that one repair. Does not belong here: anything that uses torchvision.
"""

import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

# The operators for which torchvision 0.28.0 registers fakes without asking whether its C++ library
# loaded (torchvision/_meta_registrations.py, `register_fake`). The schemas are those of
# torchvision/csrc/ops/nms.cpp and .../quantized/cpu/qnms_kernel.cpp.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def ensure_torchvision_imports() -> torch.library.Library | None:
    """Defines the two operators without which `import torchvision` fails, where they are missing.

    The registry's torchvision wheel is a CUDA build. Beside a CPU-only torch its C++ library does
    not load (it wants libraries that only come with a CUDA torch), and `import torchvision` then
    fails with `operator torchvision::nms does not exist`: it registers fakes for `nms` and `qnms`
    whether or not the library that defines them is there. Two bare schemas are enough to import.
    They have no kernels, so calling them still fails; EasyOCR's detector calls neither.

    Where torchvision's library does load, it is loaded here, exactly as `import torchvision` would
    a moment later, and nothing is defined: two definitions of one operator would be an error.

    Call it before `import easyocr`. Calling it again does nothing.

    Returns:
        The library that holds the definitions; they last as long as it, and the cache keeps it.
        None where there was nothing to define.
    """
    if not _missing():
        return None
    _load_extension()
    missing = _missing()
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(_SCHEMAS[name])
    return library


def _missing() -> list[str]:
    """The names in `_SCHEMAS` that torch does not know."""
    return [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def _load_extension() -> None:
    """Loads torchvision's C++ library, without importing torchvision, if torch can take it."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_C{suffix}"
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except OSError:
                # Compiled for another torch. torchvision ignores this too (extension.py).
                return
            return
