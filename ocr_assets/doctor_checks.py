"""What `ocr-assets doctor` knows of a machine, and what looks wrong with it: plain judgement.

Belongs here: the facts as data, and the way from facts to problems. Does not belong here: asking
the machine for the facts, and showing them (`doctor.py`). All memory is in MiB (2**20 bytes).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from ocr_assets.pools import MAX_LIMIT, OCR_POOL, PoolState
from resources.leases import SlotHolder
from resources.nvml import NvmlReading, NvmlState
from resources.vram import DevicePlan, Reserve, VramPlan
from resources.worker_memory import MemoryRecord


class Severity(StrEnum):
    """How bad a problem is. `error`: OCR cannot run as set, or something is broken."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Problem:
    """Something that looks wrong.

    Attributes:
        severity: How bad it is.
        what: What was found.
        why: Why that matters.
        fix: What to do about it.
    """

    severity: Severity
    what: str
    why: str
    fix: str


class Question(StrEnum):
    """What the machine is asked, where the answer may be an error or may not come at all."""

    DRIVER = "the driver"
    SLOTS = "who holds a slot"
    PLAN = "the plan"
    WEIGHTS = "the weights"
    INSTANCE = "the Dagster instance"
    MEASURED = "what was measured"
    USE = "recent use"


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch.

    Attributes:
        version: Its version.
        cuda: The CUDA that it was built with; None: without.
    """

    version: str
    cuda: str | None


@dataclass(frozen=True)
class InstanceState:
    """What the Dagster instance says of the OCR pool.

    Attributes:
        pool: The pool.
        is_op_granular: Whether pools limit steps, not runs.
        default_limit: What limits pools that nobody set; None: nothing.
        frees_slots: Whether a daemon frees the slots of runs that ended.
    """

    pool: PoolState
    is_op_granular: bool
    default_limit: int | None
    frees_slots: bool


@dataclass(frozen=True)
class DeviceUse:
    """What the samples of one device come to, over the shards scored last.

    Attributes:
        host: The machine.
        device_uuid: The device, or `cpu`.
        device_name: What people call it.
        shard_count: Shards that were scored on it.
        last_at: When the last sample was taken.
        peak_mib: Most memory in use on it by anybody, in MiB.
        mean_mib: The mean of that, in MiB.
        peak_process_mib: Most memory of one worker, in MiB; None where nothing tells.
        mean_process_mib: The mean of that, in MiB.
        mean_utilization_percent: How busy it was, in [0, 100]; None where nothing tells.
    """

    host: str
    device_uuid: str
    device_name: str
    shard_count: int
    last_at: datetime
    peak_mib: int
    mean_mib: int
    peak_process_mib: int | None
    mean_process_mib: int | None
    mean_utilization_percent: int | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found out.

    Attributes:
        host: The machine's name.
        core_count: Cores that this process may keep busy.
        available_mib: Main memory that this process may take, in MiB.
        detector: The detector of the settings.
        device: The device of the settings: `auto`, `cuda` or `cpu`.
        reserve: Memory that is never planned with.
        data_dir: The data directory, absolute, whether it exists or not.
        is_writable: Whether the data directory can be written, or made.
        has_catalog: Whether a discovery has finished there.
        torch: The installed torch; None: none.
        weights: The detector's weights, if they are the right ones.
        reading: What the driver says.
        commands: By process id the command line of workers and of who else is on a device; without
            those whose id does not exist here.
        holders: Who holds a slot.
        plan: The slots; None: there is no plan, and `unanswered` says why.
        dagster_home: Where the Dagster instance lies, whether it exists or not.
        instance: What it says; None: there is none yet, or `unanswered` says why.
        measured: What workers of this detector were measured to take.
        uses: What the devices carried lately.
        unanswered: By question why there is no answer.
    """

    host: str
    core_count: int
    available_mib: int
    detector: str
    device: str
    reserve: Reserve
    data_dir: Path
    is_writable: bool
    has_catalog: bool
    torch: TorchBuild | None
    weights: Path | None
    reading: NvmlReading
    commands: Mapping[int, str]
    holders: tuple[SlotHolder, ...]
    plan: VramPlan | None
    dagster_home: Path
    instance: InstanceState | None
    measured: tuple[MemoryRecord, ...]
    uses: tuple[DeviceUse, ...]
    unanswered: Mapping[Question, str]

    @property
    def may_use_cuda(self) -> bool:
        """Whether the settings let OCR run on a card."""
        return self.detector == "craft" and self.device != "cpu"


