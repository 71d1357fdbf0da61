"""How launched runs claim, wait for and give back slots: the real CLI, no daemon, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

from ocr_assets.definitions import build_definitions
from ocr_assets.executor import (
    CLAIM_SECONDS,
    CONTEXT_NAME,
    CONTEXTS,
    LOOK_AFTER_SECONDS,
    PoliteConcurrencyContext,
    ocr_executor,
    polite_waiting,
)
from ocr_assets.instance import free_claims_of_dead_runs
from ocr_assets.pools import DECODE_POOL, OCR_POOL, read_ocr_limit, set_ocr_limit
from ocr_assets.sensors import ocr_pool_limit_sensor
from ocr_assets.settings import load_settings
from resources.gpu import GpuResource

COMMAND = Path(sys.executable).with_name("dagster")

STATUS = dg.DagsterRunStatus

ONE_SLOT = GpuResource(detector="ppocr", device="cpu", max_slots=1)

DEFINITIONS = """
import os, time
from pathlib import Path

import dagster as dg

from ocr_assets.executor import ocr_executor
from ocr_assets.instance import die_with_run
from ocr_assets.pools import OCR_POOL
from resources.gpu import GpuResource

HERE = Path(__file__).parent

@dg.asset(pool=OCR_POOL)
def held(context: dg.AssetExecutionContext) -> None:
    die_with_run(context.instance, context.run_id)
    (HERE / f"step.{os.getpid()}").touch()
    while not (HERE / "release").exists():
        time.sleep(0.05)

@dg.asset(pool=OCR_POOL)
def quick() -> None: ...

