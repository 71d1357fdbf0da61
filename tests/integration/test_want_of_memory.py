"""Memory that runs out: what is halved, what waits, what is recorded, and what others never notice.

The error is torch's own, raised past a scripted number of pixels; everything else is real. The
corpus is one shard of six small clips and one whose frames have four times their pixels.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pytest
from making import encode_video
from simulated_card.harness import (
    DAGSTER,
    OCR_ASSETS,
    Event,
    SimulatedCard,
    simulated_card,
)
from simulated_card.launch_modes import DEFINITIONS, Place, prepare, shard_names
from simulated_card.scripted_detector import (
    LOG_VARIABLE,
    SCRIPT_VARIABLE,
    ScriptedDetector,
    ScriptedMeter,
)

from ocr_assets.curation.geometry import text_area_ratio
from resources.batch_runner import GROW_AFTER, BatchRunner
from resources.detectors.base import TextBoxes

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.timeout(900)

SMALL_PX, LARGE_PX = (160, 128), (320, 256)
SMALL_COUNT = 6
FRAMES_PER_CLIP = 5
SMALL_FRAME_PX = SMALL_PX[0] * SMALL_PX[1]
LARGE_FRAME_PX = LARGE_PX[0] * LARGE_PX[1]
SHARD = "s000001"

ONE_SMALL_FITS = SMALL_FRAME_PX
ONE_LARGE_FITS = LARGE_FRAME_PX

IN_PROCESS = ("--config-json", '{"execution": {"config": {"in_process": {}}}}')


@pytest.fixture
def card(tmp_path: Path) -> Iterator[SimulatedCard]:
    with simulated_card(tmp_path / "card") as made:
        yield made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("prepared")
    source = folder / "clips"
    source.mkdir()
    for number, size_px in enumerate([*[SMALL_PX] * SMALL_COUNT, LARGE_PX]):
        image = np.full((size_px[1], size_px[0], 3), 40 + 20 * number, np.uint8)
        encode_video(source / f"clip{number}.mp4", size_px=size_px, images=[image] * 10)
    settings = {
        "OCR_ASSETS_MAX_SLOTS": "1",
        "OCR_ASSETS_BATCH_MEGAPIXELS": "0.2",  # Nine small frames, or two large ones.
        "OCR_ASSETS_RETRY_WAIT_SECONDS": "0.5",
    }
    with simulated_card(folder / "card") as card:
        place = Place(source, folder / "out", sampler="every(0.2)", settings=settings)
        prepare(card, place)
    assert shard_names(place) == [SHARD]
    return place


def materialize(card: SimulatedCard, place: Place, *options: str) -> "subprocess.Popen[bytes]":
    """Scores the shard with Dagster's own command."""
    select = ("--select", "ocr_scores", "--partition", SHARD)
    return card.start(
        DAGSTER, "asset", "materialize", *DEFINITIONS, *select, *options, **place.dagster_environ
    )


def count_of(instance: dg.DagsterInstance, kind: dg.DagsterEventType) -> int:
    """Events of one type in all runs."""
    return sum(len(instance.all_logs(run.run_id, of_type=kind)) for run in instance.get_runs())


def last_materialization(place: Place) -> dict[str, Any]:
    """The metadata that the shard's scores were last materialized with."""
    with place.instance() as instance:
        [record] = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("ocr_scores"), asset_partitions=[SHARD]), limit=1
        ).records
    assert record.asset_materialization is not None
    return {key: item.value for key, item in record.asset_materialization.metadata.items()}


def real_frames(events: list[Event]) -> list[tuple[int, int]]:
    """Width and number of frames of each batch that went through, warming up left out."""
    return [
        (event.details["width_px"], event.details["count"])
        for event in events
        if event.event == "detected" and not event.details["is_black"]
    ]


def scores(place: Place) -> dict[tuple[str, int], float | None]:
    """By video and frame, from DuckDB."""
    rows = place.data.score_store.query(
        "SELECT video_id, frame_index, text_area_ratio FROM frame_scores"
    ).to_pylist()
    return {(row["video_id"], row["frame_index"]): row["text_area_ratio"] for row in rows}


