"""`ocr-assets doctor`: asks the machine what it has, and shows it.

Belongs here: the questions, each with a deadline, and the tables. Does not belong here: any
judgement on the answers (`doctor_checks.py`). Nothing here writes to the data directory, makes an
instance, loads a model or imports torch.
"""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from dagster._check import CheckError
from dagster._core.instance.config import PoolGranularity
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from ocr_assets.console import console, facts, table
from ocr_assets.definitions import build_gpu_resource
from ocr_assets.doctor_checks import (
    DeviceUse,
    Diagnosis,
    InstanceState,
    Problem,
    Question,
    Severity,
    TorchBuild,
)
from ocr_assets.instance import open_instance
from ocr_assets.pools import PoolClaim, read_ocr_limit
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.detectors import detector_spec, require_weights
from resources.detectors.base import DetectorSpec, WeightsError
from resources.host import available_memory_mib, usable_core_count
from resources.memory_records import MemoryRecordsError
from resources.nvml import GpuDevice, NvmlReading, NvmlState, read_devices
from resources.planner import NoDeviceError, dtype_of, slot_holders
from resources.usage_files import USAGE_SCHEMA
from resources.vram import Reserve
from resources.worker_memory import MemoryRecord

Answer = TypeVar("Answer")
Others = TypeVar("Others")

DEADLINES_SECONDS = {
    # Without its persistence daemon a driver starts up every card first, which takes seconds each.
    Question.DRIVER: 30.0,
    # Takes milliseconds; whoever keeps the slots' directory locked longer was stopped.
    Question.SLOTS: 5.0,
    Question.PLAN: 30.0,
    Question.WEIGHTS: 30.0,
    Question.INSTANCE: 20.0,
    Question.MEASURED: 10.0,
    Question.USE: 10.0,
}
"""How long an answer may take, so that the doctor never hangs where the patient does."""

RECENT_SHARDS = 100
"""Recent use is that of so many shards, the ones that were scored last."""

LISTED_MEASUREMENTS = 12
"""More of them are left to DuckDB."""

LISTED_CHARACTERS = 40
"""Of a command line."""

ANTICIPATED = (
    OSError,
    NoDeviceError,
    MemoryRecordsError,
    WeightsError,
    pa.ArrowException,
    dg.DagsterError,
    CheckError,
    SQLAlchemyError,
    yaml.YAMLError,
)
"""How the questions fail where something is wrong with the machine, not with this program."""


def diagnose(settings: Settings) -> Diagnosis:
    """Asks the machine everything; changes nothing.

    Raises:
        DagsterHomeError: If DAGSTER_HOME is set to what is no absolute path of a folder.
    """
    unanswered: dict[Question, str] = {}

    def ask(question: Question, answer: Callable[[], Answer], otherwise: Others) -> Answer | Others:
        return _ask(question, answer, otherwise, unanswered)

    data = DataDirectory(settings.data_dir)
    home = Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home).absolute()
    nothing = NvmlReading(NvmlState.ERROR, (), "")
    reading = ask(Question.DRIVER, read_devices, nothing)
    holders = ask(Question.SLOTS, lambda: tuple(slot_holders()), ())
    plan = None
    if not unanswered:
        # Its first two questions are those above.
        plan = ask(Question.PLAN, build_gpu_resource(settings).plan, None)
    spec = detector_spec(settings.detector)
    return Diagnosis(
        host=socket.gethostname(),
        core_count=usable_core_count(),
        available_mib=available_memory_mib(),
        detector=settings.detector,
        device=settings.device,
        reserve=Reserve(mib=settings.reserve_mib, share=settings.reserve_share),
        data_dir=data.path,
        is_writable=_is_writable(data.path),
        has_catalog=os.access(data.catalog.files_path, os.F_OK),
        torch=_torch_build(),
        weights=ask(
            Question.WEIGHTS, lambda: require_weights(settings.detector, settings.weights), None
        ),
        reading=reading,
        commands=_commands([*_pids_on(reading), *(holder.pid for holder in holders)]),
        holders=holders,
        plan=plan,
        dagster_home=home,
        instance=ask(Question.INSTANCE, lambda: _instance(settings, home), None),
        measured=ask(Question.MEASURED, lambda: _measured(data, spec), ()),
        uses=ask(Question.USE, lambda: _recent_use(data), ()),
        unanswered=unanswered,
    )


