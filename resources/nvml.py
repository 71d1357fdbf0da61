"""What NVIDIA's driver says of the GPUs that this process may use. The only importer of pynvml.

Belongs here: reading NVML and `CUDA_VISIBLE_DEVICES`, and putting every way this can fail into a
state. Does not belong here: any decision on the figures (`vram.py`). Importing this module loads
neither pynvml nor the driver's library. All memory is in MiB (2**20 bytes).
"""

import os
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psutil

from resources.vram import DeviceMemory, strangers_mib

_BYTES_PER_MIB = 2**20


class NvmlState(StrEnum):
    """How reading the GPUs went. Where it is not `ok`, the devices listed can still be used."""

    OK = "ok"
    NO_DRIVER = "no_driver"
    NO_DEVICES = "no_devices"
    NO_PERMISSION = "no_permission"
    DEVICE_LOST = "device_lost"
    ERROR = "error"


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU.

    Attributes:
        pid: Its process id. In a container the driver gives the host's ids, or lists nothing.
        used_mib: GPU memory that it uses, in MiB; None where the driver does not tell.
    """

    pid: int
    used_mib: int | None


@dataclass(frozen=True)
class GpuDevice:
    """A GPU, or a MIG instance where its GPU is cut into such.

    Attributes:
        uuid: `GPU-…` or `MIG-…`, as `CUDA_VISIBLE_DEVICES` takes it.
        index: NVML's index of the physical GPU, which is in the order of PCI buses.
        name: The product's name.
        total_mib: All memory, in MiB.
        free_mib: Memory that can be had now, in MiB.
        used_mib: Memory in use, in MiB, with what the driver keeps for itself.
        utilization_percent: Share of the last sampling period in which a kernel ran, in [0, 100];
            None where the driver does not tell (as for MIG instances).
        processes: Who runs on it, by process id; empty too where the driver does not tell.
        is_mig: Whether this is a MIG instance.
        parent_uuid: The GPU that a MIG instance is a part of; None for a GPU.
    """

    uuid: str
    index: int
    name: str
    total_mib: int
    free_mib: int
    used_mib: int
    utilization_percent: int | None
    processes: tuple[GpuProcess, ...]
    is_mig: bool
    parent_uuid: str | None


@dataclass(frozen=True)
class NvmlReading:
    """All that was read at once.

    Attributes:
        state: `ok`, or the first thing that was wrong.
        devices: The devices that can be used, in the order of `CUDA_VISIBLE_DEVICES`.
        detail: In words what was wrong, with the GPU it was wrong with; empty if nothing was.
    """

    state: NvmlState
    devices: tuple[GpuDevice, ...]
    detail: str


@dataclass(frozen=True)
class DeviceUsage:
    """What one device carried at one moment.

    Attributes:
        total_mib: All its memory, in MiB.
        used_mib: Memory in use by anybody, in MiB.
        own_mib: Memory that this process uses on it, in MiB; None where that is not told, as in a
            container, where the driver knows this process by another id.
        utilization_percent: How busy it was, in [0, 100]; None where that is not told.
    """

    total_mib: int
    used_mib: int
    own_mib: int | None
    utilization_percent: int | None


@dataclass(frozen=True)
class _Card:
    """A physical GPU: what CUDA can use of it, or why nothing. A lost one may not tell its UUID."""

    index: int
    uuid: str | None
    devices: tuple[GpuDevice, ...] = ()
    state: NvmlState = NvmlState.OK
    problem: str = ""


def read_devices(environ: Mapping[str, str] | None = None) -> NvmlReading:
    """Reads the GPUs that a CUDA process with this environment would see.

    `CUDA_VISIBLE_DEVICES` is honoured as CUDA does, with two differences. All MIG instances of a
    visible GPU are listed, while CUDA gives a process no more than one: each worker is to get its
    own. And indices are in NVML's order, that of PCI buses, while CUDA's own default
    (`CUDA_DEVICE_ORDER=FASTEST_FIRST`) may number uneven cards otherwise; hand workers a UUID.

    Compute instances that share one MIG GPU instance are listed each with all of its memory.

    Args:
        environ: Where to look for `CUDA_VISIBLE_DEVICES`; by default the process's environment.

    Returns:
        The reading. A missing driver, a missing permission and a lost GPU are states of it, never
        exceptions, and one GPU's failure does not hide the others.
    """
    import pynvml

    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    try:
        with _nvml():
            cards = [_read_card(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return NvmlReading(_state_of(error), (), f"NVML does not start: {error}")
    chosen = cards if visible is None else _choose(cards, visible)
    return _reading(cards, chosen, visible)


@contextmanager
def device_reader(uuid: str) -> Generator[Callable[[], DeviceUsage | None], None, None]:
    """Keeps NVML open while the body runs, so that one device can be read often and cheaply.

    NVML counts who opened it: `read_devices` may open and close it meanwhile.

    Args:
        uuid: NVML's, in full, of a GPU or of a MIG instance.

    Yields:
        A function that reads the device as it is now, for one thread. It gives None where there is
        no driver or no such device and where the device is lost; one that is back is read again.
    """
    import pynvml

    with ExitStack() as stack:
        # If it does not open, every read answers "uninitialized", which is None like the others.
        with suppress(pynvml.NVMLError):
            stack.enter_context(_nvml())
        yield _DeviceReader(uuid)


def device_memory(device: GpuDevice, *, own_pids: Collection[int], need_mib: int) -> DeviceMemory:
    """The device as `plan_slots` takes it.

    Args:
        device: As read.
        own_pids: Process ids of our workers that hold a slot on it; they are no strangers.
        need_mib: Memory that one slot stands for, in MiB.
    """
    # An id that does not exist here is from another namespace, so nothing tells whose it is.
    process_mib = {
        process.pid: process.used_mib
        for process in device.processes
        if psutil.pid_exists(process.pid)
    }
    strangers = strangers_mib(
        used_mib=device.used_mib, process_mib=process_mib, own_pids=own_pids, need_mib=need_mib
    )
    return DeviceMemory(device.uuid, device.name, device.total_mib, strangers)


class _DeviceReader:
    """Reads one device as often as it is called, in one thread."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._handle: Any = None

    def __call__(self) -> DeviceUsage | None:
        import pynvml

        try:
            if self._handle is None:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            return _read_usage(self._handle)
        except pynvml.NVMLError:
            # A device that fell off the bus and is back has another handle.
            self._handle = None
            return None


