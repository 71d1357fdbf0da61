"""CUDA in this process: bound to one device, its allocator capped, its failures told apart.

Belongs here: every call of `torch.cuda`. Does not belong here: which device it is to be
(`leases.py`), and how much memory it may use (`vram.py`). All memory is in MiB (2**20 bytes).
"""

import os

from resources.nvml import read_devices

CONTEXT_MIB = 512
"""What CUDA is reckoned to take per process beside torch's allocator (context, kernels, cuDNN),
where the driver does not tell, as in containers. An allowance: elsewhere the driver's figure is
used."""

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class CudaUnusableError(Exception):
    """NVML shows the card, but torch cannot compute on it. The message says why and what to do."""


def bind_device(uuid: str) -> str:
    """Makes one device the only one that CUDA shows this process, and starts CUDA up on it.

    Frames of many sizes fragment the allocator, and batches that halve and grow do so more; with
    expandable segments (PyTorch's notes, "CUDA semantics") freed blocks of one size serve another.

    Args:
        uuid: Of a GPU or a MIG instance.

    Returns:
        The device's name in torch, `cuda:0`.

    Raises:
        CudaUnusableError: If torch has no CUDA, or its CUDA does not start on this device.
    """
    # By UUID, so that CUDA's own order of devices cannot matter; before CUDA starts up here.
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    import torch

    if torch.version.cuda is None:
        raise CudaUnusableError(
            f"the driver shows {uuid}, but torch {torch.__version__} was built without CUDA;"
            " install torch's CUDA build, or set device to cpu"
        )
    if not torch.cuda.is_available():
        raise CudaUnusableError(
            f"the driver shows {uuid}, but torch {torch.__version__} cannot use it; its CUDA"
            f" {torch.version.cuda} may need a newer driver (see nvidia-smi), or set device to cpu"
        )
    torch.cuda.init()
    return "cuda:0"


def cap_allocator(limit_mib: int) -> None:
    """Makes torch raise out-of-memory rather than let its allocator hold more than `limit_mib`."""
    import torch

    total_bytes = torch.cuda.get_device_properties(0).total_memory
    cap_bytes = max(1, limit_mib) * 2**20
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total_bytes), 0)


def context_mib() -> int:
    """What this process uses on its device beside torch's allocator, in MiB."""
    held_mib = [
        process.used_mib
        for device in read_devices().devices
        for process in device.processes
        if process.pid == os.getpid() and process.used_mib is not None
    ]
    if not held_mib:
        return CONTEXT_MIB
    return max(0, sum(held_mib) - allocator_mib())


def allocator_mib() -> int:
    """What torch's allocator holds now in this process, in MiB."""
    import torch

    return torch.cuda.memory_reserved(0) // 2**20


def free_mib() -> int:
    """What the device has left, in MiB."""
    import torch

    free_bytes, _total_bytes = torch.cuda.mem_get_info(0)
    return free_bytes // 2**20


def peak_allocator_mib() -> int:
    """The most that torch's allocator has held so far in this process, in MiB."""
    import torch

    return torch.cuda.max_memory_reserved(0) // 2**20


def empty_cache() -> None:
    """Gives cached blocks back to the driver, where other processes can have them."""
    import torch

    torch.cuda.empty_cache()
