"""The Dagster instance: where it lies, who executes its runs, what dead processes left in it."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import dagster as dg
import psutil
import yaml

from ocr_assets.settings import Settings
from resources.atomic_files import atomic_path
from resources.worker_pool import die_with_parent

PROCESS_TAG = "ocr_assets/process"
"""Run tag: `host/pid/start time/pid namespace` of the process that executes the run."""

COMMAND_TAG = "ocr_assets/command"
"""Run tag of what `ocr-assets run` executes: it sees to every pending shard by itself."""

FREE_AFTER_SECONDS = 5.0
"""A finished run's claims are left alone for so long: the process of its last step may still be
ending. As `free_slots_after_run_end_seconds` in dagster.yaml."""

_STORAGE_KEYS = ("storage", "local_artifact_storage", "compute_logs")

_CLOCK_SLACK_SECONDS = 10.0
"""Start times are reckoned from the wall clock, which is set right now and then."""

_UNFINISHED = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


class DagsterHomeError(Exception):
    """DAGSTER_HOME cannot be used. The message says why."""


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """Opens the persistent instance: DAGSTER_HOME where that is set, else the data directory's.

    Raises:
        DagsterHomeError: If DAGSTER_HOME is set to what is no absolute path of a folder.
    """
    home = os.environ.get("DAGSTER_HOME")
    if home:
        if not Path(home).is_absolute() or not Path(home).is_dir():
            raise DagsterHomeError(
                f"DAGSTER_HOME is {home}, which is not an absolute path of an existing folder;"
                " unset it or create the folder"
            )
        return dg.DagsterInstance.get()
    home = settings.dagster_home.absolute()
    config = home / "dagster.yaml"
    if not config.exists():
        # Beside its storage, so that DAGSTER_HOME can later name this folder as it is.
        with atomic_path(config) as partial:
            partial.write_text(yaml.safe_dump(_without_storage(), sort_keys=False))
    return dg.DagsterInstance.from_config(str(home))


def _without_storage() -> Mapping[str, object]:
    config = yaml.safe_load(files("ocr_assets").joinpath("dagster.yaml").read_text())
    return {key: value for key, value in config.items() if key not in _STORAGE_KEYS}


def process_tags() -> dict[str, str]:
    """Run tags by which a later process can tell whether this one still lives."""
    process = psutil.Process()
    return {
        PROCESS_TAG: f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"
        f"/{_pid_namespace()}"
    }


def die_with_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Has the kernel kill this process when the process of its run dies, however it dies.

    For the body of a step: Dagster's step processes outlive a killed run, and would go on beside
    their own retry. Does nothing where the step runs in the run's own process: the parent of that
    is a code server or a shell, which may end before the run does.
    """
    parent = multiprocessing.parent_process()
    run = instance.get_run_by_id(run_id)
    tag = run.tags.get(PROCESS_TAG) if run else None
    if parent is None or tag is None or int(tag.split("/")[1]) != parent.pid:
        return
    die_with_parent()
    if not parent.is_alive():
        # It died before the kernel was asked, so that nothing will come of having asked.
        os.kill(os.getpid(), signal.SIGKILL)


def free_claims_of_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Frees the pool slots and places in the queue that dead or finished runs still claim.

    With a daemon, `free_slots_after_run_end_seconds` does this for the runs that it watches;
    without one nobody does, and whoever waits for such a slot would wait for ever.

    Returns:
        The ids of these runs.
    """
    freed = fail_runs_of_dead_processes(instance)
    storage = instance.event_log_storage
    for run_id in sorted(storage.get_concurrency_run_ids()):
        if _ended_for(instance, run_id, FREE_AFTER_SECONDS):
            storage.free_concurrency_slots_for_run(run_id)
            freed.append(run_id)
    return freed


def fail_runs_of_dead_processes(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs as failed whose process on this host is gone, and frees their pool slots.

    Where a daemon watches the instance it does this for the runs that it launched; runs of
    `ocr-assets run` and of `dagster asset materialize` are watched by nobody else.

    Returns:
        The ids of these runs.
    """
    dead = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=list(_UNFINISHED)))
        if _is_orphan(instance, run)
    ]
    for run in dead:
        message = "The process that executed this run was killed."
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether nothing will come of this run any more: finished, unknown, or its process died."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished or _is_orphan(instance, run)


def _ended_for(instance: dg.DagsterInstance, run_id: str, seconds: float) -> bool:
    records = instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))
    if not records:
        # Somebody deleted the run.
        return True
    [record] = records
    return record.dagster_run.is_finished and time.time() - (record.end_time or 0) > seconds


def _is_orphan(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    tag = run.tags.get(PROCESS_TAG)
    if tag is None or not _is_dead(tag):
        return False
    # A re-executed run starts with the tags of its parent, until its own process replaces them.
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    if parent is not None and parent.tags.get(PROCESS_TAG) == tag:
        return False
    # Read again: it may have finished between being listed and its process being looked at.
    now = instance.get_run_by_id(run.run_id)
    return now is not None and now.status in _UNFINISHED and now.tags.get(PROCESS_TAG) == tag


def _is_dead(tag: str) -> bool:
    host, pid, started, namespace = (*tag.split("/"), "")[:4]
    if (host, namespace) != (socket.gethostname(), _pid_namespace()):
        return False
    try:
        process = psutil.Process(int(pid))
        # Process ids are used again.
        is_other = abs(process.create_time() - float(started)) > _CLOCK_SLACK_SECONDS
        return is_other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _pid_namespace() -> str:
    # Containers may share a host's name; each counts its processes on its own.
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""