def problems(diagnosis: Diagnosis) -> list[Problem]:
    """What looks wrong, errors first."""
    found = [
        *_driver_problems(diagnosis),
        *_torch_problems(diagnosis),
        *_unanswered_problems(diagnosis),
        *_data_directory_problems(diagnosis),
        *_plan_problems(diagnosis),
        *_holder_problems(diagnosis),
        *_pool_problems(diagnosis),
        *_instance_problems(diagnosis),
    ]
    return sorted(found, key=lambda problem: problem.severity is not Severity.ERROR)


_OF_DRIVER = {
    NvmlState.NO_DRIVER: (
        Severity.WARNING,
        (
            "install NVIDIA's driver; start a container with its cards (docker run --gpus all); on"
            " a machine without a card set device to cpu"
        ),
    ),
    NvmlState.NO_DEVICES: (
        Severity.WARNING,
        (
            "let CUDA_VISIBLE_DEVICES name the cards that OCR may use, or unset it; where MIG is"
            " on, create instances (nvidia-smi mig); on a machine without a card set device to cpu"
        ),
    ),
    NvmlState.NO_PERMISSION: (
        Severity.ERROR,
        (
            "let this user read and write /dev/nvidia*; start a container with its cards"
            " (docker run --gpus all)"
        ),
    ),
    NvmlState.DEVICE_LOST: (
        Severity.ERROR,
        (
            "restart the machine, or reset the card (nvidia-smi --gpu-reset); the kernel's log"
            " tells why (dmesg, Xid)"
        ),
    ),
    NvmlState.ERROR: (Severity.ERROR, "mend what nvidia-smi says"),
    # All devices can be used, but something that was named has none.
    NvmlState.OK: (
        Severity.WARNING,
        "create instances where MIG is on (nvidia-smi mig), or turn it off",
    ),
}
"""By what the driver says: how bad that is, and what to do."""


def _driver_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    reading = diagnosis.reading
    if Question.DRIVER in diagnosis.unanswered or not reading.detail:
        return
    severity, fix = _OF_DRIVER[reading.state]
    if _lacks_its_card(diagnosis):
        yield Problem(
            Severity.ERROR,
            f"device is cuda, but there is no usable card: {reading.detail}",
            "no OCR process can start",
            fix.replace("set device to cpu", "set device to auto"),
        )
    elif diagnosis.may_use_cuda:
        why = "OCR uses only what is left" if reading.devices else "OCR runs on the CPU"
        yield Problem(severity, reading.detail, why, fix)
    elif severity is Severity.ERROR:
        yield Problem(
            Severity.WARNING, reading.detail, "OCR does not use the cards as it is set", fix
        )


def _lacks_its_card(diagnosis: Diagnosis) -> bool:
    return diagnosis.may_use_cuda and diagnosis.device == "cuda" and not diagnosis.reading.devices


def _torch_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    torch, cards = diagnosis.torch, diagnosis.reading.devices
    if diagnosis.detector != "craft":
        return
    if torch is None:
        yield Problem(
            Severity.ERROR,
            "torch is not installed",
            "detector craft runs on it",
            "install this package with its dependencies, or set detector to ppocr",
        )
    elif diagnosis.may_use_cuda and cards and torch.cuda is None:
        yield Problem(
            Severity.ERROR,
            f"torch {torch.version} was built without CUDA, but there is {cards[0].name}",
            "every OCR process fails when it starts up on the card",
            "install torch's CUDA build of the same version, or set device to cpu",
        )


