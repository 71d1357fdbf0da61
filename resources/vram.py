"""How many OCR workers each device carries, and in words why: plain arithmetic on memory figures.

Belongs here: the plan of slots per device, for GPUs and for the CPU. Does not belong here: asking a
driver for the figures (`nvml.py`), holding a slot (`leases.py`), and anything of Dagster or torch.
All memory is in MiB (2**20 bytes).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

DEFAULT_NEED_MIB = 2048
"""What one EasyOCR worker takes until its peak was measured, in MiB: about 2 GB per model, as
reported to Data-Juicer (github.com/datajuicer/data-juicer, thread 353)."""

CPU_DEVICE = "cpu"
"""The pseudo device whose slots workers take on a machine without a usable GPU."""


@dataclass(frozen=True)
class DeviceMemory:
    """One device as the plan sees it.

    Attributes:
        uuid: NVML's UUID of the GPU or MIG instance.
        name: What people call it.
        total_mib: All its memory, in MiB.
        strangers_mib: What is in use, in MiB, and not by our own workers; see `strangers_mib`.
    """

    uuid: str
    name: str
    total_mib: int
    strangers_mib: int


@dataclass(frozen=True)
class Reserve:
    """Memory that no worker is planned on, per device: the larger of the two figures.

    Attributes:
        mib: In MiB, at least 0.
        share: As a share of the device's total memory, in [0, 1].

    Raises:
        ValueError: If a figure is out of its range.
    """

    mib: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.mib < 0 or not 0 <= self.share <= 1:
            raise ValueError(
                "a reserve is at least 0 MiB and its share lies in [0, 1], "
                f"got {self.mib = }, {self.share = }"
            )

    def on(self, total_mib: int) -> int:
        """The reserve on a device of `total_mib`, in MiB."""
        return max(self.mib, round(total_mib * self.share))


@dataclass(frozen=True)
class DevicePlan:
    """What one device is to carry.

    Attributes:
        uuid: The device.
        name: What people call it.
        slot_count: How many workers may run on it at once.
        budget_mib: Memory that our workers may use together, in MiB.
        strangers_mib: Memory that others use now, and that would else be theirs too, in MiB.
        explanation: How the figures came about.
    """

    uuid: str
    name: str
    slot_count: int
    budget_mib: int
    strangers_mib: int
    explanation: str


@dataclass(frozen=True)
class VramPlan:
    """What a machine is to carry.

    Attributes:
        devices: One plan per device, in the order the devices were given.
        need_mib: Memory that each slot stands for, in MiB.
        explanation: How the figures came about, one line per device and a last one for the sum.
    """

    devices: tuple[DevicePlan, ...]
    need_mib: int
    explanation: str

    @property
    def slot_count(self) -> int:
        """How many workers may run at once on all devices together."""
        return sum(device.slot_count for device in self.devices)

    @property
    def slots(self) -> dict[str, int]:
        """Slots by device UUID, as `SlotLeases` takes them."""
        return {device.uuid: device.slot_count for device in self.devices}


def strangers_mib(
    *,
    used_mib: int,
    process_mib: Mapping[int, int | None],
    own_pids: Collection[int],
    need_mib: int,
) -> int:
    """What others hold of a device: the memory in use less what our own workers hold.

    Where the driver says nothing of a worker (in containers it lists the host's process ids, or
    none), the worker is credited with its slot, but only out of memory that no listed process
    accounts for. So a worker that has yet to load its model never hides a stranger that the driver
    does list.

    Args:
        used_mib: All memory in use on the device, in MiB, the driver's own included.
        process_mib: By process id what it uses, in MiB; None where the driver does not tell.
            Only processes that exist in our own process-id namespace.
        own_pids: Process ids of our workers that hold a slot on this device.
        need_mib: What one slot stands for, in MiB.

    Returns:
        MiB, in [0, used_mib].
    """
    known_mib = {pid: used for pid, used in process_mib.items() if used is not None}
    own_mib = sum(known_mib.get(pid, 0) for pid in set(own_pids))
    unlisted_count = len(set(own_pids) - known_mib.keys())
    unaccounted_mib = max(0, used_mib - sum(known_mib.values()))
    return max(0, used_mib - own_mib - min(unlisted_count * need_mib, unaccounted_mib))


def plan_slots(
    devices: Sequence[DeviceMemory],
    *,
    need_mib: int,
    reserve: Reserve,
    max_slots: int | None = None,
) -> VramPlan:
    """Plans how many workers each GPU carries.

    Per device: budget = total - reserve - strangers; slots = floor(budget / need). Where that comes
    to more than the cap, each slot in turn goes to the device that then has most memory per slot,
    so that uneven cards share the cut in proportion.

    Args:
        devices: The visible devices, each once.
        need_mib: What one worker needs at its peak, in MiB, at least 1.
        reserve: What to leave alone on each device.
        max_slots: Cap on the workers of all devices together, at least 0; None for no cap.

    Raises:
        ValueError: If `need_mib` or `max_slots` is out of its range.
    """
    _check(need_mib, max_slots)
    budgets_mib = [
        max(0, device.total_mib - reserve.on(device.total_mib) - device.strangers_mib)
        for device in devices
    ]
    carried = [budget_mib // need_mib for budget_mib in budgets_mib]
    dealt = _deal(budgets_mib, carried, max_slots)
    plans = tuple(
        DevicePlan(
            device.uuid,
            device.name,
            slot_count,
            budget_mib,
            device.strangers_mib,
            f"{device.name} ({device.uuid}): {device.total_mib} MiB in total "
            f"- {reserve.on(device.total_mib)} MiB reserve "
            f"- {device.strangers_mib} MiB used by others "
            f"= {budget_mib} MiB for OCR, which carries {_count(most, 'slot')} of {need_mib} MiB"
            + (f", {slot_count} after the cap" if slot_count < most else ""),
        )
        for device, budget_mib, most, slot_count in zip(
            devices, budgets_mib, carried, dealt, strict=True
        )
    )
    return VramPlan(plans, need_mib, _explain(plans, need_mib, max_slots))


def plan_cpu_slots(
    *,
    core_count: int,
    available_mib: int,
    need_mib: int,
    threads_per_slot: int,
    max_slots: int | None = None,
    strangers_mib: int = 0,
) -> VramPlan:
    """Plans how many workers a machine without a usable GPU carries, on the device `cpu`.

    As many as the cores have threads for (one at least) and as the memory has room for.

    Args:
        core_count: Cores that we may use, at least 1.
        available_mib: Main memory that workers may use, in MiB.
        need_mib: What one worker needs at its peak, in MiB, at least 1.
        threads_per_slot: Threads that one worker computes with, at least 1.
        max_slots: Cap on the workers, at least 0; None for no cap.
        strangers_mib: Main memory that others use now, in MiB; it is not in `available_mib`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(need_mib, max_slots)
    if core_count < 1 or threads_per_slot < 1:
        raise ValueError(f"both must be at least 1, got {core_count = }, {threads_per_slot = }")
    by_cores = max(1, core_count // threads_per_slot)
    by_memory = max(0, available_mib) // need_mib
    carried = min(by_cores, by_memory)
    slot_count = carried if max_slots is None else min(carried, max_slots)
    explanation = (
        f"CPU: {_count(core_count, 'core')} at {_count(threads_per_slot, 'thread')} per slot carry "
        f"{by_cores}; {available_mib} MiB of main memory carry {by_memory} of {need_mib} MiB; "
        f"the smaller is {_count(carried, 'slot')}"
        + (f", {slot_count} after the cap" if slot_count < carried else "")
    )
    plans = (
        DevicePlan(
            CPU_DEVICE, CPU_DEVICE, slot_count, max(0, available_mib), strangers_mib, explanation
        ),
    )
    return VramPlan(plans, need_mib, _explain(plans, need_mib, max_slots))


def _check(need_mib: int, max_slots: int | None) -> None:
    if need_mib < 1:
        raise ValueError(f"a worker needs at least 1 MiB, got {need_mib = }")
    if max_slots is not None and max_slots < 0:
        raise ValueError(f"a cap is at least 0, or None for no cap, got {max_slots = }")


def _deal(
    budgets_mib: Sequence[int], carried: Sequence[int], max_slots: int | None
) -> Sequence[int]:
    if max_slots is None or sum(carried) <= max_slots:
        return carried
    dealt = [0] * len(carried)
    for _ in range(max_slots):
        open_devices = [i for i, most in enumerate(carried) if dealt[i] < most]
        roomiest = max(open_devices, key=lambda i: budgets_mib[i] / (dealt[i] + 1))
        dealt[roomiest] += 1
    return dealt


def _explain(plans: Sequence[DevicePlan], need_mib: int, max_slots: int | None) -> str:
    if not plans:
        return "No GPU is visible, so none carries a slot."
    slot_count = sum(plan.slot_count for plan in plans)
    total = f"Together {_count(slot_count, 'slot')} of {need_mib} MiB"
    total += "; no cap is set." if max_slots is None else f"; the cap is {max_slots}."
    if slot_count == 0 and max_slots != 0:
        total += f" Nothing has {need_mib} MiB to spare."
    return "\n".join([*(plan.explanation + "." for plan in plans), total])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
