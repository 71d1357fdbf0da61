"""The file of measured memory, under real processes that add to it at once."""

import multiprocessing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from resources.atomic_files import write_table
from resources.memory_records import SCHEMA, MemoryRecords, MemoryRecordsError
from resources.worker_memory import MemoryRecord

MEASURED = datetime(2026, 11, 22, 9, 30, 0, 123456, tzinfo=UTC)
LATER = MEASURED + timedelta(hours=1)
RECORD = MemoryRecord(
    detector="craft",
    weights_sha256="a" * 64,
    dtype="float32",
    device_name="NVIDIA test card",
    host="node-1",
    height_px=384,
    width_px=640,
    frame_count=8,
    peak_mib=1700,
    is_out_of_memory=False,
    measured_at=MEASURED,
)


@pytest.fixture
def store(tmp_path: Path) -> MemoryRecords:
    return MemoryRecords(tmp_path / "data" / "worker_memory.parquet")


def test_nothing_was_measured_where_there_is_no_file(store: MemoryRecords):
    assert store.rows() == []
    assert store.table().schema == SCHEMA
    assert not store.path.parent.exists()


def test_what_was_added_comes_back(store: MemoryRecords):
    loaded = replace(RECORD, height_px=0, width_px=0, frame_count=0, peak_mib=500)
    store.add([RECORD, loaded])
    assert store.rows() == [loaded, RECORD]
    assert store.rows()[0].measured_at.utcoffset() == timedelta(0)


def test_the_file_has_the_schema_that_is_written_down(store: MemoryRecords):
    store.add([RECORD])
    assert pq.read_schema(store.path) == SCHEMA
    assert store.table().num_rows == 1


def test_times_of_other_zones_are_kept_in_utc(store: MemoryRecords):
    store.add([replace(RECORD, measured_at=MEASURED.astimezone(ZoneInfo("Asia/Tokyo")))])
    assert store.rows() == [RECORD]


@pytest.mark.parametrize("is_out_of_memory", [False, True])
def test_the_highest_peak_of_a_kind_is_kept(store: MemoryRecords, is_out_of_memory: bool):
    low, high, middle = (
        replace(RECORD, peak_mib=peak_mib, is_out_of_memory=is_out_of_memory, measured_at=at)
        for peak_mib, at in ((1000, MEASURED), (3000, MEASURED), (2000, LATER))
    )
    for record in (low, high, middle):
        store.add([record])
    assert store.rows() == [high]


def test_the_highest_peak_is_kept_within_one_call(store: MemoryRecords):
    high = replace(RECORD, peak_mib=3000)
    store.add([RECORD, high, RECORD])
    assert store.rows() == [high]


def test_the_newest_of_equal_peaks_is_kept(store: MemoryRecords):
    newer = replace(RECORD, measured_at=LATER, host="node-2")
    store.add([RECORD])
    store.add([newer])
    store.add([RECORD])
    assert store.rows() == [newer]


def test_another_host_with_the_same_device_is_the_same_kind(store: MemoryRecords):
    store.add([RECORD, replace(RECORD, host="node-2", peak_mib=1800)])
    assert [row.host for row in store.rows()] == ["node-2"]


@pytest.mark.parametrize(
    "figures",
    [
        {"detector": "ppocr"},
        {"weights_sha256": "b" * 64},
        {"dtype": "float16"},
        {"device_name": "cpu"},
        {"height_px": 416},
        {"width_px": 672},
        {"frame_count": 4},
        {"is_out_of_memory": True},
    ],
)
def test_other_kinds_stand_side_by_side(store: MemoryRecords, figures: dict[str, Any]):
    other = replace(RECORD, **figures)
    store.add([RECORD])
    store.add([other])
    assert len(store.rows()) == 2
    assert other in store.rows()


@pytest.mark.parametrize("peak_mib", [1700, 1699])
def test_what_tells_nothing_new_leaves_the_file_alone(store: MemoryRecords, peak_mib: int):
    store.add([RECORD])
    before = store.path.stat()
    store.add([replace(RECORD, peak_mib=peak_mib)])
    store.add([])
    after = store.path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_adding_nothing_makes_no_file(store: MemoryRecords):
    store.add([])
    assert not store.path.exists()


def damaged(content: bytes) -> bytes:
    """The same bytes, with those of the first page's header gone."""
    return content[:4] + bytes(60) + content[64:]


@pytest.mark.parametrize(
    "spoil", [lambda _: b"", lambda _: b"no parquet", lambda content: content[:-20], damaged]
)
def test_rejects_a_damaged_file_and_says_what_to_do(store: MemoryRecords, spoil: Any):
    store.add([RECORD])
    store.path.write_bytes(spoil(store.path.read_bytes()))
    for call in (store.rows, store.table, lambda: store.add([RECORD])):
        with pytest.raises(MemoryRecordsError, match="or remove it: it is measured again") as error:
            call()
        assert str(store.path) in str(error.value)


def test_rejects_a_file_with_other_columns(store: MemoryRecords):
    write_table(store.path, pa.table({"peak_mib": [1]}))
    with pytest.raises(
        MemoryRecordsError, match=r"\(its columns are peak_mib\); make it readable, or remove it"
    ):
        store.rows()


def test_reading_waits_for_nobody(store: MemoryRecords):
    store.add([RECORD])
    with FileLock(store.path.with_name(".worker_memory.lock"), timeout=0):
        assert store.rows() == [RECORD]


def add_many(path: Path, device_name: str, barrier: Any, add_count: int) -> None:
    store = MemoryRecords(path)
    barrier.wait()
    for index in range(add_count):
        own = replace(RECORD, device_name=device_name, frame_count=index + 1)
        shared = replace(RECORD, peak_mib=1000 + index)
        store.add([own, shared])


def test_processes_that_add_at_once_lose_nothing(store: MemoryRecords):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [
        context.Process(target=add_many, args=(store.path, f"card {number}", barrier, 20))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    rows = store.rows()
    assert {(row.device_name, row.frame_count) for row in rows} == {
        *((f"card {number}", count) for number in range(4) for count in range(1, 21)),
        (RECORD.device_name, RECORD.frame_count),
    }
    assert [row.peak_mib for row in rows if row.device_name == RECORD.device_name] == [1019]
    assert {path.name for path in store.path.parent.iterdir()} - {store.path.name} <= {
        ".worker_memory.lock"
    }
