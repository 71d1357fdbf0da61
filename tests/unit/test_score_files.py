import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from making import frame_row, score_rows, segment_row

from resources.atomic_files import PARTIAL_SUFFIX
from resources.score_files import SCORES_SCHEMA, ScoreFiles

SHARD = "s000001"


def test_what_was_written_is_read(tmp_path: Path):
    rows = score_rows(
        segment_row("a", frames=[frame_row(0, 0.25, box_count=2), frame_row(1, reason="x")]),
        segment_row("b", reason="decode_failed"),
    )
    files = ScoreFiles(tmp_path)
    assert files.write(SHARD, "scorer", rows) == files.path(SHARD)
    read = files.rows(SHARD, "scorer")
    assert read.schema.equals(SCORES_SCHEMA)
    assert read.to_pylist() == rows.to_pylist()


def test_scores_are_there_only_for_who_scored(tmp_path: Path):
    files = ScoreFiles(tmp_path)
    assert not files.has_scores(SHARD, "scorer")
    assert files.rows(SHARD, "scorer").schema.equals(SCORES_SCHEMA)
    files.write(SHARD, "scorer", score_rows(segment_row()))
    assert files.has_scores(SHARD, "scorer")
    assert not files.has_scores(SHARD, "other")
    assert not files.has_scores("s000002", "scorer")


def test_rewriting_one_scorer_leaves_the_other_alone(tmp_path: Path):
    files = ScoreFiles(tmp_path)
    other = score_rows(segment_row("a", scorer_id="other", frames=[frame_row(0, 0.75)]))
    files.write(SHARD, "other", other)
    for ratio in (0.1, 0.2):
        files.write(SHARD, "scorer", score_rows(segment_row("a", frames=[frame_row(0, ratio)])))
    assert files.rows(SHARD, "other").to_pylist() == other.to_pylist()
    assert pq.read_table(files.path(SHARD)).num_rows == 2
    (row,) = files.rows(SHARD, "scorer").to_pylist()
    assert row["frames"][0]["text_area_ratio"] == 0.2


def test_all_paths_are_the_shards_in_order(tmp_path: Path):
    files = ScoreFiles(tmp_path)
    assert list(files.all_paths()) == []
    for shard in ("s000002", "s000010", "s000001"):
        files.write(shard, "scorer", score_rows(segment_row(shard=shard)))
    # What a crash leaves behind is not a score file.
    (tmp_path / f".half{PARTIAL_SUFFIX}").touch()
    assert [path.stem for path in files.all_paths()] == ["s000001", "s000002", "s000010"]


def test_scorers_that_write_one_shard_at_once_lose_nothing(tmp_path: Path):
    files = ScoreFiles(tmp_path)
    scorers = [f"scorer{number}" for number in range(8)]

    def write(scorer_id: str) -> None:
        files.write(SHARD, scorer_id, score_rows(segment_row(scorer_id=scorer_id)))

    threads = [threading.Thread(target=write, args=[scorer]) for scorer in scorers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(files.has_scores(SHARD, scorer) for scorer in scorers)


def test_a_write_that_fails_leaves_the_old_rows(tmp_path: Path):
    files = ScoreFiles(tmp_path)
    files.write(SHARD, "scorer", score_rows(segment_row("a")))
    with pytest.raises(ValueError, match="Schema"):
        files.write(SHARD, "scorer", score_rows(segment_row("b")).drop_columns(["frames"]))
    assert files.rows(SHARD, "scorer").column("video_id").to_pylist() == ["a"]