def expected_scores(place: Place) -> dict[tuple[str, int], float]:
    """What a detector that sees each frame alone says of it."""
    return {
        (frame.video_id, frame.frame_index): text_area_ratio(
            ScriptedDetector.box(frame.pixels()).points,
            width_px=frame.width_px,
            height_px=frame.height_px,
        )
        for frame in place.data.frames.read(SHARD)
    }


def assert_all_scored(place: Place) -> None:
    assert place.scored_shards() == [SHARD]
    expected = expected_scores(place)
    assert len(expected) == (SMALL_COUNT + 1) * FRAMES_PER_CLIP
    assert scores(place) == pytest.approx(expected)


@pytest.fixture
def runner(card: SimulatedCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchRunner]:
    """The real batch runner over the scripted detector, in this process; 16 small frames fit."""
    for name in (SCRIPT_VARIABLE, LOG_VARIABLE):
        monkeypatch.setenv(name, card.environ[name])
    made = BatchRunner(ScriptedDetector(), ScriptedMeter(2048, 300), batch_px=16 * SMALL_FRAME_PX)
    yield made
    made.unload()


def small_frames(count: int) -> np.ndarray:
    """Frames (N, H, W, 3) of different grey, so that no answer can pass for another's."""
    frames = np.zeros((count, SMALL_PX[1], SMALL_PX[0], 3), np.uint8)
    frames += np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]
    return frames


def boxes(found: object) -> list[list[float]]:
    assert isinstance(found, list)
    assert all(isinstance(answer, TextBoxes) for answer in found)
    return [answer.points.ravel().tolist() for answer in found]


@pytest.mark.parametrize("fitting_count", [1, 3, 8, 15])
def test_a_batch_is_halved_until_it_fits_and_finds_the_same(
    runner: BatchRunner, card: SimulatedCard, fitting_count: int
):
    frames = small_frames(16)
    whole = boxes(runner.detect(frames))
    card.script(limit_px=fitting_count * SMALL_FRAME_PX)
    assert boxes(runner.detect(frames)) == whole
    assert card.events("out_of_memory")
    sizes = [count for _width, count in real_frames(card.events())][1:]
    assert sum(sizes) == 16
    assert max(sizes) <= fitting_count


def test_what_fits_is_remembered_and_more_is_tried_when_the_stranger_may_have_left(
    runner: BatchRunner, card: SimulatedCard
):
    card.script(limit_px=5 * SMALL_FRAME_PX)
    runner.detect(small_frames(16))
    failed_count = len(card.events("out_of_memory"))
    assert failed_count > 0
    runner.detect(small_frames(16))
    assert len(card.events("out_of_memory")) == failed_count
    card.script(limit_px=None)
    for _ in range(3 * GROW_AFTER):
        runner.detect(small_frames(4))
    assert runner.take_statistics().out_of_memory_count == failed_count
    runner.detect(small_frames(16))
    assert runner.take_statistics().batch_sizes == {16: 1}


def test_frames_that_do_not_fit_wait_for_memory_while_the_others_keep_their_scores(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    place = prepared.copy(tmp_path / "out")
    card.script(limit_px=ONE_SMALL_FITS)
    process = materialize(card, place)
    with place.instance() as instance:
        card.wait_for(
            lambda: count_of(instance, dg.DagsterEventType.STEP_UP_FOR_RETRY), "it asks for a retry"
        )
        first_try = card.events()
        assert sum(count for _width, count in real_frames(first_try)) == 30
        rows = place.data.score_files.rows(SHARD, place.scorer_id).to_pylist()
        reasons = [frame["reason"] for row in rows for frame in row["frames"]]
        assert sorted(map(str, reasons)) == ["None"] * 30 + ["out_of_memory"] * 5
        card.script(limit_px=None)
        card.finish(process)
        [run] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1)
        assert instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_RESTARTED)
    retried = real_frames(card.events()[len(first_try) :])
    assert {width for width, _count in retried} == {LARGE_PX[0]}
    assert sum(count for _width, count in retried) == FRAMES_PER_CLIP
    assert_all_scored(place)
    assert card.holders() == []


