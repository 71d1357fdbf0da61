"""The command line: what a person types wrong, stops, kills, and asks."""

import json
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
from making import encode_video, numbered_image
from typer.testing import CliRunner

from ocr_assets.cli import app
from ocr_assets.instance import PROCESS_TAG
from resources.data_directory import DataDirectory

COMMAND = Path(sys.executable).with_name("ocr-assets")


SIZE_PX = (160, 128)


def clips(folder: Path, count: int) -> Path:
    """Textless clips of two seconds and different content."""
    folder.mkdir()
    for number in range(count):
        images = [numbered_image(number + index, SIZE_PX) for index in range(20)]
        encode_video(folder / f"clip{number}.mp4", size_px=SIZE_PX, images=images)
    return folder


@pytest.fixture(autouse=True)
def _no_instance_of_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def jsonl(line: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "samples.jsonl").write_text(line)
        return [str(folder / "samples.jsonl")]

    return arguments


def on_clips(*options: str) -> Callable[[Path], list[str]]:
    return lambda folder: [str(clips(folder / "clips", count=1)), *options]


@pytest.mark.parametrize(
    ("arguments", "culprit", "fix"),
    [
        (lambda _: [], "no source is set", "as the argument of `ocr-assets run`"),
        (lambda folder: [str(folder)], "holds no video", "looked for .3gp"),
        (lambda _: ["nowhere"], "source nowhere does not exist", "expected a folder, a glob"),
        (jsonl('{"videos": ["a.mp4"'), "samples.jsonl line 1 is not JSON", "must be an object"),
        (jsonl('{"videos": 3}'), "samples.jsonl line 1: 'videos'", "must be a list of paths"),
        (on_clips("--sampler", "all"), "sampler 'all' is not known", "uniform(n)"),
        (on_clips("--detector", "tesseract"), "got 'tesseract'", "'craft' or 'ppocr'"),
        (on_clips("--min-ratio", "0.2"), "min_ratio 0.2 is above max_ratio 0.07", "lower"),
        (on_clips("--max-ratio", "nan"), "nan", "finite"),
        (on_clips("--max-slots", "0"), "max_slots", "greater than or equal to 1"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    arguments: Callable[[Path], list[str]], culprit: str, fix: str, tmp_path: Path
):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["run", *arguments(tmp_path), "--out", str(out)])
    assert result.exit_code == 2
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert culprit in line
    assert fix in line
    assert not out.exists() or not any(out.iterdir())


def test_missing_or_wrong_weights_are_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = clips(tmp_path / "clips", count=1)
    (tmp_path / "weights").mkdir()
    wrong = tmp_path / "weights" / "craft_mlt_25k.pth"
    monkeypatch.setenv("OCR_ASSETS_WEIGHTS", str(tmp_path / "weights"))
    told = []
    for write in (lambda: None, lambda: wrong.write_bytes(b"not these")):
        write()
        result = CliRunner().invoke(app, ["run", str(source), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        told.append(result.stderr)
    assert "not found" in told[0]
    assert str(wrong) in told[1]
    assert "sha256" in told[1]
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_directory_is_named_as_user(tmp_path: Path):
    (tmp_path / "out").mkdir(mode=0o500)
    _assert_names_directory(tmp_path, tmp_path / "out")


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    _assert_names_directory(tmp_path, tmp_path / "file" / "out")


def _assert_names_directory(tmp_path: Path, out: Path) -> None:
    source = clips(tmp_path / "clips", count=1)
    result = CliRunner().invoke(app, ["run", str(source), "--out", str(out)])
    assert result.exit_code == 2
    assert f"data directory {out} cannot be written" in result.stderr


def test_scores_without_results_say_what_to_run(tmp_path: Path):
    result = CliRunner().invoke(app, ["scores", "--out", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "run `ocr-assets run SOURCE` first" in result.stderr


class Run:
    """`ocr-assets run` in a process of its own, in a session as a terminal gives it."""

    def __init__(self, source: Path, out: Path) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [
                COMMAND,
                "run",
                str(source),
                "--out",
                str(out),
                "--sampler",
                "every(0.2)",
                "--max-slots",
                "1",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OCR_ASSETS_SHARD_TARGET_MEGAPIXELS": "0.1"},
            start_new_session=True,
        )

    def wait_until_scoring(self) -> None:
        """Until a first shard is scored and others are not."""
        scores = DataDirectory(self.out).score_files
        deadline = time.monotonic() + 120
        while not any(scores.all_paths()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=200)
        return self.process.returncode, output


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], Run]]:
    source = clips(tmp_path / "clips", count=5)
    runs: list[Run] = []

    def start() -> Run:
        runs.append(Run(source, tmp_path / "out"))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        assert run.process.stdout
        run.process.stdout.close()


def scoring_run(run: Run) -> dg.DagsterRun:
    """A Dagster run that scores a shard right now."""
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    with dg.DagsterInstance.from_config(str(run.out / "dagster")) as instance:
        while run.process.poll() is None:
            for record in instance.get_runs(started):
                if dg.AssetKey("ocr_scores") in (record.asset_selection or set()):
                    return record
    raise AssertionError("every shard was scored before one could be caught at it")


def unfinished_runs(out: Path) -> list[str]:
    with dg.DagsterInstance.from_config(str(out / "dagster")) as instance:
        statuses = [run.status for run in instance.get_runs()]
    finished = {
        dg.DagsterRunStatus.SUCCESS,
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    }
    return [status.value for status in statuses if status not in finished]


def claimed_slots(out: Path) -> int:
    with dg.DagsterInstance.from_config(str(out / "dagster")) as instance:
        storage = instance.event_log_storage
        return sum(
            len(storage.get_concurrency_info(key).claimed_slots)
            for key in storage.get_concurrency_keys()
        )


def scored_video_count(out: Path) -> int:
    rows = DataDirectory(out).score_store.query("SELECT count(*) AS n FROM video_scores")
    return rows.to_pylist()[0]["n"]


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(started: Callable[[], Run]):
    run = started()
    run.wait_until_scoring()
    children = psutil.Process(run.process.pid).children(recursive=True)
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == 130, output
    assert "run the same command again to go on" in output
    psutil.wait_procs(children, timeout=5)
    assert [child for child in children if child.is_running()] == []
    assert unfinished_runs(run.out) == []
    assert claimed_slots(run.out) == 0
    again = started()
    assert again.finish()[0] == 0
    assert scored_video_count(again.out) == 5


def test_a_killed_worker_costs_one_try_of_one_shard(started: Callable[[], Run]):
    run = started()
    run.wait_until_scoring()
    victim = scoring_run(run)
    os.kill(int(victim.tags[PROCESS_TAG].split("/")[1]), signal.SIGKILL)
    code, output = run.finish()
    assert code == 0, output
    with dg.DagsterInstance.from_config(str(run.out / "dagster")) as instance:
        ended = instance.get_run_by_id(victim.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.FAILURE
    assert scored_video_count(run.out) == 5
    assert unfinished_runs(run.out) == []
    assert claimed_slots(run.out) == 0


@pytest.mark.slow
def test_a_killed_run_takes_its_workers_along_and_is_picked_up(started: Callable[[], Run]):
    run = started()
    run.wait_until_scoring()
    children = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.process.wait()
    psutil.wait_procs(children, timeout=10)
    assert [child for child in children if child.is_running()] == []
    again = started()
    code, output = again.finish()
    assert code == 0, output
    assert scored_video_count(again.out) == 5
    assert unfinished_runs(again.out) == []
    assert claimed_slots(again.out) == 0


def test_a_manifest_comes_back_as_data_juicer_reads_it(tmp_path: Path):
    source = clips(tmp_path / "clips", count=2)
    manifest = tmp_path / "samples.jsonl"
    samples = [
        {"videos": ["clips/clip0.mp4", "clips/clip1.mp4"], "text": "both", "id": 7},
        {"videos": ["clips/gone.mp4"], "text": "none", "id": "x"},
    ]
    manifest.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    out = tmp_path / "out"
    command = ["run", str(manifest), "--out", str(out), "--detector", "ppocr"]
    done = subprocess.run([COMMAND, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [kept] = [json.loads(line) for line in (out / "dataset/kept.jsonl").read_text().splitlines()]
    assert kept["id"] == 7
    assert kept["videos"] == [str(source / "clip0.mp4"), str(source / "clip1.mp4")]
    assert len(kept["__dj__stats__"]["video_ocr_area_ratio"]) == 2
    [lost] = [
        json.loads(line) for line in (out / "dataset/rejected.jsonl").read_text().splitlines()
    ]
    assert (lost["id"], lost["unscored_reasons"]) == ("x", ["file_missing"])
