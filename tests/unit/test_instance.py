"""Runs whose process died, on a real SQLite instance with real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from ocr_assets.instance import (
    PROCESS_TAG,
    die_with_run,
    fail_runs_of_dead_processes,
    free_claims_of_dead_runs,
    is_over,
    process_tags,
)
from ocr_assets.pools import OCR_POOL

STATUS = dg.DagsterRunStatus


@dg.op
def step() -> None: ...


@dg.job
def job() -> None:
    step()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        opened.event_log_storage.set_concurrency_slots(OCR_POOL, 1)
        yield opened


@pytest.fixture(scope="module")
def dead_tags() -> dict[str, str]:
    """The tags of a process that is gone."""
    script = "from ocr_assets.instance import process_tags; print(*process_tags().values())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {PROCESS_TAG: done.stdout.strip()}


def claiming_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus = STATUS.STARTED,
    tags: dict[str, str] | None = None,
    parent: dg.DagsterRun | None = None,
) -> dg.DagsterRun:
    run = instance.create_run_for_job(
        job,
        status=status,
        tags=tags,
        parent_run_id=parent.run_id if parent else None,
        root_run_id=parent.run_id if parent else None,
    )
    instance.event_log_storage.claim_concurrency_slot(OCR_POOL, run.run_id, "step")
    return run


def claiming_run_ids(instance: dg.DagsterInstance) -> set[str]:
    return instance.event_log_storage.get_concurrency_run_ids()


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    now = instance.get_run_by_id(run.run_id)
    assert now is not None
    return now.status


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (STATUS.STARTING, STATUS.FAILURE),
        (STATUS.STARTED, STATUS.FAILURE),
        (STATUS.CANCELING, STATUS.CANCELED),
    ],
)
def test_a_run_whose_process_died_ends_and_frees_what_it_claimed(
    instance: dg.DagsterInstance,
    dead_tags: dict[str, str],
    status: dg.DagsterRunStatus,
    end: dg.DagsterRunStatus,
):
    holder = claiming_run(instance, status, dead_tags)
    waiter = claiming_run(instance, status, dead_tags)
    assert is_over(instance, holder.run_id)
    assert set(fail_runs_of_dead_processes(instance)) == {holder.run_id, waiter.run_id}
    assert (status_of(instance, holder), status_of(instance, waiter)) == (end, end)
    assert claiming_run_ids(instance) == set()
    assert fail_runs_of_dead_processes(instance) == []


def test_a_living_run_and_one_of_another_host_or_container_keep_their_claims(
    instance: dg.DagsterInstance, dead_tags: dict[str, str]
):
    host, pid, started, namespace = dead_tags[PROCESS_TAG].split("/")
    living = [
        claiming_run(instance, tags=tags)
        for tags in (
            process_tags(),
            {PROCESS_TAG: f"other-{host}/{pid}/{started}/{namespace}"},
            {PROCESS_TAG: f"{host}/{pid}/{started}/1"},
            None,
        )
    ]
    assert free_claims_of_dead_runs(instance) == []
    assert claiming_run_ids(instance) == {run.run_id for run in living}
    assert not any(is_over(instance, run.run_id) for run in living)


def test_a_process_id_that_is_used_again_is_another_process(instance: dg.DagsterInstance):
    host, pid, started, namespace = process_tags()[PROCESS_TAG].split("/")
    for shift, is_dead in ((-3600, True), (2, False)):
        tag = f"{host}/{pid}/{float(started) + shift:.2f}/{namespace}"
        run = claiming_run(instance, tags={PROCESS_TAG: tag})
        assert is_over(instance, run.run_id) is is_dead


def test_a_retry_that_still_carries_its_parents_tags_is_left_alone(
    instance: dg.DagsterInstance, dead_tags: dict[str, str]
):
    parent = claiming_run(instance, tags=dead_tags)
    retry = claiming_run(instance, STATUS.STARTING, dead_tags, parent)
    assert free_claims_of_dead_runs(instance) == [parent.run_id]
    assert status_of(instance, retry) is STATUS.STARTING
    assert claiming_run_ids(instance) == {retry.run_id}


def test_a_finished_run_keeps_its_claims_a_moment_and_a_deleted_one_does_not(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    finished, deleted = claiming_run(instance), claiming_run(instance)
    instance.report_run_failed(finished)
    # Not `delete_run`, which frees what the run claims.
    instance.run_storage.delete_run(deleted.run_id)
    assert free_claims_of_dead_runs(instance) == [deleted.run_id]
    assert claiming_run_ids(instance) == {finished.run_id}
    monkeypatch.setattr("ocr_assets.instance.FREE_AFTER_SECONDS", -1)
    assert free_claims_of_dead_runs(instance) == [finished.run_id]
    assert claiming_run_ids(instance) == set()


STEP = """
import multiprocessing, sys, time
import dagster as dg
from ocr_assets.instance import die_with_run, process_tags

def body(home, run_id):
    with dg.DagsterInstance.from_config(home) as instance:
        die_with_run(instance, run_id)
    print("bound", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    home, run_id, is_run = sys.argv[1:]
    with dg.DagsterInstance.from_config(home) as instance:
        instance.add_run_tags(run_id, process_tags() if is_run == "yes" else {})
    child = multiprocessing.get_context("spawn").Process(target=body, args=(home, run_id))
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
@pytest.mark.parametrize("is_run", [True, False])
def test_a_step_dies_with_the_process_of_its_run_and_with_no_other(
    instance: dg.DagsterInstance, tmp_path: Path, is_run: bool
):
    run = claiming_run(instance)
    script = tmp_path / "step.py"
    script.write_text(STEP)
    command = [sys.executable, str(script), str(tmp_path), run.run_id, "yes" if is_run else "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "bound\n"
        parent.kill()
        parent.wait()
        if is_run:
            child.wait(30)
        else:
            assert child.is_running()
            os.kill(child.pid, signal.SIGKILL)


def test_a_step_in_the_runs_own_process_is_bound_to_nothing(instance: dg.DagsterInstance):
    assert multiprocessing.parent_process() is None
    die_with_run(instance, claiming_run(instance, tags=process_tags()).run_id)
