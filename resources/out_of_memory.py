"""Which errors mean that memory ran out, so that a smaller batch may fit.

Belongs here: recognising them. Does not belong here: what is done then. Imports neither torch nor
onnxruntime: an error of theirs can only come from a library that is loaded already.
"""

import sys
from collections.abc import Iterator

import cv2

# What torch 2.13.0 says in a plain RuntimeError.
_TORCH_TEXTS = (
    # c10/core/impl/alloc_cpu.cpp, `alloc_cpu`: on Linux and macOS, and on Windows.
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    # c10/cuda/CUDAException.cpp puts this prefix before cudaGetErrorString, whose word for
    # cudaErrorMemoryAllocation it is. Raised where not torch's own allocator asks for memory.
    "CUDA error: out of memory",
    # ATen/cuda/Exceptions.h, `TORCH_CUDABLAS_CHECK` and `AT_CUDNN_CHECK`; the names are those of
    # cublas_api.h, of cudnn_ops_infer.h before cuDNN 9 and of cudnn_graph.h since.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)

# oneDNN, torch's convolutions on a CPU, says no more than this (dnnl.hpp, `primitive::primitive`),
# and only this, when it gets no memory: seen with CRAFT in an address space that was too small.
# It has been said of other faults too; then a batch of one frame fails like any other.
_ONEDNN_MESSAGE = "could not create a primitive"

# onnxruntime 1.31.1: core/framework/bfc_arena.cc, and the C++ library's own word where the arena is
# off, as PP-OCR has it.
_ONNXRUNTIME_TEXTS = ("Failed to allocate memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the error that it was raised from, says that memory ran out.

    Memory of the device or of the machine alike, as torch, onnxruntime, NumPy, OpenCV and Python
    itself put it.
    """
    return any(_says_so(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: rapidocr raises its own `ResizeImgError` from OpenCV's error."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _says_so(error: BaseException) -> bool:
    # `torch.cuda.OutOfMemoryError` is the same class. An empty tuple matches nothing.
    torch_error = getattr(sys.modules.get("torch"), "OutOfMemoryError", ())
    # NumPy's `ArrayMemoryError` is a MemoryError.
    if isinstance(error, (MemoryError, torch_error)):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    message = str(error)
    # Its errors are RuntimeErrors by name only, and their module is its C library.
    if type(error).__module__.startswith("onnxruntime."):
        return any(text in message for text in _ONNXRUNTIME_TEXTS)
    if isinstance(error, RuntimeError):
        return message == _ONEDNN_MESSAGE or any(text in message for text in _TORCH_TEXTS)
    return False
