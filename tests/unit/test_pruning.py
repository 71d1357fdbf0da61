"""Pruning: what may go and what stays, on real files, DuckDB and a real instance."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from filelock import FileLock
from making import (
    encode_video,
    frame_row,
    missing_file_row,
    numbered_image,
    score_rows,
    segment_row,
    stored_frame,
    write_catalog,
)
from typer.testing import CliRunner, Result

from ocr_assets.cli import app
from ocr_assets.curation.manifest import samples_table
from ocr_assets.discovering import run_discovery
from ocr_assets.instance import PROCESS_TAG, open_instance, process_tags
from ocr_assets.partitions import add_missing_shards
from ocr_assets.pruning import (
    PARTIAL_SECONDS,
    SHARD_TABLES,
    PruneRefusedError,
    find_stale_shards,
    plan_prune,
)
from ocr_assets.scoring import Scorer
from ocr_assets.settings import load_settings
from resources.data_directory import DataDirectory
from resources.detectors import detector_spec
from resources.frame_store import FramesProvenance

SAMPLER = "uniform(3)"
SCORER_ID = Scorer(SAMPLER, detector_spec("craft")).scorer_id


class Directory:
    """A data directory whose shards have frames, scores and usage, and an instance that has run."""

    def __init__(self, path: Path) -> None:
        self.settings = load_settings(data_dir=path)
        self.data = DataDirectory(path)

    def hold(self, videos_by_shard: Mapping[str, Sequence[str]], *gone: str) -> None:
        """Writes everything; the videos that are `gone` are missing as in a folder."""
        segments = [(s, v) for s, of_shard in videos_by_shard.items() for v in of_shard]
        counts: dict[str, int] = {}
        rows: list[dict[str, Any]] = []
        for shard, video_id in segments:
            rows.append({"shard": shard, "video_id": video_id, "at": counts.get(video_id, 0)})
            counts[video_id] = counts.get(video_id, 0) + 1
        catalog = self.data.catalog
        write_catalog(catalog, counts)
        dealt = [
            {
                **row,
                "segment_index": row["at"],
                "start_seconds": 0.0,
                "end_seconds": 1.0,
                "cost_megapixels": 1.0,
            }
            for row in rows
        ]
        schema = catalog.segments().schema
        self.rewrite_catalog(segments=pa.Table.from_pylist(dealt, schema=schema))
        self.mark({f"/videos/{video_id}.mp4": {"state": "missing"} for video_id in gone})
        for shard, of_shard in videos_by_shard.items():
            self.fill(shard, of_shard)
        self.data.score_store.refresh_catalog(catalog)
        self.data.score_store.merge(self.data.score_files)
        with open_instance(self.settings) as instance:
            add_missing_shards(instance, list(videos_by_shard))

    def fill(self, shard: str, video_ids: Sequence[str], *, reason: str | None = None) -> None:
        with self.data.frames.writing(shard) as writer:
            writer.add(stored_frame())
            writer.finish(FramesProvenance(SAMPLER, []))
        frames = [frame_row(reason=reason)]
        scores = [
            segment_row(v, frames=frames, shard=shard, scorer_id=SCORER_ID) for v in video_ids
        ]
        self.data.score_files.write(shard, SCORER_ID, score_rows(*scores))
        usage = self.data.usage_files.path(shard)
        usage.parent.mkdir(exist_ok=True)
        usage.write_bytes(b"usage")

    def mark(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Changes rows of the catalog's files, by path."""
        files = self.data.catalog.files()
        rows = [{**row, **changes.get(row["path"], {})} for row in files.to_pylist()]
        self.rewrite_catalog(files=pa.Table.from_pylist(rows, schema=files.schema))

    def rewrite_catalog(self, **tables: Any) -> None:
        catalog = self.data.catalog
        kept = {
            "files": catalog.files(),
            "videos": catalog.videos(),
            "segments": catalog.segments(),
            "samples": [samples_table([{"videos": []}], [[]])],
        }
        catalog.write(**{**kept, **tables})

    def prune(self, *options: str) -> Result:
        return CliRunner().invoke(app, ["prune", "--out", str(self.data.path), *options])

    def names(self) -> set[str]:
        """Every file but those of DuckDB and Dagster."""
        return {
            str(path.relative_to(self.data.path))
            for path in self.data.path.rglob("*")
            if path.is_file()
            and "dagster" not in path.parts
            and not path.name.startswith(("ocr_assets.", ".s0"))
        }

    def contents(self) -> dict[Path, tuple[bytes, int]]:
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.data.path.rglob("*")
            if path.is_file()
        }

    def shards_of(self, table: str) -> set[str]:
        rows = self.data.score_store.query(f"SELECT DISTINCT shard FROM {table}").to_pylist()
        return {row["shard"] for row in rows}

    def partition_keys(self) -> set[str]:
        with open_instance(self.settings) as instance:
            return set(instance.get_dynamic_partitions("shards"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directory:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Directory(tmp_path / "data")


@pytest.fixture
def stale(directory: Directory) -> Directory:
    """Of three shards, all videos of the first are gone."""
    directory.hold({"s000001": ["a", "b"], "s000002": ["c"], "s000003": ["d"]}, "a", "b")
    return directory


def test_looking_changes_no_byte(stale: Directory):
    before = stale.contents()
    result = stale.prune("--stale")
    assert result.exit_code == 0, result.output
    assert "Nothing was removed" in result.output
    assert stale.contents() == before


def test_what_is_listed_is_what_goes(stale: Directory):
    before = stale.names()
    listed = {line.split("  ")[0] for line in stale.prune().output.splitlines() if " MiB" in line}
    result = stale.prune("--yes")
    assert result.exit_code == 0, result.output
    assert "Removed." in result.output
    assert before - stale.names() == {f"frames/s00000{number}.parquet" for number in (1, 2, 3)}
    assert listed >= before - stale.names()
    assert "Nothing to remove." in stale.prune("--yes").output


def test_the_size_is_told_in_mib(directory: Directory):
    directory.hold({"s000001": ["a"]})
    path = directory.data.frames.path("s000001")
    path.write_bytes(bytes(3 << 20))
    assert "frames/s000001.parquet  3.00 MiB" in directory.prune().output


def test_frames_stay_where_they_are_asked_to(stale: Directory):
    assert "Nothing to remove." in stale.prune("--yes", "--no-frames").output


@pytest.mark.parametrize("option", [("--detector", "ppocr"), ("--sampler", "uniform(1)")])
def test_frames_stay_that_the_current_scorer_has_not_scored(
    stale: Directory, option: tuple[str, str]
):
    assert "Nothing to remove." in stale.prune("--yes", *option).output


def test_frames_stay_where_a_frame_is_to_be_scored_again(directory: Directory):
    directory.hold({"s000001": ["a"], "s000002": ["b"]})
    directory.fill("s000001", ["a"], reason="out_of_memory")
    directory.prune("--yes")
    assert directory.data.frames.path("s000001").exists()
    assert not directory.data.frames.path("s000002").exists()


def test_only_our_own_old_partial_files_go(directory: Directory):
    directory.hold({"s000001": ["a"]})
    folder = directory.data.frames.directory
    old, young, strange = folder / ".ab12.partial", folder / ".cd34.partial", folder / "x.partial"
    for path in (old, young, strange):
        path.write_bytes(b"part")
    long_ago = time.time() - PARTIAL_SECONDS - 60
    for path in (old, strange):
        os.utime(path, (long_ago, long_ago))
    directory.prune("--yes", "--no-frames")
    assert (old.exists(), young.exists(), strange.exists()) == (False, True, True)


def test_a_stale_shard_goes_from_everywhere_and_the_others_stay(stale: Directory):
    before = stale.names()
    result = stale.prune("--yes", "--stale", "--no-frames")
    assert result.exit_code == 0, result.output
    assert before - stale.names() == {
        f"{folder}/s000001.parquet" for folder in ("frames", "scores", "usage")
    }
    rest = {"s000002", "s000003"}
    assert stale.partition_keys() == rest
    for table in ("segments", "segment_scores", "frame_scores", "text_boxes"):
        assert stale.shards_of(table) == rest
    for table in SHARD_TABLES:
        assert "s000001" not in stale.shards_of(table)
    catalog = stale.data.catalog
    for rows in (catalog.files(), catalog.videos(), catalog.segments()):
        assert rows["video_id"].to_pylist() == ["c", "d"]
    assert [table.num_rows for table in catalog.samples()] == [1]
    assert "Nothing to remove." in stale.prune("--yes", "--stale", "--no-frames").output


def test_every_table_with_rows_of_a_shard_is_pruned(stale: Directory):
    columns = stale.data.score_store.query(
        "SELECT table_name FROM information_schema.columns AS c"
        " JOIN information_schema.tables USING (table_name)"
        " WHERE column_name = 'shard' AND table_type = 'BASE TABLE'"
    )
    assert {*SHARD_TABLES, "segments"} == set(columns["table_name"].to_pylist())


def test_stale_shards_stay_unless_asked_for(stale: Directory):
    before = stale.partition_keys()
    assert "s000001" in stale.prune().output
    stale.prune("--yes")
    assert stale.data.score_files.path("s000001").exists()
    assert stale.partition_keys() == before


def stale_shards(directory: Directory) -> list[str]:
    return list(find_stale_shards(directory.data).shards)


def test_the_newest_shard_is_never_stale_since_its_number_would_be_dealt_again(
    directory: Directory,
):
    directory.hold({"s000001": ["a"], "s000002": ["b"], "s000003": ["c"]}, "a", "c")
    assert stale_shards(directory) == ["s000001"]


def test_a_shard_that_shares_a_video_with_one_that_stays_is_not_stale(directory: Directory):
    directory.hold(
        {"s000001": ["a"], "s000002": ["a", "b"], "s000003": ["b", "c"], "s000004": ["d"]},
        "a",
        "b",
    )
    assert stale_shards(directory) == []
    directory.hold(
        {"s000001": ["a"], "s000002": ["a", "b"], "s000003": ["b"], "s000004": ["d"]}, "a", "b"
    )
    assert stale_shards(directory) == ["s000001", "s000002", "s000003"]


def test_a_video_outside_the_last_sources_is_not_gone(stale: Directory):
    stale.mark({"/videos/a.mp4": {"state": "outside"}})
    assert stale_shards(stale) == []


def test_a_video_that_is_back_is_not_gone(stale: Directory, tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"back")
    stale.mark({"/videos/a.mp4": {"path": str(tmp_path / "a.mp4")}})
    assert stale_shards(stale) == []


def test_a_video_that_another_path_still_has_is_not_gone(stale: Directory):
    stale.mark({"/videos/d.mp4": {"video_id": "a"}})
    assert stale_shards(stale) == []


def test_a_video_that_a_manifest_still_names_is_gone(stale: Directory):
    nameless = missing_file_row("/videos/a.mp4")
    stale.mark({"/videos/a.mp4": nameless})
    assert stale_shards(stale) == ["s000001"]


def test_what_may_be_in_a_file_that_cannot_be_read_is_not_gone(stale: Directory):
    unreadable = {"video_id": None, "state": "unreadable", "reason": "file_unreadable"}
    stale.mark({"/videos/a.mp4": unreadable})
    assert stale_shards(stale) == []


def test_when_nothing_is_there_nothing_is_stale(directory: Directory):
    directory.hold({"s000001": ["a"], "s000002": ["b"]}, "a", "b")
    before = directory.contents()
    result = directory.prune("--yes", "--stale")
    assert result.exit_code == 2
    assert "none of the 2 files" in result.stderr
    assert "mount or restore" in result.stderr
    assert directory.contents() == before


def test_a_directory_without_a_catalog_is_told(tmp_path: Path):
    with pytest.raises(PruneRefusedError, match=r"there is no catalog in .* name a data directory"):
        plan_prune(DataDirectory(tmp_path), SCORER_ID, with_frames=True, with_stale=True)
    assert list(tmp_path.iterdir()) == []


@dg.op
def step() -> None: ...


@dg.job
def job() -> None:
    step()


@pytest.fixture
def with_run(stale: Directory) -> Iterator[tuple[Directory, dg.DagsterInstance]]:
    with open_instance(stale.settings) as instance:
        yield stale, instance


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_at_work_is_left_alone(
    with_run: tuple[Directory, dg.DagsterInstance], status: dg.DagsterRunStatus
):
    directory, instance = with_run
    run = instance.create_run_for_job(job, status=status, tags=process_tags())
    before = directory.names()
    result = directory.prune("--yes", "--stale")
    assert result.exit_code == 2
    assert run.run_id in result.stderr
    assert "nothing was removed" in result.stderr
    assert directory.names() == before
    assert directory.prune("--stale").exit_code == 0


def test_a_run_that_a_dead_process_left_is_in_nobodys_way(
    with_run: tuple[Directory, dg.DagsterInstance],
):
    directory, instance = with_run
    host, _pid, started, namespace = process_tags()[PROCESS_TAG].split("/")
    # No process has an id beyond the kernel's bound of 2^22.
    tags = {PROCESS_TAG: f"{host}/{1 << 23}/{started}/{namespace}"}
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    result = directory.prune("--yes")
    assert result.exit_code == 0, result.output


def test_a_database_in_use_keeps_stale_shards_whole(
    stale: Directory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("resources.score_store.ScoreStore.__init__.__defaults__", (0.2,))
    before = (stale.names(), stale.partition_keys())
    with FileLock(stale.data.score_store.path.with_suffix(".lock")):
        result = stale.prune("--yes", "--stale")
    assert result.exit_code == 2
    assert "has been in use" in result.stderr
    assert (stale.names(), stale.partition_keys()) == before


def test_a_pruned_pipeline_has_nothing_to_compute_and_takes_videos_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("OCR_ASSETS_SHARD_TARGET_MEGAPIXELS", "0.01")
    monkeypatch.setenv("OCR_ASSETS_SAMPLER", "uniform(1)")
    monkeypatch.setenv("OCR_ASSETS_DETECTOR", "ppocr")
    monkeypatch.setenv("OCR_ASSETS_MAX_SLOTS", "1")
    (tmp_path / "clips").mkdir()
    clips = [tmp_path / "clips" / f"clip{number}.mp4" for number in range(3)]
    for number, clip in enumerate(clips):
        encode_video(
            clip, size_px=(160, 128), images=[numbered_image(number, (160, 128))] * (4 - number)
        )
    out = tmp_path / "out"
    data = DataDirectory(out)

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
        return result.output

    def frames() -> list[str]:
        return sorted(path.stem for path in data.frames.directory.glob("*.parquet"))

    def scored_count() -> int:
        rows = data.score_store.query("SELECT count(*) AS n FROM video_scores")
        return rows.to_pylist()[0]["n"]

    source = str(tmp_path / "clips")
    invoke("run", source)
    shards = frames()
    assert len(shards) == 3
    [first] = data.catalog.segments(shards[0])["video_id"].to_pylist()
    [gone] = [
        Path(row["path"]) for row in data.catalog.files().to_pylist() if row["video_id"] == first
    ]
    content = gone.read_bytes()
    gone.unlink()
    run_discovery(
        load_settings(data_dir=out),
        data,
        sources=[source],
        min_shard_count=1,
        process_count=1,
        on_progress=lambda _done, _total: None,
    )
    invoke("prune", "--yes", "--stale")
    assert frames() == []
    assert scored_count() == 2
    assert "Nothing to compute" in invoke("run", source)
    assert frames() == []
    gone.write_bytes(content)
    assert "Nothing to compute" not in invoke("run", source)
    assert frames() == ["s000004"]
    assert scored_count() == 3
