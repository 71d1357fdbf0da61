"""Which shards a daemon launches next: nothing twice, nothing forgotten, costliest first."""

from hypothesis import given
from hypothesis import strategies as st

from ocr_assets.run_requests import (
    FIRST_RUN_SHARDS,
    MAX_RUN_SHARDS,
    TARGET_RUN_SECONDS,
    Asked,
    ShardRun,
    next_runs,
    shards_per_run,
)

COSTS = {"s000001": 1.0, "s000002": 5.0, "s000003": 3.0, "s000004": 4.0, "s000005": 2.0}


def test_the_costliest_shards_come_first():
    runs = next_runs(COSTS, wanted=COSTS, run_count=2, shard_count_per_run=1)
    assert runs == [ShardRun("s000002", "s000002", 5.0), ShardRun("s000004", "s000004", 4.0)]


def test_a_run_takes_neighbours_only():
    wanted = {"s000001", "s000002", "s000004", "s000005"}
    runs = next_runs(COSTS, wanted=wanted, run_count=9, shard_count_per_run=3)
    assert runs == [ShardRun("s000001", "s000002", 6.0), ShardRun("s000004", "s000005", 6.0)]


def test_a_thousand_shards_make_no_thousand_runs():
    costs = {f"s{number:06}": 1.0 for number in range(1000)}
    assert len(next_runs(costs, wanted=costs, run_count=4, shard_count_per_run=10)) == 4


def test_where_there_is_no_room_nothing_is_launched():
    assert next_runs(COSTS, wanted=COSTS, run_count=0, shard_count_per_run=1) == []
    assert next_runs(COSTS, wanted=COSTS, run_count=-3, shard_count_per_run=1) == []


@given(
    st.sets(st.integers(1, 60)),
    st.sets(st.integers(1, 60)),
    st.integers(1, 20),
)
def test_with_room_for_all_every_wanted_shard_is_in_one_run_and_no_other_in_any(
    there: set[int], wanted: set[int], shard_count_per_run: int
):
    costs = {f"s{number:06}": float(number) for number in there}
    keys = {f"s{number:06}" for number in wanted & there}
    runs = next_runs(costs, wanted=keys, run_count=1000, shard_count_per_run=shard_count_per_run)
    covered = [key for run in runs for key in sorted(costs) if run.first <= key <= run.last]
    assert sorted(covered) == sorted(keys)
    assert all(
        sum(run.first <= key <= run.last for key in costs) <= shard_count_per_run for run in runs
    )


def per_run(seconds: list[float], *, wanted_count: int = 1000, slot_count: int = 2) -> int:
    return shards_per_run(seconds, wanted_count=wanted_count, slot_count=slot_count)


def test_a_run_takes_as_many_shards_as_fill_its_time():
    assert per_run([TARGET_RUN_SECONDS / 4] * 3) == 4
    assert per_run([10 * TARGET_RUN_SECONDS]) == 1
    assert per_run([0.0]) == MAX_RUN_SHARDS
    assert per_run([]) == FIRST_RUN_SHARDS


def test_one_slow_shard_does_not_decide():
    assert per_run([10.0, 10.0, 10_000.0]) == MAX_RUN_SHARDS


def test_no_slot_goes_idle_because_one_run_took_all():
    assert per_run([1.0], wanted_count=6, slot_count=2) == 3
    assert per_run([1.0], wanted_count=1, slot_count=2) == 1


def test_what_was_asked_for_survives_a_restart():
    asked = Asked("stamp", frozenset({"s000002", "s000001"}))
    assert Asked.from_json(asked.to_json()) == asked
    assert Asked.from_json(None) == Asked()


def test_what_is_done_is_forgotten_and_a_new_discovery_asks_again():
    asked = Asked("first", frozenset({"s000001", "s000002"}))
    assert asked.of("first", ["s000002", "s000003"]).shards == {"s000002"}
    assert asked.of("second", ["s000002"]).shards == frozenset()
