"""The one door to DuckDB, with real processes in front of it and behind it."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from making import (
    NOW,
    frame_row,
    missing_file_row,
    score_rows,
    segment_row,
    write_catalog,
)

from resources.atomic_files import write_table
from resources.catalog_store import CatalogStore
from resources.data_directory import DataDirectory
from resources.score_store import SCHEMA_VERSION, SchemaVersionError, ScoreStore, StoreBusyError
from resources.usage_files import usage_table
from resources.usage_sampler import UsageSample

SCHEMA = files("resources").joinpath("schema.sql").read_text()

NEW_IN_VERSION_2 = ("gpu_samples", "merged_usage_files", "worker_memory")

WAIT_SECONDS = 0.3

_HOLD_OPEN = """
import sys
import duckdb
with duckdb.connect(sys.argv[1], read_only=True):
    print("open", flush=True)
    sys.stdin.read()
"""

_EIGHT_AT_ONCE = """
import multiprocessing, sys
from pathlib import Path
import pyarrow.parquet as pq
from resources.data_directory import DataDirectory

def write_and_merge(number):
    data, shard = DataDirectory(Path(sys.argv[1])), f"s{number:06d}"
    for round_number in range(2):
        rows = pq.read_table(Path(sys.argv[2], f"{shard}_{round_number}.parquet"))
        together.wait()
        data.score_files.write(shard, "scorer", rows)
        data.score_store.merge(data.score_files)

