"""The assets on a real instance, with real DuckDB and a real detector (PP-OCR, quick to load)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import encode_video
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocr_assets.assets import ALL_ASSETS
from ocr_assets.curation.sources import SourceError
from ocr_assets.definitions import build_definitions
from ocr_assets.instance import open_instance
from ocr_assets.results import sample_rows
from ocr_assets.settings import Settings, load_settings
from resources.data_directory import DataDirectory

SIZE_PX = (320, 240)


def titled(text: str, font_px: int = 40) -> NDArray[np.uint8]:
    image = Image.new("RGB", SIZE_PX, (20, 30, 60))
    ImageDraw.Draw(image).text(
        (160, 120), text, fill="white", font=ImageFont.load_default(font_px), anchor="mm"
    )
    return np.asarray(image)


def write_corpus(folder: Path) -> Path:
    """A title, the same file again, a plain clip, and a file that is no video."""
    folder.mkdir()
    images = [titled("HELLO WORLD")] * 6
    encode_video(folder / "title.mp4", size_px=SIZE_PX, images=images)
    (folder / "title_copy.mp4").write_bytes((folder / "title.mp4").read_bytes())
    encode_video(folder / "plain.mp4", size_px=SIZE_PX, images=[titled("")] * 6)
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return folder


class Pipeline:
    """One data directory with its instance."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.data = DataDirectory(settings.data_dir)

    def materialize(
        self, *assets: str, shard: str | None = None, config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        resources = build_definitions(self.settings).resources or {}
        return dg.materialize(
            ALL_ASSETS,
            selection=list(assets),
            instance=self.instance,
            partition_key=shard,
            resources={**resources, "data": self.data},
            run_config={"ops": config} if config else None,
            raise_on_error=False,
        )

    def all_in_order(self) -> None:
        assert self.materialize("videos").success
        for shard in self.shards():
            assert self.materialize("frames", "ocr_scores", shard=shard).success
        assert self.materialize("filtered_dataset").success

    def shards(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions("shards"))

    def outcome(self) -> dict[str, str | None]:
        """Why each video was dropped, by file name; None: kept."""
        return {
            Path(row.video_paths[0]).name: row.reason if not row.is_kept else None
            for row in sample_rows(self.data)
        }


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = load_settings(
        source=(str(write_corpus(tmp_path / "videos")),),
        data_dir=tmp_path / "data",
        detector="ppocr",
        sampler="uniform(1)",
        decode_processes=1,
    )
    with open_instance(settings) as instance:
        yield Pipeline(settings, instance)


def message_of(result: dg.ExecuteInProcessResult) -> str:
    failures = [event for event in result.all_events if event.is_step_failure]
    assert failures, "the run was meant to fail"
    error = failures[0].step_failure_data.error
    assert error is not None
    return str(error.to_string())


def test_every_path_gets_a_verdict_and_a_copy_is_scored_once(pipeline: Pipeline):
    pipeline.all_in_order()
    assert pipeline.outcome() == {
        "title.mp4": "text_area_above_max",
        "title_copy.mp4": "text_area_above_max",
        "plain.mp4": None,
        "broken.mp4": "unscored: not_a_video",
    }
    scored = pipeline.data.score_store.query("SELECT count(*) AS n FROM video_scores").to_pylist()
    assert scored == [{"n": 2}]


def test_a_changed_threshold_touches_no_frame_and_no_score(pipeline: Pipeline):
    pipeline.all_in_order()
    data = pipeline.data
    files = sorted([*data.frames.directory.glob("*"), *data.score_files.directory.glob("*")])
    before = [path.stat().st_mtime_ns for path in files]
    config = {"filtered_dataset": {"config": {"max_ratio": 1.0}}}
    assert pipeline.materialize("filtered_dataset", config=config).success
    assert pipeline.outcome()["title.mp4"] is None
    assert [path.stat().st_mtime_ns for path in files] == before


def test_both_sides_are_written_with_reasons_and_data_juicers_statistic(pipeline: Pipeline):
    pipeline.all_in_order()
    folder = pipeline.data.dataset
    kept = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [Path(sample["videos"][0]).name for sample in kept] == ["plain.mp4"]
    assert kept[0]["__dj__stats__"] == {"video_ocr_area_ratio": [0.0]}
    by_name = {Path(sample["videos"][0]).name: sample for sample in rejected}
    means = pipeline.data.score_store.query(
        "SELECT avg(box_area_ratio) AS mean FROM frame_scores WHERE box_count > 0"
    ).to_pylist()
    assert by_name["title.mp4"]["__dj__stats__"]["video_ocr_area_ratio"] == [means[0]["mean"]]
    assert by_name["broken.mp4"]["__dj__stats__"]["video_ocr_area_ratio"] == [None]
    assert by_name["broken.mp4"]["unscored_reasons"] == ["not_a_video"]
    reasons = pq.read_table(folder / "rejected.parquet").column("reason").to_pylist()
    assert sorted(map(str, reasons)) == ["text_area_above_max", "text_area_above_max", "unscored"]
    assert pq.read_table(folder / "kept.parquet").column("reason").to_pylist() == [None]


def test_columns_of_a_manifest_are_carried_through_untouched(pipeline: Pipeline, tmp_path: Path):
    manifest = tmp_path / "samples.parquet"
    own = pa.table(
        {
            "videos": [["videos/plain.mp4"], ["videos/title.mp4", "videos/plain.mp4"]],
            "text": ["one", "two"],
            "weight": pa.array([0.25, 0.5], pa.float32()),
            "when": pa.array([1, 2], pa.timestamp("us")),
        }
    )
    pq.write_table(own, manifest)
    pipeline.settings = load_settings(
        **{**dict(pipeline.settings), "source": (str(manifest),), "several_videos": "all"}
    )
    pipeline.all_in_order()
    kept = pq.read_table(pipeline.data.dataset / "kept.parquet")
    rejected = pq.read_table(pipeline.data.dataset / "rejected.parquet")
    for side, row in ((kept, 0), (rejected, 1)):
        assert (
            side.select(["text", "weight", "when"]).to_pylist()
            == own.slice(row, 1).select(["text", "weight", "when"]).to_pylist()
        )
        assert side.schema.field("weight").type == pa.float32()
    assert kept.column("videos").to_pylist() == [[str(tmp_path / "videos/plain.mp4")]]


def test_a_file_that_vanished_or_changed_after_discovery_is_unscored(pipeline: Pipeline):
    assert pipeline.materialize("videos").success
    folder = Path(pipeline.settings.source[0])
    (folder / "plain.mp4").unlink()
    for name in ("title.mp4", "title_copy.mp4"):
        (folder / name).write_bytes((folder / name).read_bytes() + b"more")
    for shard in pipeline.shards():
        assert pipeline.materialize("frames", "ocr_scores", shard=shard).success
    assert pipeline.materialize("filtered_dataset").success
    assert pipeline.outcome() == {
        "title.mp4": "unscored: file_changed",
        "title_copy.mp4": "unscored: file_changed",
        "plain.mp4": "unscored: file_missing",
        "broken.mp4": "unscored: not_a_video",
    }


def test_a_removed_file_is_marked_and_a_touched_one_is_not_scored_again(pipeline: Pipeline):
    pipeline.all_in_order()
    shards = pipeline.shards()
    folder = Path(pipeline.settings.source[0])
    (folder / "title_copy.mp4").unlink()
    (folder / "plain.mp4").touch()
    assert pipeline.materialize("videos").success
    states = pipeline.data.score_store.query("SELECT path, state FROM video_files").to_pylist()
    by_name = {Path(row["path"]).name: row["state"] for row in states}
    assert by_name["title_copy.mp4"] == "missing"
    assert by_name["plain.mp4"] == "present"
    assert pipeline.shards() == shards


def test_unscored_samples_fail_the_dataset_where_the_rule_says_so(pipeline: Pipeline):
    pipeline.all_in_order()
    before = (pipeline.data.dataset / "kept.parquet").read_bytes()
    config = {"filtered_dataset": {"config": {"unscored": "FAIL"}}}
    result = pipeline.materialize("filtered_dataset", config=config)
    assert "unscored: fail" in message_of(result)
    assert (pipeline.data.dataset / "kept.parquet").read_bytes() == before


def test_scores_without_frames_say_what_to_materialize_first(pipeline: Pipeline):
    assert pipeline.materialize("videos").success
    shard = pipeline.shards()[0]
    result = pipeline.materialize("ocr_scores", shard=shard)
    assert f"shard {shard} has no frames" in message_of(result)
    assert "materialize `frames` first" in message_of(result)


def test_a_source_that_holds_nothing_is_told_as_such(pipeline: Pipeline, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    config = {"videos": {"config": {"source": [str(tmp_path / "empty")]}}}
    result = pipeline.materialize("videos", config=config)
    assert SourceError.__name__ in message_of(result)
    assert "holds no video" in message_of(result)
    assert not pipeline.data.catalog.has_catalog()


def test_scores_survive_a_database_that_somebody_holds_open(pipeline: Pipeline):
    assert pipeline.materialize("videos").success
    shard = pipeline.shards()[0]
    assert pipeline.materialize("frames", shard=shard).success
    pipeline.data.score_store.wait_seconds = 0.5
    script = (
        "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True);"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(pipeline.data.score_store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        result = pipeline.materialize("ocr_scores", shard=shard)
        assert result.success
        [event] = result.get_asset_materialization_events()
        metadata = event.step_materialization_data.materialization.metadata
        assert f"PID {holder.pid}" in str(metadata["duckdb"].value)
        holder.communicate()
    assert pipeline.data.score_store.merge(pipeline.data.score_files) == [shard]


def test_a_run_over_several_shards_reports_each_on_its_own(pipeline: Pipeline):
    pipeline.settings = load_settings(
        **{**dict(pipeline.settings), "shard_target_megapixels": 0.01, "max_slots": 1}
    )
    assert pipeline.materialize("videos").success
    first, last = pipeline.shards()
    assert pipeline.materialize("frames", shard=first).success
    job = build_definitions(pipeline.settings).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=pipeline.instance,
        asset_selection=[dg.AssetKey("ocr_scores")],
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
        raise_on_error=False,
    )
    assert f"shard {last} has no frames" in message_of(result)
    done = pipeline.instance.get_materialized_partitions(dg.AssetKey("ocr_scores"))
    assert done == {first}
