"""The Dagster instance: where it lies, and what dead processes left in it."""

import os
import socket
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import dagster as dg
import psutil
import yaml

from ocr_assets.settings import Settings
from resources.atomic_files import atomic_path

PROCESS_TAG = "ocr_assets/process"
"""Run tag: `host/pid/start time` of the process that executes the run."""

_STORAGE_KEYS = ("storage", "local_artifact_storage", "compute_logs")


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
    return {PROCESS_TAG: _process_id(psutil.Process())}


def fail_runs_of_dead_processes(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs as failed whose process on this host is gone, and frees their pool slots.

    Where a daemon watches the instance it does this for the runs that it launched; runs of
    `ocr-assets run` are executed in our own processes, which nobody else watches.

    Returns:
        The ids of these runs.
    """
    unfinished = instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    )
    dead = [run for run in unfinished if _is_dead(run.tags.get(PROCESS_TAG))]
    for run in dead:
        instance.report_run_failed(run, "The process that executed this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def _process_id(process: psutil.Process) -> str:
    # With its start time: process ids are used again.
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"


def _is_dead(tag: str | None) -> bool:
    if tag is None or not tag.startswith(f"{socket.gethostname()}/"):
        return False
    try:
        process = psutil.Process(int(tag.split("/")[1]))
        return _process_id(process) != tag or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
