from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.atomic_files import atomic_path, write_table


class InterruptedWorkError(Exception):
    pass


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise InterruptedWorkError

    with pytest.raises(InterruptedWorkError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failure_before_anything_was_written_leaves_nothing(tmp_path: Path):
    with pytest.raises(InterruptedWorkError), atomic_path(tmp_path / "file.txt"):
        raise InterruptedWorkError
    assert names(tmp_path) == []


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        pass
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path):
    path = tmp_path / "file.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    # The outer one ends last.
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file.txt"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path):
    path = tmp_path / ("x" * 255)
    with atomic_path(path) as partial:
        partial.write_text("whole")
    assert path.read_text() == "whole"


def test_a_table_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "table.parquet"
    for value in (1, 2):
        write_table(path, pa.table({"n": [value]}))
    assert pq.read_table(path).to_pydict() == {"n": [2]}
    assert names(tmp_path) == ["table.parquet"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "table.parquet"
    write_table(path, pa.table({"n": [1]}))
    with pytest.raises(pa.ArrowNotImplementedError):
        write_table(path, pa.table({"n": [{}]}))  # Parquet has no column for an empty struct.
    assert pq.read_table(path).to_pydict() == {"n": [1]}
    assert names(tmp_path) == ["table.parquet"]
