"""One Parquet file per shard, the latest attempt's."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import NOW

from resources.usage_files import USAGE_SCHEMA, UsageFiles, usage_table
from resources.usage_sampler import UsageSample


def usage_rows(
    used_mib: Sequence[int],
    *,
    shard: str = "s000001",
    run_id: str = "run",
    process_mib: int | None = 1500,
) -> pa.Table:
    return usage_table(
        [
            UsageSample(NOW + timedelta(seconds=i), float(i), used, 24564, process_mib, 42)
            for i, used in enumerate(used_mib)
        ],
        shard=shard,
        run_id=run_id,
        process_id=77,
        host="machine",
        device_uuid="GPU-a",
        device_name="NVIDIA L4",
        slot_index=1,
    )


def test_what_is_written_is_read_back_with_its_units_and_times(tmp_path: Path):
    rows = usage_rows([1600, 9600], process_mib=None)
    path = UsageFiles(tmp_path / "usage").write("s000001", rows)
    assert path == tmp_path / "usage" / "s000001.parquet"
    found = pq.read_table(path)
    assert found.schema.equals(USAGE_SCHEMA)
    assert found.equals(rows)
    assert found["sampled_at"].to_pylist() == [NOW, NOW + timedelta(seconds=1)]
    assert found["process_mib"].null_count == 2


def test_the_latest_attempt_is_the_one_that_is_kept(tmp_path: Path):
    files = UsageFiles(tmp_path)
    files.write("s000001", usage_rows([1, 2, 3], run_id="first"))
    files.write("s000001", usage_rows([4], run_id="second"))
    found = pq.read_table(files.path("s000001"))
    assert found["run_id"].to_pylist() == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["s000001.parquet"]


def test_files_are_listed_by_shard_and_nothing_else_is(tmp_path: Path):
    files = UsageFiles(tmp_path)
    assert list(files.all_paths()) == []
    for shard in ("s000002", "s000001"):
        files.write(shard, usage_rows([1], shard=shard))
    (tmp_path / ".draft.partial").touch()
    assert [path.stem for path in files.all_paths()] == ["s000001", "s000002"]


def test_an_attempt_without_samples_leaves_none_of_an_earlier_one(tmp_path: Path):
    files = UsageFiles(tmp_path)
    files.write("s000001", usage_rows([1]))
    files.write("s000001", usage_rows([]))
    assert pq.read_table(files.path("s000001")).num_rows == 0


def without_a_column() -> pa.Table:
    return usage_rows([1]).drop_columns(["host"])


def with_nulls() -> pa.Table:
    nulls = pa.nulls(1, pa.int64())
    return usage_rows([1]).set_column(9, pa.field("device_used_mib", pa.int64()), nulls)


@pytest.mark.parametrize("make_table", [without_a_column, with_nulls])
def test_rejects_a_table_of_another_schema(tmp_path: Path, make_table: Callable[[], pa.Table]):
    files = UsageFiles(tmp_path)
    files.write("s000001", usage_rows([1]))
    with pytest.raises(ValueError, match=r"schema|null"):
        files.write("s000001", make_table())
    assert pq.read_table(files.path("s000001")).num_rows == 1