_OF_UNANSWERED = {
    Question.DRIVER: (
        Severity.ERROR,
        "every plan begins by asking the driver, so OCR hangs too",
        "see whether nvidia-smi answers; if it does not, restart the machine",
    ),
    Question.SLOTS: (
        Severity.ERROR,
        "no OCR process can take a slot, and nothing can be planned",
        (
            "find who keeps the slots' directory locked (lslocks), and let that process go on or"
            " end it; or let this user write there"
        ),
    ),
    Question.PLAN: (
        Severity.ERROR,
        "no OCR process can start",
        "mend what is named",
    ),
    Question.WEIGHTS: (
        Severity.ERROR,
        "no OCR process can load its model",
        "let the setting weights name the file or its folder",
    ),
    Question.INSTANCE: (
        Severity.ERROR,
        "nothing can be run or recorded, and who claims the pool cannot be told",
        "mend the instance's dagster.yaml or its database",
    ),
    Question.MEASURED: (
        Severity.ERROR,
        "the plan goes by it",
        "remove worker_memory.parquet from the data directory, it is measured again",
    ),
    Question.USE: (
        Severity.WARNING,
        "it is shown here and taken into DuckDB",
        "score the shard again, or remove its file from usage/ in the data directory",
    ),
}
"""By question: how bad it is to have no answer, why, and what to do if the message does not say."""


def _unanswered_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    told: set[str] = set()
    for question, message in diagnosis.unanswered.items():
        if message in told or (question is Question.PLAN and _lacks_its_card(diagnosis)):
            continue
        told.add(message)
        severity, why, usual_fix = _OF_UNANSWERED[question]
        # Our own messages say first what is wrong, then how to mend it.
        what, _, fix = message.partition("; ")
        yield Problem(severity, what, why, fix or usual_fix)


def _data_directory_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    if not diagnosis.is_writable:
        yield Problem(
            Severity.ERROR,
            f"data directory {diagnosis.data_dir} cannot be written",
            "no result can be kept",
            "make it writable, or name another with --out or OCR_ASSETS_DATA_DIR",
        )


def _plan_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    plan = diagnosis.plan
    if plan is None or plan.slot_count:
        return
    # The one that is nearest to carrying a worker.
    device = max(plan.devices, key=lambda device: device.budget_mib)
    is_busy = device.budget_mib + device.strangers_mib >= plan.need_mib
    reserve = f"the reserve (reserve_mib is {diagnosis.reserve.mib})"
    yield Problem(
        Severity.ERROR,
        f"the plan has no slot: {_called(device)} has {device.budget_mib} MiB for OCR, a worker"
        f" needs {plan.need_mib} MiB",
        f"others use {device.strangers_mib} MiB there, so OCR waits or fails"
        if is_busy
        else "no OCR process can start",
        f"free at least {plan.need_mib - device.budget_mib} MiB there, or lower {reserve}"
        if is_busy
        else f"lower {reserve}, or run elsewhere: device cpu, or detector ppocr",
    )


def _called(device: DevicePlan) -> str:
    return device.uuid if device.name == device.uuid else f"{device.name} ({device.uuid})"


def _holder_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    plan = diagnosis.plan
    counts = Counter(holder.device_uuid for holder in diagnosis.holders)
    for device in () if plan is None else plan.devices:
        if counts[device.uuid] > device.slot_count:
            yield Problem(
                Severity.WARNING,
                f"{counts[device.uuid]} workers are on {_called(device)}, the plan has"
                f" {device.slot_count}",
                "its memory has become scarce since they started; no other starts until they are"
                " fewer",
                "wait until some are done, or end what else takes its memory",
            )
    for holder in diagnosis.holders:
        if holder.pid not in diagnosis.commands:
            called = "of unknown id" if holder.pid is None else f"that calls itself {holder.pid}"
            yield Problem(
                Severity.WARNING,
                f"slot {holder.slot_index} of {holder.device_uuid} is held by a process {called}"
                " and is not seen here",
                "it lives, for the kernel says so, but what memory is its own has to be guessed",
                "look for it in other containers and under other users (lslocks)",
            )


