"""The whole pipeline in one command: no daemon, workers up to the allowed slots, every shard a run.

Stages overlap: one worker decodes shard after shard, costliest first, and each decoded shard goes
to the next free OCR worker. What is done already is not done again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import dagster as dg

from ocr_assets import progress
from ocr_assets.curation.sources import list_sources
from ocr_assets.definitions import build_definitions, build_gpu_resource
from ocr_assets.instance import (
    COMMAND_TAG,
    fail_runs_of_dead_processes,
    open_instance,
    process_tags,
)
from ocr_assets.pending import pending_work
from ocr_assets.pools import OcrLimit, require_limit, set_ocr_limit
from ocr_assets.progress import Listener
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings
from ocr_assets.worker_process import Worker
from resources.batch_runner import DeviceFailedError
from resources.data_directory import DataDirectory
from resources.detectors import require_weights
from resources.gpu import NoDeviceError
from resources.vram import VramPlan

REPLAN_SECONDS = 10.0
"""How often the number of workers follows what memory carries."""

POLL_SECONDS = 0.1
"""How often progress is shown."""

STOP_SECONDS = 15.0
"""How long a worker may take to stop after Ctrl-C: a batch is not interrupted half-way."""

TRIES_PER_SHARD = 2
"""A shard whose worker died is given to one other; twice is the shard's own fault."""


@dataclass(frozen=True)
class RunPlan:
    """What is to be done.

    Attributes:
        devices: The slots, with their explanation.
        limit: How many of them may be used, where a person set a limit.
        to_decode: Shards without current frames, costliest first.
        to_score: Shards without scores, costliest first.
        segment_counts: Segments by shard, for the progress bars.
        revived: Ids of runs that a dead process had left unfinished.
    """

    devices: VramPlan
    limit: OcrLimit
    to_decode: Sequence[str]
    to_score: Sequence[str]
    segment_counts: Mapping[str, int]
    revived: Sequence[str]


@dataclass
class RunReport:
    """How a run of the pipeline ended.

    Attributes:
        failures: What went wrong, by `asset shard`.
        scored_shards: Shards scored by this run.
    """

    failures: dict[str, str] = field(default_factory=dict)
    scored_shards: list[str] = field(default_factory=list)


class ShardsFailedError(Exception):
    """Some shards failed; the dataset was written without their scores.

    Args:
        failures: What went wrong, by `asset shard`.
    """

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{work}: {why}" for work, why in failures.items()))


class InterruptedRunError(Exception):
    """The user stopped the run; what was finished stays."""


def run_pipeline(
    settings: Settings,
    *,
    on_progress: Listener,
    on_plan: Callable[[RunPlan], None],
) -> RunReport:
    """Runs discovery, frames, scores and dataset on the persistent instance.

    Args:
        settings: Everything a person may decide.
        on_progress: Told how far each stage is.
        on_plan: Told what is to be done once the sources were looked at.

    Raises:
        InterruptedRunError: On Ctrl-C, after the workers have stopped.
        Exception: What `videos` or `filtered_dataset` raised.
    """
    data = DataDirectory(settings.data_dir)
    list_sources(settings.source)
    data.require_writable()
    require_weights(settings.detector, settings.weights)
    with open_instance(settings) as instance:
        revived = fail_runs_of_dead_processes(instance)
        progress.listen(on_progress)
        try:
            _materialize(settings, instance, "videos")
            plan = _plan(settings, data, instance, revived)
            on_plan(plan)
            report = RunReport()
            if plan.to_score:
                _Shards(settings, plan, report, on_progress, instance).work()
            _materialize(settings, instance, "filtered_dataset")
        except dg.DagsterExecutionInterruptedError:
            raise InterruptedRunError from None
        finally:
            progress.listen(None)
    return report


def _materialize(settings: Settings, instance: dg.DagsterInstance, asset: str) -> None:
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        instance=instance,
        asset_selection=[dg.AssetKey(asset)],
        tags={**process_tags(), COMMAND_TAG: "run"},
    )


def _plan(
    settings: Settings, data: DataDirectory, instance: dg.DagsterInstance, revived: Sequence[str]
) -> RunPlan:
    gpu = build_gpu_resource(settings)
    devices = gpu.require_plan()
    limit = require_limit(instance, devices.slot_count)
    pending = pending_work(data, Scorer(settings.sampler, gpu.spec()))
    return RunPlan(
        devices=devices,
        limit=limit,
        to_decode=pending.to_decode,
        to_score=pending.to_score,
        segment_counts={key: shard.segment_count for key, shard in pending.shards.items()},
        revived=revived,
    )


@dataclass(frozen=True)
class _Task:
    asset: str
    shard: str
    tries: int = 1


