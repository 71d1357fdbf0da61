"""Pool limits on a real SQLite instance: what the plan sets, what a person set, what is kept."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ocr_assets.pools import (
    DECODE_POOL,
    OCR_POOL,
    OcrLimit,
    ensure_decode_limit,
    follow_plan,
    read_ocr_limit,
    set_ocr_limit,
)
from resources.gpu import GpuResource

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["ocr_assets.pools"])


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        yield opened


def by_hand(instance: dg.DagsterInstance, limit: int, pool: str = OCR_POOL) -> None:
    """As the UI's mutation `setConcurrencyLimit` does it."""
    instance.event_log_storage.set_concurrency_slots(pool, limit)


def lift(instance: dg.DagsterInstance) -> None:
    """As the UI's mutation `deleteConcurrencyLimit` does it."""
    instance.event_log_storage.delete_concurrency_limit(OCR_POOL)


def enforced(instance: dg.DagsterInstance, pool: str = OCR_POOL) -> int | None:
    limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    return limits.get(pool)


def test_the_plan_sets_the_limit_and_follows_itself(instance: dg.DagsterInstance):
    for planned in (11, 3, 11, 12):
        assert set_ocr_limit(instance, planned) == OcrLimit(planned, planned, None)
        assert enforced(instance) == planned


def test_a_lower_limit_by_hand_is_respected_and_shown(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 11)
    by_hand(instance, 4)
    limit = set_ocr_limit(instance, 11)
    assert limit == OcrLimit(limit=4, planned=11, by_hand=4)
    assert enforced(instance) == 4
    assert str(limit) == (
        "pool ocr_gpu: 4 (plan: 11; limited to 4 by hand, delete the limit in the UI to lift it)"
    )


def test_a_higher_limit_by_hand_never_passes_the_plan(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 3)
    by_hand(instance, 8)
    assert set_ocr_limit(instance, 3) == OcrLimit(limit=3, planned=3, by_hand=8)
    assert enforced(instance) == 3
    assert set_ocr_limit(instance, 11).limit == 8


def test_a_limit_by_hand_outlives_a_plan_that_shrinks_and_grows(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 11)
    by_hand(instance, 4)
    assert [set_ocr_limit(instance, planned).limit for planned in (11, 2, 2, 3, 11)] == [
        4,
        2,
        2,
        3,
        4,
    ]


def test_a_limit_by_hand_can_be_changed_by_hand(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 11)
    for limit in (4, 6, 2):
        by_hand(instance, limit)
        assert set_ocr_limit(instance, 11) == OcrLimit(limit, 11, limit)


def test_deleting_the_limit_lifts_it(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 11)
    by_hand(instance, 4)
    set_ocr_limit(instance, 11)
    lift(instance)
    assert set_ocr_limit(instance, 11) == OcrLimit(11, 11, None)


def test_the_default_limit_is_nobodys_choice(tmp_path: Path):
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1}}"
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as defaulted:
        defaulted.event_log_storage.initialize_concurrency_limit_to_default(OCR_POOL)
        assert read_ocr_limit(defaulted).is_default
        assert set_ocr_limit(defaulted, 5) == OcrLimit(5, 5, None)
        assert not read_ocr_limit(defaulted).is_default


def test_a_limit_set_before_the_first_plan_is_by_hand(instance: dg.DagsterInstance):
    by_hand(instance, 2)
    assert set_ocr_limit(instance, 11) == OcrLimit(limit=2, planned=11, by_hand=2)


def test_zero_by_hand_is_a_pause(instance: dg.DagsterInstance):
    set_ocr_limit(instance, 11)
    by_hand(instance, 0)
    assert set_ocr_limit(instance, 11) == OcrLimit(limit=0, planned=11, by_hand=0)
    lift(instance)
    assert set_ocr_limit(instance, 11).limit == 11


def test_a_plan_beyond_dagsters_maximum_is_cut_to_it(instance: dg.DagsterInstance):
    assert set_ocr_limit(instance, 3000).limit == 1000


@pytest.mark.parametrize("dies_before", ["set_concurrency_slots", "set_cursor_values"])
def test_a_writer_that_dies_half_way_is_no_person(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, dies_before: str
):
    set_ocr_limit(instance, 11)
    storages = {
        "set_concurrency_slots": instance.event_log_storage,
        "set_cursor_values": instance.daemon_cursor_storage,
    }
    with monkeypatch.context() as patch:
        patch.setattr(storages[dies_before], dies_before, _die)
        with pytest.raises(SystemExit):
            set_ocr_limit(instance, 3)
    assert set_ocr_limit(instance, 7) == OcrLimit(7, 7, None)


def _die(*_arguments: object) -> None:
    raise SystemExit


def _set_at_once(home: str, planned: int, start: object, results: object) -> None:
    with dg.DagsterInstance.from_config(home) as instance:
        start.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
        results.put(set_ocr_limit(instance, planned))  # pyright: ignore[reportAttributeAccessIssue]


def test_eight_first_writers_at_once_agree_and_none_is_a_person(
    instance: dg.DagsterInstance, tmp_path: Path
):
    start, results = _processes.Barrier(8), _processes.Queue()
    writers = [
        _processes.Process(
            target=_set_at_once, args=(str(tmp_path), 2 + number % 2, start, results)
        )
        for number in range(8)
    ]
    for writer in writers:
        writer.start()
    limits = [results.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert {limit.by_hand for limit in limits} == {None}
    assert enforced(instance) in {2, 3}
    info = instance.event_log_storage.get_concurrency_info(OCR_POOL)
    assert info.slot_count == info.limit
    assert set_ocr_limit(instance, 5) == OcrLimit(5, 5, None)


def test_one_step_decodes_unless_a_person_says_otherwise(instance: dg.DagsterInstance):
    ensure_decode_limit(instance)
    assert enforced(instance, DECODE_POOL) == 1
    by_hand(instance, 3, DECODE_POOL)
    ensure_decode_limit(instance)
    assert enforced(instance, DECODE_POOL) == 3


def test_reading_sets_nothing_and_names_holders_and_waiters(instance: dg.DagsterInstance):
    assert read_ocr_limit(instance).limit is None
    assert enforced(instance) is None
    set_ocr_limit(instance, 1)
    [holder, waiter] = [instance.create_run_for_job(_job) for _ in range(2)]
    for run_id in (holder.run_id, waiter.run_id, "deleted"):
        instance.event_log_storage.claim_concurrency_slot(OCR_POOL, run_id, "step")
    state = read_ocr_limit(instance)
    assert (state.limit, state.is_default, state.by_hand) == (1, False, None)
    assert [(claim.run_id, claim.is_over) for claim in state.claims] == [(holder.run_id, False)]
    assert [(claim.run_id, claim.is_over) for claim in state.waiting] == [
        (waiter.run_id, False),
        ("deleted", True),
    ]


def test_without_a_device_one_step_may_run_and_tell_why(instance: dg.DagsterInstance):
    words = follow_plan(instance, GpuResource(detector="ppocr", device="cuda"))
    assert words.startswith("pool ocr_gpu: 1 (plan: 1); no device: detector ppocr runs on the CPU")
    assert enforced(instance) == 1


def _op_job() -> dg.JobDefinition:
    @dg.op
    def step() -> None: ...

    @dg.job
    def job() -> None:
        step()

    return job


_job = _op_job()
