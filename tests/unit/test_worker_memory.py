import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.vram import DEFAULT_NEED_MIB
from resources.worker_memory import (
    DEFAULT_BASE_MIB,
    DEFAULT_MIB_PER_MEGAPIXEL,
    MARGIN,
    MemoryRecord,
    WorkerMemory,
)

FRAME_PX = 384 * 640
MEASURED = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


def record(
    frame_count: int, peak_mib: int, *, failed: bool = False, size: tuple[int, int] = (384, 640)
) -> MemoryRecord:
    return MemoryRecord(
        detector="craft",
        weights_sha256="a" * 64,
        dtype="float32",
        device_name="NVIDIA test card",
        host="node-1",
        height_px=size[0],
        width_px=size[1],
        frame_count=frame_count,
        peak_mib=peak_mib,
        is_out_of_memory=failed,
        measured_at=MEASURED,
    )


def memory(*records: MemoryRecord) -> WorkerMemory:
    return WorkerMemory.from_records(records)


LOADED = record(0, 500)
UNKNOWN = memory()


def test_the_size_of_a_batch_is_that_of_all_its_frames():
    assert record(8, 1).input_px == 8 * FRAME_PX
    assert LOADED.input_px == 0


@pytest.mark.parametrize(
    "figures",
    [
        {"height_px": 0},
        {"width_px": -1},
        {"frame_count": -1},
        {"peak_mib": -1},
        {"measured_at": MEASURED.replace(tzinfo=None)},
    ],
)
def test_rejects_a_record_of_what_cannot_be(figures: dict[str, Any]):
    with pytest.raises(ValueError, match=f"self.{next(iter(figures))} = "):
        replace(record(1, 1), **figures)


def test_a_model_without_a_batch_has_no_size():
    assert replace(LOADED, height_px=0, width_px=0).input_px == 0


def test_a_small_batch_needs_the_documented_default_until_it_is_measured():
    assert UNKNOWN.need_mib(FRAME_PX) == DEFAULT_NEED_MIB


def test_a_large_batch_needs_more_than_the_default():
    grown_mib = MARGIN * (DEFAULT_BASE_MIB + DEFAULT_MIB_PER_MEGAPIXEL * 8)
    assert grown_mib <= UNKNOWN.need_mib(8_000_000) < grown_mib + 1


def test_the_smallest_measured_batch_that_is_large_enough_counts():
    known = memory(record(2, 1000), record(8, 2000), record(32, 6000))
    assert known.need_mib(8 * FRAME_PX) == 2400
    assert known.need_mib(8 * FRAME_PX + 1) == 7200
    assert known.need_mib(3 * FRAME_PX) == 2400


def test_the_highest_peak_of_one_size_counts():
    assert memory(record(2, 1000), record(2, 1500)).need_mib(2 * FRAME_PX) == 1800


def test_a_smaller_batch_that_took_more_counts_for_the_larger_too():
    known = memory(record(1, 3000, size=(100, 100)), record(8, 2000))
    assert known.need_mib(8 * FRAME_PX) == 3600


def test_a_measurement_is_carried_on_from_the_loaded_model():
    # 500 MiB loaded and 125 MiB per frame.
    known = memory(LOADED, record(4, 1000))
    assert known.need_mib(6 * FRAME_PX) == 1.2 * (500 + 6 * 125)


def test_a_measurement_is_carried_on_in_proportion_where_the_loaded_model_was_not_measured():
    assert memory(record(4, 1000)).need_mib(6 * FRAME_PX) == 1.2 * 1500


def test_the_default_counts_beyond_twice_the_measured_size():
    known = memory(LOADED, record(1, 520))
    assert known.need_mib(2 * FRAME_PX) == 1.2 * 540
    assert known.need_mib(2 * FRAME_PX + 1) == DEFAULT_NEED_MIB


def test_the_default_never_undercuts_the_measured_line():
    known = memory(record(1, 3000))
    assert known.need_mib(2 * FRAME_PX) == 7200
    assert known.need_mib(3 * FRAME_PX) == 10_800


def test_a_batch_that_did_not_fit_is_no_measurement():
    assert memory(record(2, 9000, failed=True)).need_mib(2 * FRAME_PX) == DEFAULT_NEED_MIB


def test_a_loaded_model_alone_is_no_measurement_of_a_batch():
    assert memory(LOADED).need_mib(FRAME_PX) == DEFAULT_NEED_MIB


def test_a_worker_needs_at_least_1_mib():
    assert memory(record(1, 0)).need_mib(FRAME_PX) == 1


@pytest.mark.parametrize("ask", [UNKNOWN.need_mib, UNKNOWN.explain])
def test_rejects_a_batch_without_pixels(ask: Any):
    with pytest.raises(ValueError, match="input_px = 0"):
        ask(0)


def test_a_slot_of_the_default_size_carries_seven_small_frames_unmeasured():
    assert UNKNOWN.batch_px(DEFAULT_NEED_MIB) // FRAME_PX == 7


def test_a_slot_carries_the_batch_that_was_measured_in_it():
    known = memory(LOADED, record(8, 1700))
    assert known.batch_px(known.need_mib(8 * FRAME_PX)) == 8 * FRAME_PX


def test_a_slot_in_which_nothing_fits_still_gets_a_batch():
    assert memory(record(1, 5000)).batch_px(100) == 1
    assert UNKNOWN.batch_px(0) == 1


def test_no_slot_gets_a_batch_beyond_a_thousand_megapixels():
    assert UNKNOWN.batch_px(10**9) == 10**9