def _ask(
    question: Question,
    answer: Callable[[], Answer],
    otherwise: Others,
    unanswered: dict[Question, str],
) -> Answer | Others:
    """The answer; where there is none in time, `otherwise` and a word on why."""
    seconds = DEADLINES_SECONDS[question]
    future: Future[Answer] = Future()
    # A thread that hangs in a driver must not keep the process from ending, hence no executor.
    threading.Thread(target=_fulfil, args=(future, answer), daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        # One of its own says whom it waited for.
        unanswered[question] = str(error) or f"{question}: no answer in {seconds:g} s"
    except ANTICIPATED as error:
        unanswered[question] = " ".join(str(error).split()) or type(error).__name__
    return otherwise


def _fulfil(future: Future[Answer], answer: Callable[[], Answer]) -> None:
    try:
        future.set_result(answer())
    except BaseException as error:  # noqa: BLE001 (raised again in the thread that asked)
        future.set_exception(error)


def _is_writable(path: Path) -> bool:
    """Whether files can be put there, after making the folder where it is missing."""
    existing = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _torch_build() -> TorchBuild | None:
    """Read from its files: importing it takes seconds."""
    try:
        distribution = metadata.distribution("torch")
        text = Path(str(distribution.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return None
    version = re.search(r"^__version__ = '(.+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*= '(.+)'", text, re.MULTILINE)
    return TorchBuild(
        version=version[1] if version else distribution.version, cuda=cuda[1] if cuda else None
    )


def _pids_on(reading: NvmlReading) -> Iterator[int]:
    for device in reading.devices:
        yield from (process.pid for process in device.processes)


def _commands(pids: Iterable[int | None]) -> dict[int, str]:
    commands: dict[int, str] = {}
    for pid in pids:
        if pid is None or not psutil.pid_exists(pid):
            continue
        try:
            process = psutil.Process(pid)
            program, *arguments = process.cmdline() or [process.name()]
            commands[pid] = " ".join([Path(program).name, *arguments])
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            commands[pid] = "(of another user)"
    return commands


def _instance(settings: Settings, home: Path) -> InstanceState | None:
    named = os.environ.get("DAGSTER_HOME")
    is_misnamed = named and not (Path(named).is_absolute() and home.is_dir())
    # What is misnamed is left to who opens it, to complain.
    if not is_misnamed and not _has_instance(home):
        return None
    with open_instance(settings) as instance:
        pools = instance.get_concurrency_config().pool_config
        monitoring = instance.run_monitoring_settings
        return InstanceState(
            pool=read_ocr_limit(instance),
            is_op_granular=pools.pool_granularity is not PoolGranularity.RUN,
            default_limit=pools.default_pool_limit,
            frees_slots=instance.run_monitoring_enabled
            and bool(monitoring.get("free_slots_after_run_end_seconds")),
        )


def _has_instance(home: Path) -> bool:
    """Whether opening the instance would make nothing: Dagster makes SQLite files on first use."""
    if (home / "history").exists():
        return True
    try:
        config = yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return not {"storage", "run_storage"}.isdisjoint(config or {})


def _measured(data: DataDirectory, spec: DetectorSpec) -> tuple[MemoryRecord, ...]:
    kind = (spec.name, spec.weights_sha256, dtype_of(spec))
    return tuple(
        record
        for record in data.memory_records.rows()
        if (record.detector, record.weights_sha256, record.dtype) == kind
    )


def _recent_use(data: DataDirectory) -> tuple[DeviceUse, ...]:
    """From the files, not from DuckDB, which somebody may hold open."""
    paths = sorted(data.usage_files.all_paths(), key=lambda path: path.stat().st_mtime)
    samples = pa.concat_tables(
        [
            USAGE_SCHEMA.empty_table(),
            *(pq.read_table(path, schema=USAGE_SCHEMA) for path in paths[-RECENT_SHARDS:]),
        ]
    )
    figures = samples.group_by(["host", "device_uuid", "device_name"]).aggregate(
        [
            ("shard", "count_distinct"),
            ("sampled_at", "max"),
            ("device_used_mib", "max"),
            ("device_used_mib", "mean"),
            ("process_mib", "max"),
            ("process_mib", "mean"),
            ("utilization_percent", "mean"),
        ]
    )
    return tuple(
        DeviceUse(
            host=row["host"],
            device_uuid=row["device_uuid"],
            device_name=row["device_name"],
            shard_count=row["shard_count_distinct"],
            last_at=row["sampled_at_max"],
            peak_mib=row["device_used_mib_max"],
            mean_mib=round(row["device_used_mib_mean"]),
            peak_process_mib=row["process_mib_max"],
            mean_process_mib=_rounded(row["process_mib_mean"]),
            mean_utilization_percent=_rounded(row["utilization_percent_mean"]),
        )
        for row in figures.sort_by(
            [("host", "ascending"), ("device_uuid", "ascending")]
        ).to_pylist()
    )


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def show(diagnosis: Diagnosis, found: Sequence[Problem]) -> None:
    """Prints all of it, the problems last."""
    sections = (
        _machine,
        _devices,
        _plan,
        _slots,
        _pool,
        _measurements,
        _uses,
    )
    for section in sections:
        console.print(*section(diagnosis), Text())
    console.print(_problems(found))


def _machine(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    reading, torch = diagnosis.reading, diagnosis.torch
    torch_words = "not installed"
    if torch is not None:
        torch_words = f"{torch.version}, {f'CUDA {torch.cuda}' if torch.cuda else 'without CUDA'}"
    yield facts(
        "Machine",
        (
            ("host", diagnosis.host),
            ("cores", diagnosis.core_count),
            ("memory", f"{diagnosis.available_mib} MiB available"),
            ("driver", ": ".join(filter(None, (reading.state.value, reading.detail)))),
            ("torch", torch_words),
            ("detector", f"{diagnosis.detector} on device {diagnosis.device}"),
            ("weights", diagnosis.weights or "none that can be used"),
            ("data", diagnosis.data_dir),
            ("instance", diagnosis.dagster_home),
        ),
    )


def _devices(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    devices = diagnosis.reading.devices
    if not devices:
        yield from _none("Devices", "no card that can be used")
        return
    yield table(
        "Devices (MiB)",
        ("device", "total", "used", "free", "busy %"),
        (
            (
                Text.assemble(device.name, "\n", (device.uuid, "dim")),
                device.total_mib,
                device.used_mib,
                device.free_mib,
                device.utilization_percent,
            )
            for device in devices
        ),
    )
    short = _short_uuids(diagnosis)
    rows = [
        (short[device.uuid], process.pid, process.used_mib, _who(diagnosis, device, process.pid))
        for device in devices
        for process in device.processes
    ]
    if rows:
        yield table("Processes on them", ("device", "process", "MiB", "who"), rows)


def _who(diagnosis: Diagnosis, device: GpuDevice, pid: int) -> Text:
    slots = [
        f"OCR worker, slot {holder.slot_index}: "
        for holder in diagnosis.holders
        if (holder.pid, holder.device_uuid) == (pid, device.uuid)
    ]
    return Text("".join(slots[:1]), style="green") + _command(diagnosis, pid)


def _command(diagnosis: Diagnosis, pid: int | None) -> Text:
    command = None if pid is None else diagnosis.commands.get(pid)
    if command is None:
        return Text("not seen here", style="yellow")
    is_long = len(command) > LISTED_CHARACTERS
    return Text(command[: LISTED_CHARACTERS - 1] + "…" if is_long else command, style="default")


def _plan(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    plan = diagnosis.plan
    if plan is None:
        yield from _none("Plan", "there is none, see below")
        return
    short = _short_uuids(diagnosis)
    yield table(
        "Plan",
        ("device", "MiB for OCR", "used by others", "slots"),
        (
            (
                short[device.uuid],
                device.budget_mib,
                device.strangers_mib,
                device.slot_count,
            )
            for device in plan.devices
        ),
    )
    for line in plan.explanation.splitlines():
        yield _indented(Text(line, style="dim"))


def _slots(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    if not diagnosis.holders:
        is_known = Question.SLOTS not in diagnosis.unanswered
        yield from _none("Slots held", "none" if is_known else "not known, see below")
        return
    short = _short_uuids(diagnosis)
    yield table(
        "Slots held",
        ("device", "slot", "process", "since", "MiB", "who"),
        (
            (
                short[holder.device_uuid],
                holder.slot_index,
                holder.pid,
                None if holder.since is None else f"{holder.since.astimezone():%m-%d %H:%M:%S}",
                holder.need_mib,
                _command(diagnosis, holder.pid),
            )
            for holder in diagnosis.holders
        ),
    )


def _pool(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    if diagnosis.instance is None:
        is_known = Question.INSTANCE not in diagnosis.unanswered
        yield from _none("Pool", "no Dagster instance yet" if is_known else "not known, see below")
        return
    pool, plan = diagnosis.instance.pool, diagnosis.plan
    limit = "not set yet" if pool.limit is None else str(pool.limit)
    yield facts(
        "Pool",
        (
            ("limit", f"{limit}, the instance's default" if pool.is_default else limit),
            ("plan", "none" if plan is None else plan.slot_count),
            ("by hand", "nothing" if pool.by_hand is None else pool.by_hand),
            ("claimed", len(pool.claims)),
            ("waiting", len(pool.waiting)),
        ),
    )
    rows = [
        *(("claims", *_claim(claim)) for claim in pool.claims),
        *(("waits", *_claim(claim)) for claim in pool.waiting),
    ]
    if rows:
        yield table("", ("", "run", "step", "the run"), rows)


def _claim(claim: PoolClaim) -> tuple[str, str, Text]:
    state = Text("is over", style="yellow") if claim.is_over else Text("goes on")
    return claim.run_id, claim.step_key, state


def _measurements(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    records = diagnosis.measured
    if not records:
        yield from _none("Measured needs", f"nothing yet of detector {diagnosis.detector}")
        return
    heaviest = sorted(records, key=lambda record: (-record.peak_mib, record.input_px))
    yield table(
        "Measured needs",
        ("device", "batch", "peak MiB", "", "when", "where"),
        (
            (
                record.device_name,
                f"{record.frame_count} x {record.width_px}x{record.height_px}"
                if record.frame_count
                else "model only",
                record.peak_mib,
                Text("did not fit", style="yellow") if record.is_out_of_memory else "",
                f"{record.measured_at.astimezone():%Y-%m-%d}",
                record.host,
            )
            for record in heaviest[:LISTED_MEASUREMENTS]
        ),
    )
    if len(records) > LISTED_MEASUREMENTS:
        more = len(records) - LISTED_MEASUREMENTS
        yield _indented(Text(f"and {more} smaller ones: DuckDB table worker_memory", style="dim"))


def _uses(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    if not diagnosis.uses:
        yield from _none("Recent use", "no samples yet")
        return
    short = _short_uuids(diagnosis)
    yield table(
        "Recent use (MiB: peak / mean)",
        ("device", "shards", "until", "in use", "by a worker", "busy %"),
        (
            (
                Text.assemble(short[use.device_uuid], "\n", (use.host, "dim")),
                use.shard_count,
                f"{use.last_at.astimezone():%m-%d %H:%M}",
                f"{use.peak_mib} / {use.mean_mib}",
                None
                if use.peak_process_mib is None
                else f"{use.peak_process_mib} / {use.mean_process_mib}",
                use.mean_utilization_percent,
            )
            for use in diagnosis.uses
        ),
    )


def _problems(found: Sequence[Problem]) -> Table:
    if not found:
        return facts("Looks wrong", [("", Text("nothing", style="green"))])
    styles = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}
    return facts(
        "Looks wrong",
        (
            (
                Text(problem.severity.value, style=styles[problem.severity]),
                Text.assemble(
                    (problem.what, "bold"),
                    "\n",
                    (problem.why, "dim"),
                    "\n→ ",
                    problem.fix,
                ),
            )
            for problem in found
        ),
    )


def _short_uuids(diagnosis: Diagnosis) -> Mapping[str, str]:
    """As many characters of each UUID as tell them all apart, at least eight hex digits."""
    uuids = {
        *(device.uuid for device in diagnosis.reading.devices),
        *(device.uuid for device in (diagnosis.plan.devices if diagnosis.plan else ())),
        *(holder.device_uuid for holder in diagnosis.holders),
        *(use.device_uuid for use in diagnosis.uses),
    }
    length = len("GPU-00000000")
    while len({uuid[:length] for uuid in uuids}) < len(uuids):
        length += 1
    return {uuid: uuid[:length] for uuid in uuids}


def _none(title: str, words: str) -> Iterator[RenderableType]:
    yield facts(title, [(Text(words, style="dim"), "")])


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2))
