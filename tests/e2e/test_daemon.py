"""A real daemon with its sensors on: whoever drops videos into a folder gets a dataset of them."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from simulated_card.harness import DAGSTER, DAGSTER_DAEMON
from simulated_card.launch_modes import write_clips

from ocr_assets.definitions import build_definitions
from ocr_assets.instance import open_instance
from ocr_assets.jobs import ASSEMBLE, DISCOVER, SCORE_SHARDS
from ocr_assets.results import sample_rows
from ocr_assets.settings import load_settings
from resources.data_directory import DataDirectory

WAIT_SECONDS = 400.0

OUTPUT_CHARACTERS = 4000
"""How much of what each process printed last is told when something fails."""

TWO_TICKS_SECONDS = 35.0
"""Time for `new_shards` to do what it should not."""

CLIP_COUNT, ADDED_COUNT = 6, 2


class Watched:
    """A folder that a daemon watches.

    Attributes:
        source: The folder.
        data: What the pipeline wrote.
        instance: The daemon's.
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.source = folder / "videos"
        self.data = DataDirectory(folder / "data")
        self.instance = instance
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, short: Path) -> None:
        """Starts a code server and a daemon.

        Args:
            short: A folder of so short a path that a socket may lie in it.
        """
        socket, workspace = short / "socket", short / "workspace.yaml"
        server = {"socket": str(socket), "location_name": "ocr_assets"}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
        self._start(DAGSTER, "api", "grpc", "--socket", socket, "-m", "ocr_assets.definitions")
        self.wait_for(socket.exists, "the code server listens")
        self._start(DAGSTER_DAEMON, "run", "-w", workspace)

    def wait_for(self, fact: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not fact():
            assert all(process.poll() is None for process in self._processes), self.output()
            assert time.monotonic() < deadline, f"{what}; {self.statuses()}\n{self.output()}"
            time.sleep(0.5)

    def runs(self, job_name: str) -> Sequence[dg.DagsterRun]:
        return self.instance.get_runs(dg.RunsFilter(job_name=job_name))

    def statuses(self) -> Counter[tuple[str, str]]:
        return Counter((run.job_name, run.status.value) for run in self.instance.get_runs())

    def is_assembled(self, times: int) -> bool:
        """Whether so many assemblies were asked for and nothing is under way."""
        return len(self.runs(ASSEMBLE)) >= times and all(
            run.is_finished for run in self.instance.get_runs()
        )

    def shards(self) -> list[str]:
        return sorted({row["shard"] for row in self.data.catalog.segments().to_pylist()})

    def output(self) -> str:
        paths = sorted(self._folder.glob("output*.txt"))
        return "\n".join(path.read_text()[-OUTPUT_CHARACTERS:] for path in paths)

    def stop(self) -> None:
        parents = [psutil.Process(process.pid) for process in self._processes]
        found = [child for parent in parents for child in parent.children(recursive=True)]
        for process in [*parents, *found]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes:
            process.wait()
        psutil.wait_procs(found, timeout=10)

    def _start(self, *command: object) -> None:
        decides = ("OCR_ASSETS_", "DAGSTER_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(decides)}
        path = self._folder / f"output{len(self._processes)}.txt"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self._folder,
                env={
                    **kept,
                    "DAGSTER_HOME": str(self.data.path / "dagster"),
                    "OCR_ASSETS_AUTOMATION": "true",
                    "OCR_ASSETS_DATA_DIR": str(self.data.path),
                    "OCR_ASSETS_DETECTOR": "ppocr",
                    "OCR_ASSETS_DEVICE": "cpu",
                    "OCR_ASSETS_MAX_SLOTS": "2",
                    # The sensor sees to it here; a full hour would discover once more.
                    "OCR_ASSETS_SCHEDULE_CRON": "0 0 29 2 *",
                    # Three clips each: 3 x 3 frames x (0.02 + 0.02) megapixels.
                    "OCR_ASSETS_SHARD_TARGET_MEGAPIXELS": "0.38",
                    "OCR_ASSETS_SOURCE": str(self.source),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "videos").mkdir()
    with (
        open_instance(load_settings(data_dir=tmp_path / "data")) as instance,
        tempfile.TemporaryDirectory(prefix="code-") as short,
    ):
        made = Watched(tmp_path, instance)
        try:
            made.start(Path(short))
            yield made
        finally:
            made.stop()


def shards_by_run(runs: Sequence[dg.DagsterRun], shards: Sequence[str]) -> list[str]:
    """The shards of all runs, each as often as there are runs of it."""
    ranges = [
        (run.tags[ASSET_PARTITION_RANGE_START_TAG], run.tags[ASSET_PARTITION_RANGE_END_TAG])
        for run in runs
    ]
    return sorted(key for first, last in ranges for key in shards if first <= key <= last)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_videos_dropped_into_a_folder_become_a_dataset_and_nothing_is_done_twice(
    watched: Watched, tmp_path: Path
):
    clips = sorted(write_clips(tmp_path / "clips", CLIP_COUNT + ADDED_COUNT).iterdir())

    for clip in clips[:CLIP_COUNT]:
        shutil.copy(clip, watched.source)
    watched.wait_for(lambda: watched.is_assembled(times=1), "a dataset of all clips")
    _assert_dataset(watched, CLIP_COUNT, assembly_count=1)
    first_runs = {run.run_id for run in watched.runs(SCORE_SHARDS)}
    first_shards = watched.shards()
    assert len(first_shards) > 1
    states = {state.instigator_name for state in watched.instance.all_instigator_state()}
    assert states >= {"discovery", "changed_sources", "new_shards", "ocr_pool_limit"}

    for clip in clips[CLIP_COUNT:]:
        shutil.copy(clip, watched.source)
    watched.wait_for(lambda: watched.is_assembled(times=2), "a dataset with the new clips")
    time.sleep(TWO_TICKS_SECONDS)
    _assert_dataset(watched, CLIP_COUNT + ADDED_COUNT, assembly_count=2)
    new_runs = [run for run in watched.runs(SCORE_SHARDS) if run.run_id not in first_runs]
    new_shards = sorted(set(watched.shards()) - set(first_shards))
    assert new_shards
    assert shards_by_run(new_runs, watched.shards()) == new_shards


def _assert_dataset(watched: Watched, sample_count: int, *, assembly_count: int) -> None:
    """All clips are accounted for, and no more was done for that than had to be."""
    assert set(watched.statuses()) == {
        (job, dg.DagsterRunStatus.SUCCESS.value) for job in (DISCOVER, SCORE_SHARDS, ASSEMBLE)
    }
    assert len(watched.runs(ASSEMBLE)) == assembly_count
    assert len(watched.runs(DISCOVER)) == assembly_count
    shards = watched.shards()
    assert shards_by_run(watched.runs(SCORE_SHARDS), shards) == shards
    samples = sample_rows(watched.data)
    assert len(samples) == sample_count
    assert all(value is not None for sample in samples for value in sample.metric_values)
    lines = [
        (watched.data.dataset / name).read_text().splitlines()
        for name in ("kept.jsonl", "rejected.jsonl")
    ]
    assert sum(map(len, lines)) == sample_count


def test_the_schedule_requests_a_discovery(tmp_path: Path):
    settings = load_settings(data_dir=tmp_path / "data", automation=True)
    definitions = build_definitions(settings)
    schedule = definitions.resolve_schedule_def("discovery")
    assert schedule.cron_schedule == settings.schedule_cron
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_schedule_context(
            instance=instance, scheduled_execution_time=datetime(2026, 1, 2, 3, tzinfo=UTC)
        ) as context,
    ):
        [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.job_name in {None, DISCOVER}
    assert schedule.job_name == DISCOVER