def _pool_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    if diagnosis.instance is None:
        return
    pool = diagnosis.instance.pool
    yield from _limit_problems(diagnosis, pool, diagnosis.instance.default_limit)
    for claims, verb in ((pool.claims, "claim"), (pool.waiting, "wait for")):
        leaks = sorted({claim.run_id for claim in claims if claim.is_over})
        if leaks:
            yield Problem(
                Severity.WARNING,
                f"runs that are over {verb} slots of pool {OCR_POOL}: {', '.join(leaks)}",
                "whoever queues behind them waits longer, or for ever",
                "start any run or the daemon, which free them; or free them in Dagster's UI"
                " (Deployment, Concurrency)",
            )


def _limit_problems(
    diagnosis: Diagnosis, pool: PoolState, default_limit: int | None
) -> Iterator[Problem]:
    planned = None if diagnosis.plan is None else max(1, diagnosis.plan.slot_count)
    if pool.limit is None or pool.is_default:
        if diagnosis.has_catalog:
            limit = pool.limit or default_limit
            yield Problem(
                Severity.WARNING,
                f"the limit of pool {OCR_POOL} was not set, though there was a discovery",
                "until it is, Dagster runs as many OCR steps as are started"
                if limit is None
                else f"until it is, Dagster runs at most {limit} OCR steps at once",
                "materialize videos again; and let DAGSTER_HOME name the same instance everywhere",
            )
    elif pool.by_hand == 0:
        yield Problem(
            Severity.ERROR,
            f"pool {OCR_POOL} was set to 0 by hand",
            "no OCR step may run",
            "raise or delete its limit in Dagster's UI (Deployment, Concurrency)",
        )
    elif planned is not None:
        yield from _differences(pool, pool.limit, planned)


def _differences(pool: PoolState, limit: int, planned: int) -> Iterator[Problem]:
    if pool.by_hand is not None and pool.by_hand < planned:
        yield Problem(
            Severity.WARNING,
            f"pool {OCR_POOL} is limited to {pool.by_hand} by hand, the plan is {planned}",
            f"memory would carry {planned - pool.by_hand} more",
            "delete its limit in Dagster's UI (Deployment, Concurrency), if that is not meant",
        )
    expected = min(planned, MAX_LIMIT if pool.by_hand is None else pool.by_hand)
    if limit != min(expected, MAX_LIMIT):
        yield Problem(
            Severity.WARNING,
            f"the limit of pool {OCR_POOL} is {limit}, the plan is {planned}",
            "until it follows, Dagster starts too many or too few; the slots still keep to the"
            " plan",
            "nothing: the next run sets it, or a running daemon's sensor ocr_pool_limit",
        )


def _instance_problems(diagnosis: Diagnosis) -> Iterator[Problem]:
    instance = diagnosis.instance
    if instance is None:
        return
    config = diagnosis.dagster_home / "dagster.yaml"
    if not instance.is_op_granular:
        yield Problem(
            Severity.WARNING,
            "the instance's pools limit runs, not steps",
            "Dagster keeps that limit only for runs that its daemon starts",
            f"set concurrency.pools.granularity to op in {config}",
        )
    if instance.default_limit is None:
        yield Problem(
            Severity.WARNING,
            "the instance has no default limit for pools",
            "where the OCR pool is not set yet, Dagster runs any number of steps",
            f"set concurrency.pools.default_limit to 1 in {config}",
        )
    if not instance.frees_slots:
        yield Problem(
            Severity.WARNING,
            "the instance does not free the pool slots of killed runs",
            "until another run looks after them, they stay claimed",
            "set run_monitoring.enabled to true and"
            f" run_monitoring.free_slots_after_run_end_seconds to 5 in {config}",
        )
