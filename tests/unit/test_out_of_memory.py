"""The real errors where a CPU can provoke them; their texts where it takes a GPU."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import cv2
import numpy as np
import pytest
import torch
from rapidocr.ch_ppocr_det.utils import DetPreProcess

from resources.out_of_memory import is_out_of_memory

TINY = np.zeros((2, 2, 3), np.uint8)

# Loads a detector, leaves its process so many MiB of address space more than it has, and says how
# one batch ended. A child: the limit would bind every test after it.
_STARVED = """
import resource, sys
import numpy as np
from resources.detectors import load_detector
from resources.out_of_memory import is_out_of_memory
name, left_mib = sys.argv[1], int(sys.argv[2])
detector = load_detector(name, device="cpu", thread_count=1)
detector.warm_up(64, 64)
with open("/proc/self/status") as status:
    size_kib = next(int(line.split()[1]) for line in status if line.startswith("VmSize"))
limit = size_kib * 2**10 + left_mib * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    detector.detect(np.zeros((1, 384, 640, 3), np.uint8))
except Exception as error:
    print(type(error).__name__, is_out_of_memory(error), error)
else:
    print("fits")
"""


def error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - which one is what is asked.
        call()
    return caught.value


def raised_from(cause: BaseException) -> BaseException:
    def fail() -> None:
        raise KeyError("outer") from cause

    return error_of(fail)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**55, dtype=torch.uint8),
        lambda: np.empty(2**55, np.uint8),
        lambda: bytearray(2**60),
        lambda: cv2.resize(TINY, (2**20, 2**20)),
        # rapidocr raises its own error, which says nothing, from OpenCV's.
        lambda: DetPreProcess(limit_side_len=2**20)(TINY),
    ],
    ids=["torch", "numpy", "python", "opencv", "rapidocr"],
)
def test_an_allocation_beyond_all_memory_is_out_of_memory(allocate: Callable[[], object]):
    assert is_out_of_memory(error_of(allocate))


def test_torchs_own_error_is_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("whatever it says"))


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "could not create a primitive",
    ],
)
def test_what_torch_says_elsewhere_is_out_of_memory(message: str):
    assert is_out_of_memory(RuntimeError(message))


def test_an_accelerators_error_is_out_of_memory_where_it_says_so():
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access"))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            "running Conv node: bfc_arena.cc:376 Failed to allocate memory for requested buffer",
            True,
        ),
        ("running Concat node. Status Message: std::bad_alloc", True),
        ("running Concat node. Status Message: shapes differ", False),
    ],
)
def test_onnxruntimes_errors_are_told_apart_by_what_they_say(status: str, expected: bool):
    # By its name: the type checker cannot see into the C library.
    error = import_module("onnxruntime.capi.onnxruntime_pybind11_state").RuntimeException(status)
    assert not isinstance(error, RuntimeError)
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not heed RLIMIT_AS")
@pytest.mark.parametrize(
    ("detector", "expected"),
    [("craft", "RuntimeError True "), ("ppocr", "RuntimeException True ")],
)
def test_a_detector_whose_memory_runs_out_says_so(detector: str, expected: str):
    done = subprocess.run(
        # Enough for what is fed to the network, too little for its layers.
        [sys.executable, "-c", _STARVED, detector, "50"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected), done.stdout


def test_the_cause_of_an_error_counts():
    assert is_out_of_memory(raised_from(MemoryError()))
    assert is_out_of_memory(raised_from(raised_from(torch.OutOfMemoryError(""))))
    assert not is_out_of_memory(raised_from(ValueError("no")))


def test_an_error_while_another_is_handled_is_judged_by_itself():
    def fail() -> None:
        try:
            np.empty(2**55, np.uint8)
        except MemoryError:
            raise KeyError("unrelated")  # noqa: B904 - the context without a cause is the point.

    assert not is_out_of_memory(error_of(fail))


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
        lambda: cv2.resize(TINY, (0, 0)),
        lambda: np.zeros(3) + np.zeros(4),
        lambda: (_ for _ in ()).throw(RuntimeError("could not create a primitive descriptor")),
        lambda: (_ for _ in ()).throw(ValueError("DefaultCPUAllocator: can't allocate memory")),
        lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    ],
)
def test_other_errors_are_not(call: Callable[[], object]):
    assert not is_out_of_memory(error_of(call))


def test_asking_imports_neither_torch_nor_onnxruntime():
    code = (
        "import sys; from resources.out_of_memory import is_out_of_memory;"
        "print(is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError('no')));"
        "print(*{'torch', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n\n"