class _Shards:
    """Brings every pending shard through `frames` and `ocr_scores`."""

    def __init__(
        self,
        settings: Settings,
        plan: RunPlan,
        report: RunReport,
        on_progress: Listener,
        instance: dg.DagsterInstance,
    ) -> None:
        self._settings = settings
        self._instance = instance
        self._report = report
        self._on_progress = on_progress
        self._order = {shard: rank for rank, shard in enumerate(plan.to_score)}
        undecoded = set(plan.to_decode)
        self._waiting = {
            "frames": [_Task("frames", shard) for shard in plan.to_decode],
            "ocr_scores": [
                _Task("ocr_scores", shard) for shard in plan.to_score if shard not in undecoded
            ],
        }
        self._allowed = {"frames": 1, "ocr_scores": plan.limit.limit}
        self._gpu = build_gpu_resource(settings)
        self._next_plan = time.monotonic() + REPLAN_SECONDS
        counts = {
            "frames": min(1, len(plan.to_decode)),
            "ocr_scores": min(plan.limit.limit, len(plan.to_score)),
        }
        # All at once, so that OCR workers import torch while the first frames are decoded.
        self._idle = {
            asset: [Worker(settings, asset) for _ in range(count)]
            for asset, count in counts.items()
        }
        self._busy: dict[Future[None], tuple[Worker, _Task]] = {}

    def work(self) -> None:
        """Works until nothing waits and nothing runs.

        Raises:
            InterruptedRunError: On Ctrl-C.
        """
        try:
            while self._assign() or self._is_paused():
                if not self._busy:
                    time.sleep(POLL_SECONDS)
                done, _ = wait(self._busy, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                self._tell_progress()
                for future in done:
                    self._finish(future)
                self._follow_plan()
                self._dismiss_idle()
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            self._stop()
            raise InterruptedRunError from None
        finally:
            for worker in self._workers():
                worker.close()

    def _assign(self) -> bool:
        for asset, tasks in self._waiting.items():
            while tasks and self._busy_count(asset) < self._allowed[asset]:
                worker = self._idle_worker(asset)
                task = tasks.pop(0)
                self._busy[worker.materialize(task.asset, task.shard)] = (worker, task)
        return bool(self._busy)

    def _idle_worker(self, asset: str) -> Worker:
        idle = self._idle[asset]
        return idle.pop() if idle else Worker(self._settings, asset)

    def _finish(self, future: "Future[None]") -> None:
        worker, task = self._busy.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool | DeviceFailedError):
            worker.close()
            # At once: its run still claims a slot of the pool, and the next try would wait for it.
            fail_runs_of_dead_processes(self._instance)
            self._retry(task)
            return
        self._idle[task.asset].append(worker)
        if error is not None:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self._report.failures[f"{task.asset} {task.shard}"] = (
                f"{type(error).__name__}: {first_line}"
            )
        elif task.asset == "frames":
            ready = self._waiting["ocr_scores"]
            ready.append(_Task("ocr_scores", task.shard))
            ready.sort(key=lambda waiting: self._order[waiting.shard])
        else:
            self._report.scored_shards.append(task.shard)

    def _follow_plan(self) -> None:
        """Lets more or fewer workers run where cards, strangers or measurements have changed."""
        if time.monotonic() < self._next_plan:
            return
        self._next_plan = time.monotonic() + REPLAN_SECONDS
        try:
            planned = max(1, self._gpu.plan().slot_count)
        except NoDeviceError:
            # The workers that lost it say so themselves; one tries whether it is back.
            planned = 1
        self._allowed["ocr_scores"] = set_ocr_limit(self._instance, planned).limit

    def _is_paused(self) -> bool:
        """Whether there is work, and a person who set the pool's limit to 0 meanwhile."""
        return bool(self._waiting["ocr_scores"]) and self._allowed["ocr_scores"] == 0

    def _dismiss_idle(self) -> None:
        """Ends workers that have nothing to do or are too many: their slots are for others."""
        for asset, idle in self._idle.items():
            is_work_to_come = self._waiting[asset] or (
                asset == "ocr_scores" and (self._waiting["frames"] or self._busy_count("frames"))
            )
            most = self._allowed[asset] - self._busy_count(asset) if is_work_to_come else 0
            while len(idle) > max(0, most):
                idle.pop().dismiss()

    def _busy_count(self, asset: str) -> int:
        return sum(task.asset == asset for _worker, task in self._busy.values())

    def _retry(self, task: _Task) -> None:
        if task.tries < TRIES_PER_SHARD:
            self._waiting[task.asset].append(_Task(task.asset, task.shard, task.tries + 1))
            return
        self._report.failures[f"{task.asset} {task.shard}"] = (
            f"its worker process died {task.tries} times; look at the system's log for"
            " out-of-memory kills"
        )

    def _tell_progress(self) -> None:
        for worker in self._workers():
            for event in worker.events():
                self._on_progress(event)

    def _stop(self) -> None:
        busy = list(self._busy)
        for worker, _task in self._busy.values():
            worker.interrupt()
        wait(busy, timeout=STOP_SECONDS)
        for future, (worker, _task) in self._busy.items():
            if not future.done():
                worker.kill()
        wait(busy)
        fail_runs_of_dead_processes(self._instance)

    def _workers(self) -> list[Worker]:
        idle = [worker for workers in self._idle.values() for worker in workers]
        return idle + [worker for worker, _task in self._busy.values()]
