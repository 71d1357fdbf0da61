"""However OCR is launched, never more workers than the plan has: on a card of 24 GiB, simulated.

A stranger uses 15 GiB of it, so that four workers fit and the limit binds on a small machine;
`python -m benchmarks.launch_modes` measures the same with the card to itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulated_card.harness import (
    Event,
    SimulatedCard,
    overlap,
    overlap_of_a_slot,
    simulated_card,
)
from simulated_card.launch_modes import (
    SHARD_COUNT,
    SMALL_SHARDS,
    Measured,
    Place,
    by_backfill,
    by_bursts,
    by_many_commands,
    by_one_command,
    by_two_instances,
    prepare,
    shard_names,
    write_clips,
)

STRANGERS_MIB = 15_360
PLANNED = 4

Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("prepared")
    with simulated_card(folder / "card") as card:
        source = write_clips(folder / "clips")
        place = prepare(card, Place(source, folder / "out", settings=SMALL_SHARDS))
    assert len(shard_names(place)) == SHARD_COUNT
    return place


@pytest.fixture
def card(tmp_path: Path) -> Iterator[SimulatedCard]:
    with simulated_card(tmp_path / "card", strangers_mib=STRANGERS_MIB) as made:
        assert made.planned == PLANNED
        yield made


def diary(*lines: tuple[str, int, float]) -> list[Event]:
    """Events of workers that all bind the same device, each in the slot of its process id."""
    return [
        Event(event, pid, at, {"uuid": "GPU-a", "slot": pid} if event == "bound" else {})
        for event, pid, at in lines
    ]


def test_workers_overlap_from_their_binding_to_their_unloading_or_last_line():
    one = [("bound", 1, 0.0), ("detected", 1, 5.0), ("unloaded", 1, 6.0), ("waits", 1, 9.0)]
    killed = [("bound", 2, 4.0), ("detected", 2, 7.0)]
    late = [("bound", 3, 8.0)]
    assert overlap(diary(*one, *killed)) == 2
    assert overlap(diary(*one, *late)) == 1
    assert overlap(diary(*killed, *late)) == 1
    assert overlap(diary(*late)) == 1
    assert overlap(diary(*one, *killed, ("bound", 1, 6.5), ("detected", 1, 6.6))) == 2
    assert overlap_of_a_slot(diary(*one, *killed)) == 1
    assert overlap([]) == 0


def _check(measured: Measured, record: Record, *, instance_count: int = 1) -> None:
    for name, value in vars(measured).items():
        record(name, value)
    print(measured)  # noqa: T201 (what was measured is asked for)
    assert measured.overlap == PLANNED
    assert measured.observed == PLANNED
    assert measured.slot_overlap == 1
    assert measured.limits == (PLANNED,) * instance_count
    assert measured.scored_count == SHARD_COUNT * instance_count
    assert measured.left_count == 0


def test_one_command_fills_the_card_and_no_more(
    card: SimulatedCard, prepared: Place, tmp_path: Path, record_property: Record
):
    _check(by_one_command(card, prepared.copy(tmp_path / "out")), record_property)


@pytest.mark.slow
def test_twelve_commands_of_dagster_at_once_fill_the_card_and_no_more(
    card: SimulatedCard, prepared: Place, tmp_path: Path, record_property: Record
):
    _check(by_many_commands(card, prepared.copy(tmp_path / "out")), record_property)


@pytest.mark.slow
def test_a_backfill_under_the_daemon_fills_the_card_and_no_more(
    card: SimulatedCard, prepared: Place, tmp_path: Path, record_property: Record
):
    _check(by_backfill(card, prepared.copy(tmp_path / "out")), record_property)


@pytest.mark.slow
def test_two_instances_side_by_side_share_the_card(
    card: SimulatedCard, prepared: Place, tmp_path: Path, record_property: Record
):
    places = (prepared.copy(tmp_path / "one"), prepared.copy(tmp_path / "other"))
    _check(by_two_instances(card, places), record_property, instance_count=2)


@pytest.mark.parametrize("burst_count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_eight_processes_released_at_once_never_get_more_leases_where_a_bare_pool_overcommits(
    burst_count: int, card: SimulatedCard, tmp_path: Path, record_property: Record
):
    card.stranger_takes(STRANGERS_MIB + 4096)
    measured = by_bursts(card, tmp_path, burst_count=burst_count)
    overlap_of_pool = max(measured.claimed)
    for name, value in {
        "bursts": len(measured.leased),
        "planned": measured.limit,
        "leases_held_at_once": max(measured.leased),
        "pool_claims_held_at_once": overlap_of_pool,
        "bursts_in_which_the_pool_overcommitted": measured.overcommitted_count,
        "seconds": measured.seconds,
    }.items():
        record_property(name, value)
        print(name, value)  # noqa: T201 (what was measured is asked for)
    assert set(measured.leased) == {2}
    assert (measured.overlap, measured.observed) == (2, 2)
    assert measured.left_count == 0
    # Otherwise nobody ever came at the same instant, and the line above says nothing.
    assert measured.overcommitted_count > 0
