"""What a daemon with its sensors on costs while very many shards wait. Run by `make bench-shards`.

A catalog of made-up shards without frames and scores is written, and the OCR pool is set to 0 as a
person does who pauses OCR: so the queue does not shrink, and what is measured is waiting alone. The
few runs that are launched find no video, note that instead of frames, and stand at the pool.
Daemon, code server and web server are real ones; nobody looks at the web server's pages.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil
import pyarrow as pa
from dagster._core.scheduler.instigation import InstigatorTick
from rich.console import Console
from rich.table import Table

from ocr_assets.instance import open_instance
from ocr_assets.jobs import ASSEMBLE, SCORE_SHARDS
from ocr_assets.partitions import add_missing_shards
from ocr_assets.pools import OCR_POOL, ensure_decode_limit, read_ocr_limit, set_ocr_limit
from ocr_assets.run_requests import RUNS_PER_SLOT
from ocr_assets.settings import Settings, load_settings
from resources.catalog_store import FILES_SCHEMA, SEGMENTS_SCHEMA, VIDEOS_SCHEMA
from resources.data_directory import DataDirectory

BIN = Path(sys.executable).parent

SENSOR = "new_shards"

SETTLED_TICKS = 4
"""After so many ticks the first runs were requested and launched, and nothing new happens."""

WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Cost:
    """What processes took so far.

    Attributes:
        cpu_seconds: Of those that live, and of their children that ended.
        rss_mib: Of those that live.
    """

    cpu_seconds: float
    rss_mib: float


def main() -> None:
    """Measures and prints the tables.

    Raises:
        SystemExit: If there were more runs than the pool can use.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000, help="how many wait")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    options = parser.parse_args()
    os.environ.pop("DAGSTER_HOME", None)
    with tempfile.TemporaryDirectory(prefix="many-shards-") as folder:
        settings = load_settings(data_dir=Path(folder) / "data", device="cpu", detector="ppocr")
        with open_instance(settings) as instance:
            _prepare(settings, instance, options.shards)
            with _servers(Path(folder), settings) as servers:
                is_within = _measure(instance, servers, options.shards, options.seconds)
    if not is_within:
        sys.exit("there were more runs than two per slot")


def _prepare(settings: Settings, instance: dg.DagsterInstance, shard_count: int) -> None:
    """Writes a catalog of that many shards, and pauses OCR as a person does."""
    keys = [f"s{number:06}" for number in range(1, shard_count + 1)]
    segments = [
        {
            "shard": key,
            "video_id": key,
            "segment_index": 0,
            "start_seconds": 0.0,
            "end_seconds": 1.0,
            "cost_megapixels": float(1 + number % 100),
        }
        for number, key in enumerate(keys)
    ]
    videos = [
        {
            "video_id": key,
            "size_bytes": 1,
            "duration_seconds": 1.0,
            "fps": 10.0,
            "frame_count": 10,
            "width_px": 64,
            "height_px": 48,
            "codec": "h264",
            "segment_count": 1,
            "first_seen_at": datetime.now(UTC),
        }
        for key in keys
    ]
    DataDirectory(settings.data_dir).catalog.write(
        files=FILES_SCHEMA.empty_table(),
        videos=pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA),
        segments=pa.Table.from_pylist(segments, schema=SEGMENTS_SCHEMA),
        samples=[],
    )
    add_missing_shards(instance, keys)
    ensure_decode_limit(instance)
    # Once ours, so that what comes next is a person's.
    set_ocr_limit(instance, 2)
    instance.event_log_storage.set_concurrency_slots(OCR_POOL, 0)


@contextlib.contextmanager
def _servers(folder: Path, settings: Settings) -> Iterator[Mapping[str, psutil.Process]]:
    """Code server, daemon and web server while the body runs, with all that they start."""
    address, workspace = folder / "socket", folder / "workspace.yaml"
    server = {"socket": str(address), "location_name": "ocr_assets"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
    module = ("-m", "ocr_assets.definitions")
    web = ("-h", "127.0.0.1", "-p", str(_free_port()))
    decides = ("OCR_ASSETS_", "DAGSTER_", "PYTHONDONTWRITEBYTECODE")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(decides)},
        "DAGSTER_HOME": str(settings.dagster_home),
        "OCR_ASSETS_AUTOMATION": "true",
        "OCR_ASSETS_DATA_DIR": str(settings.data_dir),
        "OCR_ASSETS_DETECTOR": settings.detector,
        "OCR_ASSETS_DEVICE": settings.device,
    }
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: object) -> None:
        with (folder / f"{name}.txt").open("wb") as output:
            started[name] = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    try:
        start("code server", BIN / "dagster", "api", "grpc", "--socket", address, *module)
        _wait_for(address.exists, "the code server listens")
        start("daemon", BIN / "dagster-daemon", "run", "-w", workspace)
        start("web server", BIN / "dagster-webserver", "-w", workspace, *web)
        yield {name: psutil.Process(process.pid) for name, process in started.items()}
    finally:
        # Found before their parents are gone; the parents first, so that nothing is started anew.
        children = [
            child
            for process in started.values()
            for child in psutil.Process(process.pid).children(recursive=True)
        ]
        for process in started.values():
            process.send_signal(signal.SIGKILL)
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=10)