# Forked, so that Python and its libraries start once and the eight do meet at the barrier.
context = multiprocessing.get_context("fork")
together = context.Barrier(8)
processes = [context.Process(target=write_and_merge, args=[number]) for number in range(8)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(sum(process.exitcode != 0 for process in processes))
"""


def directory(path: Path) -> DataDirectory:
    data = DataDirectory(path)
    data.score_store.wait_seconds = WAIT_SECONDS
    return data


def write(data: DataDirectory, *rows: dict[str, Any], shard: str = "s000001") -> None:
    scorer_id = rows[0]["scorer_id"] if rows else "scorer"
    data.score_files.write(shard, scorer_id, score_rows(*rows))


def write_usage(
    data: DataDirectory, used_mib: Sequence[int], *, shard: str = "s000001", run_id: str = "run"
) -> None:
    samples = [UsageSample(NOW, float(i), used, 24564, None, 42) for i, used in enumerate(used_mib)]
    table = usage_table(
        samples,
        shard=shard,
        run_id=run_id,
        process_id=77,
        host="machine",
        device_uuid="GPU-a",
        device_name="NVIDIA L4",
        slot_index=1,
    )
    data.usage_files.write(shard, table)


def memory_rows(*peak_mib: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "detector": "craft",
                "weights_sha256": "0" * 64,
                "dtype": "float16",
                "device_name": "NVIDIA L4",
                "host": "machine",
                "height_px": 720,
                "width_px": 1280,
                "frame_count": frame_count,
                "peak_mib": peak,
                "is_out_of_memory": False,
                "measured_at": NOW,
            }
            for frame_count, peak in enumerate(peak_mib, start=1)
        ]
    )


def make_version_1(store: ScoreStore) -> None:
    """Puts in the store's place a database as version 1 made it, with one row in it."""
    schema = SCHEMA
    for table in NEW_IN_VERSION_2:
        statement = rf"^CREATE TABLE IF NOT EXISTS {table} \([^;]*\);\n"
        schema, count = re.subn(statement, "", schema, flags=re.MULTILINE)
        assert count == 1
    with duckdb.connect(store.path) as connection:
        connection.execute("CREATE TABLE schema_version (version INTEGER)")
        connection.execute(schema)
        connection.execute("INSERT INTO schema_version VALUES (1)")
        connection.execute("INSERT INTO videos (video_id) VALUES ('old')")


def rows_of(data: DataDirectory, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in data.score_store.query(sql).to_pylist()]


def everything(data: DataDirectory) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("segment_scores", "frame_scores", "text_boxes", "merged_score_files")
    return {table: rows_of(data, f"SELECT * FROM {table} ORDER BY ALL") for table in tables}


def scored(data: DataDirectory) -> set[str]:
    return {video_id for (video_id,) in rows_of(data, "SELECT video_id FROM video_scores")}


def unscored(data: DataDirectory) -> set[tuple[str | None, str]]:
    return set(rows_of(data, "SELECT video_id, reason FROM unscored"))


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + "\n"


def test_a_merge_takes_in_segments_frames_and_boxes(tmp_path: Path):
    data = directory(tmp_path)
    write(
        data,
        segment_row(
            "a", 0, frames=[frame_row(0, 0.25, box_count=2), frame_row(7, 0.0, box_count=0)]
        ),
        segment_row("a", 1, reason="decode_failed"),
    )
    assert data.score_store.merge(data.score_files) == ["s000001"]
    found = everything(data)
    assert found["segment_scores"] == [
        ("scorer", "s000001", "a", 0, 2, None, None),
        ("scorer", "s000001", "a", 1, 0, "decode_failed", "in words"),
    ]
    assert [row[4:] for row in found["frame_scores"]] == [
        (0, 0.0, 64, 48, 0.25, 0.25, 2, None, None),
        (7, 0.7, 64, 48, 0.0, 0.0, 0, None, None),
    ]
    points = [1.0, 1.0, 5.0, 1.0, 5.0, 3.0, 1.0, 3.0]
    assert found["text_boxes"] == [
        ("scorer", "s000001", "a", 0, index, points, 0.5) for index in (0, 1)
    ]


def test_a_second_merge_changes_nothing(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"), segment_row("b"))
    data.score_store.merge(data.score_files)
    before = everything(data)
    assert data.score_store.merge(data.score_files) == []
    assert everything(data) == before


def test_a_file_that_changed_is_merged_again_and_replaces_its_rows(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a", frames=[frame_row(0, 0.1), frame_row(1, 0.1)]))
    write(data, segment_row("b", shard="s000002"), shard="s000002")
    data.score_store.merge(data.score_files)
    write(data, segment_row("a", frames=[frame_row(0, 0.9)]))
    assert data.score_store.merge(data.score_files) == ["s000001"]
    rows = rows_of(data, "SELECT video_id, text_area_ratio FROM frame_scores ORDER BY ALL")
    assert rows == [("a", 0.9), ("b", 0.1)]
    assert rows_of(data, "SELECT count(*) FROM merged_score_files") == [(2,)]


def test_a_database_that_is_lost_is_built_again_from_the_files(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"))
    data.score_store.merge(data.score_files)
    before = everything(data)
    data.score_store.path.unlink()
    data.score_store.merge(data.score_files)
    assert everything(data) == before


def test_scorers_do_not_mix(tmp_path: Path):
    data = directory(tmp_path)
    write_catalog(data.catalog, {"a": 1})
    data.score_store.refresh_catalog(data.catalog)
    for scorer_id, ratio in (("one", 0.1), ("two", 0.5)):
        write(data, segment_row("a", scorer_id=scorer_id, frames=[frame_row(0, ratio)]))
    data.score_store.merge(data.score_files)
    found = rows_of(data, "SELECT scorer_id, text_area_ratio_mean FROM video_scores ORDER BY ALL")
    assert found == [("one", 0.1), ("two", 0.5)]


def test_a_videos_metrics_are_taken_over_all_its_segments_frames(tmp_path: Path):
    data = directory(tmp_path)
    write_catalog(data.catalog, {"a": 2})
    data.score_store.refresh_catalog(data.catalog)
    ratios = [0.0, 0.1, 0.2, 0.3]
    frames = [frame_row(i, ratio, box_count=int(ratio > 0)) for i, ratio in enumerate(ratios)]
    write(data, segment_row("a", 0, frames=frames[:3]), segment_row("a", 1, frames=frames[3:]))
    data.score_store.merge(data.score_files)
    ((count, mean, top, p95, with_text, boxes),) = rows_of(
        data,
        "SELECT frame_count, text_area_ratio_mean, text_area_ratio_max, text_area_ratio_p95,"
        " text_frame_ratio, box_area_ratio_mean FROM video_scores",
    )
    assert (count, top, with_text) == (4, 0.3, 0.75)
    assert (mean, boxes) == (pytest.approx(0.15), pytest.approx(0.15))
    assert p95 == pytest.approx(0.285)  # Interpolated between the third and the fourth of four.


def test_a_video_is_scored_only_when_all_of_it_is(tmp_path: Path):
    data = directory(tmp_path)
    segment_counts = {
        "whole": 2,
        "segment to come": 2,
        "segment unread": 2,
        "frame failed": 1,
        "nothing sampled": 1,
    }
    write_catalog(data.catalog, segment_counts, file_rows=[missing_file_row("/videos/gone.mp4")])
    data.score_store.refresh_catalog(data.catalog)
    write(
        data,
        segment_row("whole", 0),
        segment_row("whole", 1, frames=[]),
        segment_row("segment to come", 0),
        segment_row("segment unread", 0),
        segment_row("segment unread", 1, reason="decode_timed_out"),
        segment_row("frame failed", frames=[frame_row(0), frame_row(1, reason="detection_failed")]),
        segment_row("nothing sampled", frames=[]),
    )
    data.score_store.merge(data.score_files)
    assert scored(data) == {"whole"}
    reasons = dict(unscored(data))
    assert reasons[None] == "file_missing"
    assert reasons["segment to come"] == "not_scored_yet"
    assert reasons["segment unread"] == "decode_timed_out"
    assert reasons["frame failed"] == "detection_failed"
    assert "whole" not in reasons


def test_a_video_that_gave_no_frame_at_all_is_listed_as_unscored(tmp_path: Path):
    data = directory(tmp_path)
    write_catalog(data.catalog, {"a": 2})
    data.score_store.refresh_catalog(data.catalog)
    write(data, segment_row("a", 0, frames=[]), segment_row("a", 1, frames=[]))
    data.score_store.merge(data.score_files)
    assert scored(data) == set()
    assert "a" in dict(unscored(data))


def test_a_file_outside_the_sources_is_not_listed_as_still_to_be_scored(tmp_path: Path):
    data = directory(tmp_path)
    write_catalog(data.catalog, {"a": 1})
    files = data.catalog.files()
    at = files.column_names.index("state")
    outside = files.set_column(at, files.schema.field("state"), [["outside"]])
    data.catalog.write(
        files=outside,
        videos=data.catalog.videos(),
        segments=data.catalog.segments(),
        samples=[],
    )
    write(data, segment_row("b"))
    data.score_store.refresh_catalog(data.catalog)
    data.score_store.merge(data.score_files)
    assert unscored(data) == set()


def test_a_scorer_is_noted_once_and_again_after_the_database_is_gone(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a", scorer_id="one"), segment_row("b", scorer_id="one"))
    write(data, segment_row("a", scorer_id="two", shard="s000002"), shard="s000002")
    for _ in range(2):
        data.score_store.merge(data.score_files)
        found = rows_of(data, "SELECT scorer_id, detector FROM scorers ORDER BY ALL")
        assert found == [("one", "craft"), ("two", "craft")]
        data.score_store.path.unlink()


def test_refreshing_the_catalog_replaces_what_was_shown(tmp_path: Path):
    data = directory(tmp_path)
    for segment_counts in ({"a": 2, "b": 1}, {"b": 1}):
        write_catalog(CatalogStore(data.catalog.directory), segment_counts)
        data.score_store.refresh_catalog(data.catalog)
    assert rows_of(data, "SELECT video_id, segment_count FROM videos") == [("b", 1)]
    assert rows_of(data, "SELECT * FROM shards") == [("s000001", 1, 1, 1.0)]
    assert rows_of(data, "SELECT path FROM video_files") == [("/videos/b.mp4",)]


def test_an_exception_in_the_door_undoes_what_was_done(tmp_path: Path):
    store = ScoreStore(tmp_path / "store.duckdb")

    def fail_halfway() -> None:
        with store.connect() as connection:
            connection.execute("CREATE TABLE half AS SELECT 1")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    names = store.query(
        "SELECT table_name FROM information_schema.tables WHERE table_name = 'half'"
    )
    assert names.num_rows == 0


def test_a_usage_file_is_taken_in_once_and_again_when_it_changed(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"))
    write_usage(data, [1600, 9600], run_id="first")
    write_usage(data, [50], shard="s000002")
    assert data.score_store.merge(data.score_files, data.usage_files) == ["s000001"]
    assert rows_of(data, "FROM gpu_samples WHERE elapsed_seconds = 1") == [
        ("s000001", "first", 77, "machine", "GPU-a", "NVIDIA L4", 1, NOW, 1, 9600, 24564, None, 42)
    ]
    before = rows_of(data, "FROM gpu_samples ORDER BY ALL")
    data.score_store.merge(data.score_files, data.usage_files)
    assert rows_of(data, "FROM gpu_samples ORDER BY ALL") == before
    write_usage(data, [1700], run_id="second")
    data.score_store.merge(data.score_files, data.usage_files)
    found = rows_of(data, "SELECT shard, run_id, device_used_mib FROM gpu_samples ORDER BY ALL")
    assert found == [("s000001", "second", 1700), ("s000002", "run", 50)]
    assert rows_of(data, "SELECT count(*) FROM merged_usage_files") == [(2,)]


def test_worker_memory_is_replaced_whole(tmp_path: Path):
    data = directory(tmp_path)
    for peak_mib in ((900, 1400), (1000,)):
        data.score_store.merge(data.score_files, worker_memory=memory_rows(*peak_mib))
        assert rows_of(data, "FROM worker_memory ORDER BY ALL") == [
            tuple(row.values()) for row in memory_rows(*peak_mib).to_pylist()
        ]


def test_a_merge_of_scores_alone_leaves_usage_and_memory_as_they_are(tmp_path: Path):
    data = directory(tmp_path)
    write_usage(data, [1600])
    data.score_store.merge(data.score_files, data.usage_files, memory_rows(900))
    write_usage(data, [1, 2, 3])
    data.score_store.merge(data.score_files)
    counts = "SELECT (SELECT count(*) FROM gpu_samples), (SELECT count(*) FROM worker_memory)"
    assert rows_of(data, counts) == [(1, 1)]


def test_a_merge_takes_in_everything_or_nothing(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"))
    write_usage(data, [1600])
    of_another_kind = pa.table({"unknown": [1]})
    with pytest.raises(duckdb.BinderException):
        data.score_store.merge(data.score_files, data.usage_files, of_another_kind)
    assert rows_of(data, "FROM gpu_samples") == []
    assert data.score_store.merge(data.score_files, data.usage_files) == ["s000001"]


def test_a_database_of_version_1_is_brought_up_and_keeps_its_rows(tmp_path: Path):
    data = directory(tmp_path)
    make_version_1(data.score_store)
    assert rows_of(data, "SELECT video_id FROM videos") == [("old",)]
    assert rows_of(data, "FROM schema_version") == [(SCHEMA_VERSION,)]
    for table in NEW_IN_VERSION_2:
        assert rows_of(data, f"FROM {table}") == []
    write_usage(data, [1600])
    data.score_store.merge(data.score_files, data.usage_files, memory_rows(900))
    assert len(rows_of(data, "FROM gpu_samples")) == 1


def test_a_database_brought_up_has_the_columns_of_a_new_one(tmp_path: Path):
    old, new = ScoreStore(tmp_path / "old.duckdb"), ScoreStore(tmp_path / "new.duckdb")
    make_version_1(old)
    columns = (
        "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY ALL"
    )
    assert old.query(columns).equals(new.query(columns))


def test_every_statement_of_the_schema_may_be_run_again():
    statements = re.sub(r"--.*", "", SCHEMA).split(";")
    starts = ("CREATE TABLE IF NOT EXISTS ", "CREATE OR REPLACE VIEW ")
    assert all(statement.strip().startswith(starts) for statement in statements[:-1])
    assert statements[-1].strip() == ""


def test_rejects_a_database_of_a_newer_schema_version(tmp_path: Path):
    store = ScoreStore(tmp_path / "store.duckdb")
    with store.connect() as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(
        SchemaVersionError, match=f"version 99, .* writes {SCHEMA_VERSION}"
    ) as raised:
        store.query("SELECT 1")
    assert str(store.path) in str(raised.value)
    assert "update ocr_assets" in str(raised.value)
    assert "move the file aside" in str(raised.value)


def test_rejects_a_file_that_is_no_database(tmp_path: Path):
    store = ScoreStore(tmp_path / "store.duckdb", wait_seconds=60)
    store.path.write_text("not a database" * 1000)
    started = time.monotonic()
    with pytest.raises(Exception, match="not a valid DuckDB database"):
        store.query("SELECT 1")
    assert time.monotonic() - started < 30  # It did not wait for what will not change.


def test_a_reader_delays_a_merge_and_the_next_one_takes_it_along(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"))
    data.score_store.merge(data.score_files)
    with running(_HOLD_OPEN, data.score_store.path) as reader:
        wait_for(reader, "open")
        write(data, segment_row("b", shard="s000002"), shard="s000002")
        started = time.monotonic()
        with pytest.raises(StoreBusyError) as raised:
            data.score_store.merge(data.score_files)
        waited_seconds = time.monotonic() - started
    message = str(raised.value)
    assert f"PID {reader.pid}" in message
    assert str(data.score_store.path) in message
    assert "\n" not in message
    # It polls five times a second; the rest is room for a busy machine.
    assert WAIT_SECONDS <= waited_seconds < WAIT_SECONDS + 5
    assert data.score_store.merge(data.score_files) == ["s000002"]


def test_a_merge_waits_for_a_reader_that_closes_in_time(tmp_path: Path):
    data = directory(tmp_path)
    write(data, segment_row("a"))
    data.score_store.merge(data.score_files)
    data.score_store.wait_seconds = 60
    with running(_HOLD_OPEN, data.score_store.path) as reader:
        wait_for(reader, "open")
        assert reader.stdin is not None
        reader.stdin.close()
        assert len(everything(data)["segment_scores"]) == 1


def test_a_process_that_holds_the_door_is_waited_for(tmp_path: Path):
    data = directory(tmp_path)
    other = ScoreStore(data.score_store.path)
    with other.connect(), pytest.raises(StoreBusyError, match="other ocr_assets processes"):
        data.score_store.query("SELECT 1")
    assert rows_of(data, "SELECT 1") == [(1,)]


def test_eight_processes_that_merge_at_once_lose_nothing(tmp_path: Path):
    incoming, data = tmp_path / "incoming", directory(tmp_path / "data")
    for number in range(8):
        for round_number, ratio in enumerate((0.1, 0.3)):
            shard, frames = f"s{number:06d}", [frame_row(0, ratio)]
            rows = score_rows(segment_row(f"video{number}", frames=frames, shard=shard))
            write_table(incoming / f"{shard}_{round_number}.parquet", rows)
    command = [sys.executable, "-c", _EIGHT_AT_ONCE, str(data.path), str(incoming)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = rows_of(data, "SELECT video_id, text_area_ratio FROM frame_scores ORDER BY ALL")
    assert found == [(f"video{number}", 0.3) for number in range(8)]
    assert rows_of(data, "SELECT count(*) FROM segment_scores") == [(8,)]
    assert data.score_store.merge(data.score_files) == []