def test_what_never_fits_is_recorded_with_its_reason_and_scored_by_the_next_run(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    place = prepared.copy(tmp_path / "out", OCR_ASSETS_RETRY_WAIT_SECONDS="0.1")
    card.script(limit_px=ONE_SMALL_FITS)
    card.finish(materialize(card, place, *IN_PROCESS))
    with place.instance() as instance:
        assert count_of(instance, dg.DagsterEventType.STEP_RESTARTED) == 3
    metadata = last_materialization(place)
    assert metadata["unscored_frames"] == FRAMES_PER_CLIP
    assert place.scored_shards() == []
    unscored = place.data.score_store.query(
        "SELECT reason, count(*) AS n FROM unscored WHERE stage = 'ocr_scores' GROUP BY reason"
    )
    assert unscored.to_pylist() == [{"reason": "out_of_memory", "n": FRAMES_PER_CLIP}]
    _assert_learned(place)
    card.script(limit_px=None)
    card.run(OCR_ASSETS, "run", **place.environ)
    assert_all_scored(place)


def _assert_learned(place: Place) -> None:
    """That so many pixels do not fit is kept, with the memory that could have been had."""
    [failed] = {
        (record.width_px, record.frame_count, record.peak_mib)
        for record in place.data.memory_records.rows()
        if record.is_out_of_memory and record.frame_count == 1
    }
    assert failed == (LARGE_PX[0], 1, 1000)
    [row] = place.data.score_store.query(
        "SELECT width_px, peak_mib FROM worker_memory WHERE is_out_of_memory AND frame_count = 1"
    ).to_pylist()
    assert row == {"width_px": LARGE_PX[0], "peak_mib": 1000}


def test_memory_that_is_gone_when_the_model_loads_is_waited_for(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    # A stranger was faster between the look at the free memory and the loading.
    place = prepared.copy(tmp_path / "out")
    card.script(is_loadable=False)
    process = materialize(card, place)
    card.wait_for(lambda: card.events("out_of_memory"), "the model did not fit")
    card.script(is_loadable=True)
    card.finish(process)
    assert_all_scored(place)


def test_a_stranger_in_mid_run_costs_time_and_no_score(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    place = prepared.copy(tmp_path / "out")
    # Slow enough to be caught between two batches.
    card.script(seconds_per_frame=0.2)
    process = materialize(card, place)
    card.wait_for(lambda: real_frames(card.events()), "a first batch went through")
    card.script(limit_px=ONE_LARGE_FITS, seconds_per_frame=0.05)
    card.wait_for(lambda: card.events("out_of_memory"), "a batch did not fit")
    card.finish(process)
    with place.instance() as instance:
        assert count_of(instance, dg.DagsterEventType.STEP_UP_FOR_RETRY) == 0
    metadata = last_materialization(place)
    assert metadata["out_of_memory_batches"] > 0
    assert metadata["unscored_frames"] == 0
    assert metadata["batch_sizes"].keys() > {"9"}
    assert_all_scored(place)


def test_a_failed_device_costs_its_worker_and_is_tried_again_in_another_process(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    place = prepared.copy(tmp_path / "out")
    token = tmp_path / "token"
    token.touch()
    card.script(failing_token=os.fspath(token))
    card.run(OCR_ASSETS, "run", **place.environ)
    [failed] = card.events("device_failed")
    assert failed.pid not in {event.pid for event in card.events("detected")}
    with place.instance() as instance:
        statuses = [
            run.status.value
            for run in instance.get_runs()
            if dg.AssetKey("ocr_scores") in (run.asset_selection or ())
        ]
    assert sorted(statuses) == ["FAILURE", "SUCCESS"]
    assert_all_scored(place)
    assert card.holders() == []


def test_a_failed_device_is_left_to_dagsters_retry_where_dagster_started_the_process(
    card: SimulatedCard, prepared: Place, tmp_path: Path
):
    place = prepared.copy(tmp_path / "out")
    token = tmp_path / "token"
    token.touch()
    card.script(failing_token=os.fspath(token))
    card.finish(materialize(card, place))
    [failed] = card.events("device_failed")
    assert failed.pid not in {event.pid for event in card.events("detected")}
    with place.instance() as instance:
        assert count_of(instance, dg.DagsterEventType.STEP_UP_FOR_RETRY) == 1
    assert_all_scored(place)