@contextmanager
def _nvml() -> Generator[None, None, None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _reading(cards: Sequence[_Card], chosen: Sequence[_Card], visible: str | None) -> NvmlReading:
    devices = tuple(device for card in chosen for device in card.devices)
    problems = [card.problem for card in chosen if card.problem]
    states = [card.state for card in chosen if card.state is not NvmlState.OK]
    if not devices and not chosen:
        problems.append(
            "the driver lists no GPU"
            if not cards
            else f"CUDA_VISIBLE_DEVICES={visible!r} shows none of the {len(cards)} GPUs"
        )
    if not devices:
        states.append(NvmlState.NO_DEVICES)
    return NvmlReading(states[0] if states else NvmlState.OK, devices, "; ".join(problems))


def _read_card(index: int) -> _Card:
    import pynvml

    uuid = None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        if not _is_mig_enabled(handle):
            return _Card(index, uuid, (_read_device(handle, index, None),))
        instances = tuple(_read_device(mig, index, uuid) for mig in _mig_handles(handle))
    except pynvml.NVMLError as error:
        return _Card(
            index, uuid, (), _state_of(error), f"GPU {index} ({uuid or 'UUID unknown'}): {error}"
        )
    problem = "" if instances else f"GPU {index} ({uuid}): MIG is on, but no instance exists"
    return _Card(index, uuid, instances, problem=problem)


def _read_device(handle: Any, index: int, parent_uuid: str | None) -> GpuDevice:
    import pynvml

    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuDevice(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        total_mib=memory.total // _BYTES_PER_MIB,
        free_mib=memory.free // _BYTES_PER_MIB,
        used_mib=-(-memory.used // _BYTES_PER_MIB),
        utilization_percent=_read_utilization(handle),
        processes=_read_processes(handle),
        is_mig=parent_uuid is not None,
        parent_uuid=parent_uuid,
    )


def _read_usage(handle: Any) -> DeviceUsage:
    import pynvml

    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
    own = [process for process in _read_processes(handle) if process.pid == os.getpid()]
    return DeviceUsage(
        total_mib=memory.total // _BYTES_PER_MIB,
        used_mib=-(-memory.used // _BYTES_PER_MIB),
        own_mib=own[0].used_mib if own else None,
        utilization_percent=_read_utilization(handle),
    )


def _read_utilization(handle: Any) -> int | None:
    import pynvml

    try:
        rates: Any = pynvml.nvmlDeviceGetUtilizationRates(handle)
    except pynvml.NVMLError as error:
        _raise_if_lost(error)
        return None
    return rates.gpu


def _read_processes(handle: Any) -> tuple[GpuProcess, ...]:
    import pynvml

    # One that computes and draws stands in both lists, with the same figure.
    listed: dict[int, GpuProcess] = {}
    listings: tuple[Callable[[Any], list[Any]], ...] = (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    )
    for list_processes in listings:
        try:
            processes = list_processes(handle)
        except pynvml.NVMLError as error:
            _raise_if_lost(error)
            continue
        for process in processes:
            used = process.usedGpuMemory
            used_mib = None if used is None else -(-used // _BYTES_PER_MIB)
            listed[process.pid] = GpuProcess(process.pid, used_mib)
    return tuple(listed[pid] for pid in sorted(listed))


def _is_mig_enabled(handle: Any) -> bool:
    import pynvml

    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        # Cards that know no MIG and drivers older than MIG fail differently; neither has it on.
        _raise_if_lost(error)
        return False
    return current == pynvml.NVML_DEVICE_MIG_ENABLE


def _mig_handles(handle: Any) -> Iterator[Any]:
    import pynvml

    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except pynvml.NVMLError as error:
            # The count is of places; most have no instance.
            if _code_of(error) != pynvml.NVML_ERROR_NOT_FOUND:
                raise
            continue
        yield mig


def _raise_if_lost(error: Exception) -> None:
    if _state_of(error) is NvmlState.DEVICE_LOST:
        raise error


def _code_of(error: Any) -> int:
    # pynvml sets the attribute where no type checker sees it.
    return error.value


def _state_of(error: Exception) -> NvmlState:
    import pynvml

    states = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlState.NO_DRIVER,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
        pynvml.NVML_ERROR_GPU_NOT_FOUND: NvmlState.NO_DEVICES,
        pynvml.NVML_ERROR_NO_PERMISSION: NvmlState.NO_PERMISSION,
        pynvml.NVML_ERROR_GPU_IS_LOST: NvmlState.DEVICE_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED: NvmlState.DEVICE_LOST,
    }
    return states.get(_code_of(error), NvmlState.ERROR)


def _choose(cards: Sequence[_Card], visible: str) -> list[_Card]:
    """The cards that `CUDA_VISIBLE_DEVICES` names, reduced to the MIG instances that it names.

    The rules are those of the CUDA Programming Guide ("CUDA Environment Variables") and, for what
    it leaves open (text after an index, mixed kinds, repetitions), those that PyTorch found out
    (torch/cuda/__init__.py, `_parse_visible_devices`, `_transform_uuid_to_ordinals`): the list ends
    at the first entry that names nothing, and naming one device twice shows none.
    """
    kind = visible[:4]
    find = {"GPU-": _find_gpu, "MIG-": _find_mig}.get(kind)
    nameless = [card for card in cards if card.uuid is None]
    chosen: list[_Card] = []
    for entry in visible.split(","):
        if find is None:
            card = _find_index(cards, entry)
        elif not entry.startswith(kind):
            card = None
        else:
            # What matches nothing may name the card that was lost, and must not hide those after.
            card = find(cards, entry) or (nameless.pop(0) if nameless else None)
        if card is None:
            break
        if card in chosen:
            return []
        chosen.append(card)
    return chosen


def _find_index(cards: Sequence[_Card], entry: str) -> _Card | None:
    match = re.match(r"\s*\+?([0-9]+)", entry)
    index = int(match[1]) if match else len(cards)
    return cards[index] if index < len(cards) else None


def _find_gpu(cards: Sequence[_Card], entry: str) -> _Card | None:
    matches = [card for card in cards if card.uuid and card.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _find_mig(cards: Sequence[_Card], entry: str) -> _Card | None:
    matches = [
        _Card(card.index, card.uuid, (device,))
        for card in cards
        for device in card.devices
        if device.is_mig and device.uuid.startswith(entry)
    ]
    return matches[0] if len(matches) == 1 else None