def _measure(
    instance: dg.DagsterInstance,
    servers: Mapping[str, psutil.Process],
    shard_count: int,
    seconds: float,
) -> bool:
    _wait_for(
        lambda: len(_ended_ticks(instance)) >= SETTLED_TICKS and _is_waiting(instance),
        f"{SETTLED_TICKS} ticks of {SENSOR}, and runs that wait",
    )
    runs_before = instance.get_runs_count()
    started, before = time.time(), _costs(servers)
    time.sleep(seconds)
    minutes = (time.time() - started) / 60
    after = _costs(servers)
    ticks = [tick for tick in _ended_ticks(instance) if tick.timestamp >= started]
    table = Table(title=f"{shard_count} shards wait: cost of waiting on {_machine()}")
    for column in ("process", "CPU s per minute", "RSS MiB"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, cost in after.items():
        cpu_seconds = cost.cpu_seconds - before[name].cpu_seconds
        table.add_row(name, f"{cpu_seconds / minutes:.1f}", f"{cost.rss_mib:.0f}")
    limit = read_ocr_limit(instance).limit
    run_limit = RUNS_PER_SLOT * (limit or 1)
    runs = instance.get_runs()
    facts = {
        f"limit of the pool {OCR_POOL}": limit,
        "runs in all, at most": f"{len(runs)}, {run_limit}",
        f"runs made within {60 * minutes:.0f} s": len(runs) - runs_before,
        f"steps that wait at {OCR_POOL}": len(read_ocr_limit(instance).waiting),
        "runs by state": ", ".join(f"{n} {run}" for run, n in _states(runs).items()),
        f"ticks of {SENSOR}": len(ticks),
        "their duration, median and longest": _durations(ticks),
    }
    told = Table(title=f"Runs and ticks, over {60 * minutes:.0f} s")
    told.add_column("what")
    told.add_column("value")
    for name, value in facts.items():
        told.add_row(name, str(value))
    Console(width=100).print(table, told)
    return sum(run.job_name in {SCORE_SHARDS, ASSEMBLE} for run in runs) <= run_limit


def _states(runs: Sequence[dg.DagsterRun]) -> Counter[str]:
    return Counter(f"{run.job_name} {run.status.value}" for run in runs)


def _is_waiting(instance: dg.DagsterInstance) -> bool:
    """Whether every run stands at the OCR pool, or ended."""
    open_runs = [run for run in instance.get_runs() if not run.is_finished]
    return len(read_ocr_limit(instance).waiting) == len(open_runs) > 0


def _ended_ticks(instance: dg.DagsterInstance) -> list[InstigatorTick]:
    return [
        tick
        for state in instance.all_instigator_state()
        if state.instigator_name == SENSOR
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        if tick.end_timestamp is not None
    ]


def _durations(ticks: Sequence[InstigatorTick]) -> str:
    seconds = sorted((tick.end_timestamp or 0.0) - tick.timestamp for tick in ticks)
    if not seconds:
        return "none ended"
    return f"{seconds[len(seconds) // 2]:.2f} s, {seconds[-1]:.2f} s"


def _costs(servers: Mapping[str, psutil.Process]) -> dict[str, Cost]:
    """What each server took, and what the runs did, which are the code server's children."""
    costs = {
        name: _cost([server, *server.children(recursive=True)])
        for name, server in servers.items()
        if name != "code server"
    }
    server = servers["code server"]
    everything = _cost([server, *server.children(recursive=True)])
    times = server.cpu_times()
    own = Cost(times.user + times.system, server.memory_info().rss / 2**20)
    costs["code server"] = own
    costs["waiting runs, all processes"] = Cost(
        everything.cpu_seconds - own.cpu_seconds, everything.rss_mib - own.rss_mib
    )
    return costs


def _cost(processes: Sequence[psutil.Process]) -> Cost:
    cpu_seconds = rss_bytes = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            cpu_seconds += sum(process.cpu_times()[:4])
            rss_bytes += process.memory_info().rss
    return Cost(cpu_seconds, rss_bytes / 2**20)


def _wait_for(fact: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WAIT_SECONDS:g} s: {what}")
        time.sleep(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _machine() -> str:
    gib = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB"


if __name__ == "__main__":
    main()