gpu = GpuResource(detector="ppocr", device="cpu", max_slots=1)
defs = dg.Definitions(assets=[held, quick], executor=ocr_executor(gpu))
"""

IN_PROCESS = ("--config-json", '{"execution": {"config": {"in_process": {}}}}')


class Place:
    """A folder with definitions and an instance whose unset pools are unlimited."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.instance = instance
        self.processes: list[subprocess.Popen[bytes]] = []

    def materialize(self, asset: str, *options: str) -> subprocess.Popen[bytes]:
        """Starts `dagster asset materialize` as a person does."""
        with (self.folder / f"output{len(self.processes)}").open("wb") as output:
            process = subprocess.Popen(
                [COMMAND, "asset", "materialize", "-f", "defs.py", "--select", asset, *options],
                cwd=self.folder,
                env={**os.environ, "DAGSTER_HOME": str(self.folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def wait_for(self, fact: Callable[[], object], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < deadline, self.output()
            # Killed ones end below zero.
            assert not any((process.poll() or 0) > 0 for process in self.processes), self.output()
            time.sleep(0.1)

    def waiting_count(self) -> int:
        return len(read_ocr_limit(self.instance).waiting)

    def holds(self) -> bool:
        return any(self.folder.glob("step.*"))

    def claiming_run_ids(self) -> set[str]:
        return self.instance.event_log_storage.get_concurrency_run_ids()

    def statuses(self) -> list[str]:
        return sorted(run.status.value for run in self.instance.get_runs())

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("output*")))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    (tmp_path / "defs.py").write_text(DEFINITIONS)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        opened = Place(tmp_path, instance)
        yield opened
        (tmp_path / "release").touch()
        for process in opened.processes:
            process.kill()
            process.wait()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def test_a_run_that_waits_burns_no_core_stops_when_told_to_and_goes_on_when_it_may(place: Place):
    # Paused by a person, before any plan was made.
    place.instance.event_log_storage.set_concurrency_slots(OCR_POOL, 0)
    goes_on, *stopped = waiters = [
        place.materialize("quick"),
        place.materialize("quick"),
        place.materialize("quick", *IN_PROCESS),
    ]
    place.wait_for(lambda: place.waiting_count() == len(waiters))
    time.sleep(1)
    before = [cpu_seconds(process) for process in waiters]
    time.sleep(5)
    used = [cpu_seconds(process) - start for process, start in zip(waiters, before, strict=True)]
    # Dagster alone takes 4.5 s of these 5.
    assert max(used) < 0.5
    told_at = time.monotonic()
    for process, number in zip(stopped, (signal.SIGINT, signal.SIGTERM), strict=True):
        process.send_signal(number)
    for process in stopped:
        assert process.wait(60) != 0
    assert time.monotonic() - told_at < 15
    assert place.waiting_count() == 1
    # The person lifts the pause, and the next plan sets the limit.
    place.instance.event_log_storage.delete_concurrency_limit(OCR_POOL)
    set_ocr_limit(place.instance, 1)
    assert goes_on.wait(60) == 0, place.output()
    # Dagster calls a run canceled only if that was asked for in the UI.
    assert place.statuses() == ["FAILURE", "FAILURE", "SUCCESS"]
    assert place.claiming_run_ids() == set()
    assert "limited to 0 by hand" in place.output()


def test_slots_and_places_of_killed_runs_are_freed_without_a_daemon(place: Place):
    holder = place.materialize("held")
    place.wait_for(place.holds)
    # Unset would have been unlimited.
    state = read_ocr_limit(place.instance)
    assert (state.limit, state.is_default, state.by_hand) == (1, False, None)
    killed, waiter = place.materialize("quick"), place.materialize("quick")
    place.wait_for(lambda: place.waiting_count() == 2)
    [step] = [psutil.Process(int(path.suffix[1:])) for path in place.folder.glob("step.*")]
    for process in (killed, holder):
        process.kill()
        process.wait()
    killed_at = time.monotonic()
    step.wait(30)
    place.wait_for(lambda: len(place.claiming_run_ids()) <= 1)
    # The pace is ours, the rest is the machine's.
    assert time.monotonic() - killed_at < LOOK_AFTER_SECONDS + CLAIM_SECONDS + 15
    assert waiter.wait(60) == 0, place.output()
    assert place.statuses() == ["FAILURE", "FAILURE", "SUCCESS"]
    assert place.claiming_run_ids() == set()


@dg.op
def step() -> None: ...


@dg.job
def job() -> None:
    step()


def test_a_waiter_that_was_never_woken_registers_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ocr_assets.executor.LOOK_AFTER_SECONDS", 1.0)
    storage = place.instance.event_log_storage
    set_ocr_limit(place.instance, 1)
    holder, waiter = (place.instance.create_run_for_job(job) for _ in range(2))
    assert storage.claim_concurrency_slot(OCR_POOL, holder.run_id, "step").is_claimed
    looks: list[None] = []
    with PoliteConcurrencyContext(
        place.instance, waiter, look_after=lambda: looks.append(None)
    ) as context:
        assert not context.claim(OCR_POOL, "step")
        # What `free_concurrency_slots_for_run` does, less its last line, which wakes a waiter: the
        # holder looked for one before ours was in the queue.
        storage._free_concurrency_slots(run_id=holder.run_id)  # pyright: ignore[reportAttributeAccessIssue]
        storage._remove_pending_steps(run_id=holder.run_id)  # pyright: ignore[reportAttributeAccessIssue]
        assert not storage.claim_concurrency_slot(OCR_POOL, waiter.run_id, "step").is_claimed
        place.wait_for(lambda: context.claim(OCR_POOL, "step"), seconds=30)
        context.free_step("step")
    assert looks
    assert place.claiming_run_ids() == set()


def test_a_waiter_whose_slots_are_all_taken_keeps_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ocr_assets.executor.LOOK_AFTER_SECONDS", 0.1)
    set_ocr_limit(place.instance, 1)
    holder, waiter = (place.instance.create_run_for_job(job) for _ in range(2))
    place.instance.event_log_storage.claim_concurrency_slot(OCR_POOL, holder.run_id, "step")
    with PoliteConcurrencyContext(place.instance, waiter, look_after=int) as context:
        enqueued = set()
        for _ in range(5):
            assert not context.claim(OCR_POOL, "step")
            info = place.instance.event_log_storage.get_concurrency_info(OCR_POOL)
            enqueued |= {(s.run_id, s.enqueued_timestamp) for s in info.pending_steps}
        assert len(enqueued) == 2
    assert place.claiming_run_ids() == {holder.run_id}


@pytest.mark.parametrize("module", CONTEXTS, ids=lambda module: module.__name__)
def test_dagsters_executors_still_make_their_context_by_the_name_that_is_replaced(module):
    """If this fails, Dagster was changed: see `ocr_assets.executor.polite_waiting`."""
    assert getattr(module, CONTEXT_NAME) is InstanceConcurrencyContext
    with polite_waiting(int):
        assert getattr(module, CONTEXT_NAME).func is CONTEXTS[module]
    assert getattr(module, CONTEXT_NAME) is InstanceConcurrencyContext


def test_the_launchpad_offers_what_dagsters_default_executor_offers():
    default, ours = dg.multi_or_in_process_executor, ocr_executor(ONE_SLOT)
    assert ours.name == default.name
    assert ours.config_schema is default.config_schema


def test_launched_runs_queue_in_pools_and_warm_workers_by_their_lease_alone(tmp_path: Path):
    settings = load_settings(data_dir=tmp_path, detector="ppocr")

    def pools(*, keep_warm: bool) -> set[str | None]:
        definitions = build_definitions(settings, keep_warm=keep_warm)
        graph = definitions.resolve_asset_graph()
        return {node.op.pool for node in graph.assets_defs}

    assert pools(keep_warm=False) == {OCR_POOL, DECODE_POOL, None}
    assert pools(keep_warm=True) == {None}
    assert pools(keep_warm=False) == {OCR_POOL, DECODE_POOL, None}


def test_the_sensor_sets_the_limit_frees_dead_claims_and_says_so(place: Place):
    storage = place.instance.event_log_storage
    set_ocr_limit(place.instance, 5)
    storage.claim_concurrency_slot(OCR_POOL, "deleted", "step")
    sensor = ocr_pool_limit_sensor(ONE_SLOT)
    with dg.build_sensor_context(instance=place.instance) as context:
        skipped = sensor(context)
        assert isinstance(skipped, dg.SkipReason)
        assert str(skipped.skip_message).startswith("pool ocr_gpu: 1 (plan: 1)")
        assert str(skipped.skip_message).endswith("freed claims of 1 dead runs")
    assert read_ocr_limit(place.instance).limit == 1
    assert free_claims_of_dead_runs(place.instance) == []


def test_the_sensor_survives_a_machine_without_a_device(place: Place):
    sensor = ocr_pool_limit_sensor(GpuResource(detector="ppocr", device="cuda"))
    with dg.build_sensor_context(instance=place.instance) as context:
        skipped = sensor(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "no device" in str(skipped.skip_message)