def test_a_batch_that_did_not_fit_in_as_large_a_slot_is_halved():
    known = memory(record(8, 1000), record(6, 3000, failed=True))
    assert known.batch_px(3000) == 3 * FRAME_PX
    assert known.batch_px(1200) == 3 * FRAME_PX


def test_a_batch_that_did_not_fit_in_less_says_nothing_of_a_larger_slot():
    known = memory(record(8, 1000), record(6, 1199, failed=True))
    assert known.batch_px(1200) == 8 * FRAME_PX


def test_a_single_pixel_that_did_not_fit_is_not_halved():
    assert memory(record(1, 9000, failed=True, size=(1, 1))).batch_px(5000) == 1


def test_the_explanation_names_the_measurement_and_the_margin():
    assert memory(LOADED, record(8, 1700)).explain(8 * FRAME_PX) == (
        "2040 MiB for batches of 1.97 megapixels: 1700 MiB measured on 2026-11-22 on "
        "NVIDIA test card of node-1 with 8 x 640x384 px, plus 20% margin"
    )


def test_the_explanation_says_when_a_measurement_is_carried_on():
    assert memory(LOADED, record(4, 1000)).explain(6 * FRAME_PX) == (
        "1500 MiB for batches of 1.47 megapixels: 1000 MiB measured on 2026-11-22 on "
        "NVIDIA test card of node-1 with 4 x 640x384 px, carried on from 0.98 megapixels, "
        "plus 20% margin"
    )


def test_the_explanation_says_when_the_loaded_model_took_most():
    assert "with the model loaded and no batch" in memory(LOADED, record(1, 400)).explain(1)


def test_the_explanation_says_why_the_default_counts():
    assert UNKNOWN.explain(FRAME_PX) == (
        "2048 MiB for batches of 0.25 megapixels: the default, since nothing was measured yet"
    )
    assert memory(LOADED, record(1, 520)).explain(3 * FRAME_PX) == (
        "2048 MiB for batches of 0.74 megapixels: the default, or the measured need carried on if "
        "that is larger, since the largest batch measured has 0.25 megapixels"
    )


some_records = st.lists(
    st.builds(
        record,
        st.integers(0, 64),
        st.integers(0, 100_000),
        failed=st.booleans(),
        size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    ),
    max_size=8,
)
memories = some_records.map(WorkerMemory.from_records)
sizes_px = st.integers(1, 2 * 10**9)
slots_mib = st.integers(0, 300_000)


@given(memories, sizes_px, sizes_px)
def test_a_larger_batch_never_needs_less(known: WorkerMemory, one_px: int, other_px: int):
    small_px, large_px = sorted((one_px, other_px))
    assert 1 <= known.need_mib(small_px) <= known.need_mib(large_px)


@given(some_records, st.data())
def test_the_need_has_no_dip_around_what_was_measured(
    records: list[MemoryRecord], data: st.DataObject
):
    known = memory(*records)
    edges_px = [
        factor * row.input_px + off for row in records for factor in (1, 2) for off in (0, 1)
    ]
    pixels = sorted({px for px in [*edges_px, data.draw(sizes_px)] if px >= 1})
    needs_mib = [known.need_mib(px) for px in pixels]
    assert needs_mib == sorted(needs_mib)


@given(some_records)
def test_a_worker_needs_more_than_its_batch_was_seen_to_take(records: list[MemoryRecord]):
    known = memory(*records)
    for row in records:
        if row.frame_count and not row.is_out_of_memory:
            assert known.need_mib(row.input_px) >= MARGIN * row.peak_mib


@given(memories, slots_mib)
def test_a_batch_of_a_slot_fits_the_slot(known: WorkerMemory, slot_mib: int):
    batch_px = known.batch_px(slot_mib)
    assert batch_px >= 1
    assert batch_px == 1 or known.need_mib(batch_px) <= slot_mib


@given(memories, slots_mib, slots_mib)
def test_a_larger_slot_never_carries_a_smaller_batch(
    known: WorkerMemory, one_mib: int, other_mib: int
):
    small_mib, large_mib = sorted((one_mib, other_mib))
    assert known.batch_px(small_mib) <= known.batch_px(large_mib)


@given(some_records, slots_mib)
def test_no_slot_carries_more_than_half_of_what_failed_in_it(
    records: list[MemoryRecord], slot_mib: int
):
    batch_px = memory(*records).batch_px(slot_mib)
    for row in records:
        if row.is_out_of_memory and row.peak_mib >= slot_mib:
            assert batch_px <= max(1, row.input_px // 2)


@given(some_records.map(lambda rows: [row for row in rows if not row.is_out_of_memory]), slots_mib)
def test_where_nothing_failed_one_pixel_more_would_not_fit(
    records: list[MemoryRecord], slot_mib: int
):
    known = memory(*records)
    batch_px = known.batch_px(slot_mib)
    assert batch_px == 10**9 or known.need_mib(batch_px + 1) > slot_mib


@given(memories, sizes_px)
def test_the_explanation_begins_with_the_need(known: WorkerMemory, input_px: int):
    assert known.explain(input_px).startswith(f"{known.need_mib(input_px)} MiB for batches of ")


def test_a_single_frame_that_did_not_fit_asks_for_more_the_next_time():
    known = memory(record(1, 9000, failed=True))
    assert known.need_mib(FRAME_PX) == math.ceil(MARGIN * 9000)
    assert known.need_mib(FRAME_PX - 1) == UNKNOWN.need_mib(FRAME_PX - 1)
    assert "did not fit" in known.explain(FRAME_PX)


def test_a_frame_that_fitted_after_all_is_believed():
    known = memory(record(1, 9000, failed=True), record(1, 3000))
    assert known.need_mib(FRAME_PX) == math.ceil(MARGIN * 3000)
