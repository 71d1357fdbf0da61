import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.vram import (
    CPU_DEVICE,
    DEFAULT_NEED_MIB,
    DeviceMemory,
    Reserve,
    VramPlan,
    plan_cpu_slots,
    plan_slots,
    strangers_mib,
)

GIB = 1024
TENTH = Reserve(share=0.1)


def device(total_mib: int, strangers: int = 0, uuid: str = "GPU-0") -> DeviceMemory:
    return DeviceMemory(uuid, "NVIDIA test card", total_mib, strangers)


def machine(*totals_mib: int, strangers: tuple[int, ...] = ()) -> list[DeviceMemory]:
    padded = strangers + (0,) * (len(totals_mib) - len(strangers))
    return [
        device(total, used, f"GPU-{index}")
        for index, (total, used) in enumerate(zip(totals_mib, padded, strict=True))
    ]


def plan(
    devices: list[DeviceMemory], reserve: Reserve = TENTH, max_slots: int | None = None
) -> VramPlan:
    return plan_slots(devices, need_mib=DEFAULT_NEED_MIB, reserve=reserve, max_slots=max_slots)


def slot_counts(planned: VramPlan) -> list[int]:
    return [device.slot_count for device in planned.devices]


def test_a_24_gib_card_carries_ten_workers():
    assert slot_counts(plan(machine(24 * GIB))) == [10]


def test_an_80_and_a_24_gib_card_carry_by_their_size():
    assert slot_counts(plan(machine(80 * GIB, 24 * GIB))) == [36, 10]


def test_eight_141_gib_cards_give_way_to_strangers():
    strangers = (0, 100 * GIB, 126 * GIB, 141 * GIB)
    planned = plan(machine(*[141 * GIB] * 8, strangers=strangers))
    assert slot_counts(planned) == [63, 13, 0, 0, 63, 63, 63, 63]


def test_seven_mig_instances_of_20_gib_carry_nine_each():
    assert slot_counts(plan(machine(*[20 * GIB] * 7))) == [9] * 7


def test_a_4_gib_card_carries_one_worker():
    assert slot_counts(plan(machine(4 * GIB))) == [1]


def test_no_card_carries_no_worker():
    planned = plan([])
    assert planned.slot_count == 0
    assert planned.slots == {}
    assert planned.explanation == "No GPU is visible, so none carries a slot."


def test_the_larger_figure_of_a_reserve_counts():
    assert Reserve(mib=1000, share=0.1).on(20000) == 2000
    assert Reserve(mib=1000, share=0.1).on(5000) == 1000


@pytest.mark.parametrize("figures", [{"mib": -1}, {"share": -0.1}, {"share": 1.1}])
def test_rejects_a_reserve_that_is_none(figures: dict[str, float]):
    with pytest.raises(ValueError, match="reserve"):
        Reserve(**figures)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("need_mib", "max_slots"), [(0, None), (2048, -1)])
def test_rejects_a_need_or_a_cap_that_is_none(need_mib: int, max_slots: int | None):
    with pytest.raises(ValueError, match="at least"):
        plan_slots([], need_mib=need_mib, reserve=TENTH, max_slots=max_slots)


def test_a_cap_is_dealt_in_proportion_to_memory():
    assert slot_counts(plan(machine(80 * GIB, 24 * GIB), max_slots=4)) == [3, 1]


def test_a_cap_is_dealt_evenly_to_even_cards():
    assert slot_counts(plan(machine(24 * GIB, 24 * GIB, 24 * GIB), max_slots=6)) == [2, 2, 2]


def test_the_explanation_says_how_each_figure_came_about():
    planned = plan(machine(24 * GIB, strangers=(3000,)), Reserve(mib=1024), max_slots=4)
    assert planned.explanation == (
        "NVIDIA test card (GPU-0): 24576 MiB in total - 1024 MiB reserve - 3000 MiB used by others "
        "= 20552 MiB for OCR, which carries 10 slots of 2048 MiB, 4 after the cap.\n"
        "Together 4 slots of 2048 MiB; the cap is 4."
    )


def test_the_explanation_says_when_nothing_fits():
    planned = plan(machine(2 * GIB))
    assert planned.slot_count == 0
    assert planned.explanation.endswith("no cap is set. Nothing has 2048 MiB to spare.")


devices = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(0, 250_000)).map(lambda pair: device(*pair)),
    max_size=8,
)
needs_mib = st.integers(1, 50_000)
caps = st.none() | st.integers(0, 40)
reserves = st.builds(Reserve, st.integers(0, 50_000), st.floats(0, 1))


@given(devices, st.integers(256, 50_000), reserves, caps)
def test_planned_memory_never_exceeds_the_budget_nor_what_others_leave(
    devices: list[DeviceMemory], need_mib: int, reserve: Reserve, max_slots: int | None
):
    planned = plan_slots(devices, need_mib=need_mib, reserve=reserve, max_slots=max_slots)
    for memory, plan_of_device in zip(devices, planned.devices, strict=True):
        assert plan_of_device.slot_count >= 0
        assert plan_of_device.slot_count * need_mib <= plan_of_device.budget_mib
        left_mib = memory.total_mib - memory.strangers_mib - reserve.on(memory.total_mib)
        assert plan_of_device.budget_mib == max(0, left_mib)


@given(devices, st.integers(256, 50_000), reserves, caps)
def test_the_cap_is_reached_where_memory_allows_and_never_passed(
    devices: list[DeviceMemory], need_mib: int, reserve: Reserve, max_slots: int | None
):
    uncapped = plan_slots(devices, need_mib=need_mib, reserve=reserve)
    capped = plan_slots(devices, need_mib=need_mib, reserve=reserve, max_slots=max_slots)
    most = uncapped.slot_count if max_slots is None else max_slots
    assert capped.slot_count == min(uncapped.slot_count, most)


@given(devices, st.integers(256, 50_000), st.integers(0, 50_000), reserves, caps)
def test_a_larger_need_never_gives_more_slots(
    devices: list[DeviceMemory],
    need_mib: int,
    more_mib: int,
    reserve: Reserve,
    max_slots: int | None,
):
    small = plan_slots(devices, need_mib=need_mib, reserve=reserve, max_slots=max_slots)
    large = plan_slots(devices, need_mib=need_mib + more_mib, reserve=reserve, max_slots=max_slots)
    assert large.slot_count <= small.slot_count


@given(devices, st.integers(256, 50_000), reserves, st.integers(0, 50_000), caps)
def test_a_larger_reserve_never_gives_more_slots(
    devices: list[DeviceMemory],
    need_mib: int,
    reserve: Reserve,
    more_mib: int,
    max_slots: int | None,
):
    larger = Reserve(mib=reserve.mib + more_mib, share=reserve.share)
    small = plan_slots(devices, need_mib=need_mib, reserve=reserve, max_slots=max_slots)
    large = plan_slots(devices, need_mib=need_mib, reserve=larger, max_slots=max_slots)
    assert large.slot_count <= small.slot_count


@given(
    st.integers(0, 200_000),
    st.integers(0, 200_000),
    st.integers(0, 200_000),
    st.integers(256, 50_000),
    reserves,
)
def test_more_memory_never_gives_fewer_slots(
    total_mib: int, more_mib: int, strangers: int, need_mib: int, reserve: Reserve
):
    small = plan_slots([device(total_mib, strangers)], need_mib=need_mib, reserve=reserve)
    large = plan_slots(
        [device(total_mib + more_mib, strangers)], need_mib=need_mib, reserve=reserve
    )
    assert large.slot_count >= small.slot_count


def test_our_own_workers_are_no_strangers():
    listed = {10: 1900, 11: 2000, 99: 5000}
    assert (
        strangers_mib(used_mib=9300, process_mib=listed, own_pids=[10, 11], need_mib=2048) == 5400
    )


def test_a_worker_that_has_yet_to_load_hides_no_listed_stranger():
    assert (
        strangers_mib(used_mib=5000, process_mib={99: 5000}, own_pids=[10], need_mib=2048) == 5000
    )


def test_workers_that_the_driver_does_not_list_are_credited_with_their_slots():
    assert strangers_mib(used_mib=9000, process_mib={}, own_pids=[10, 11], need_mib=2048) == 4904
    untold = {10: None, 11: None}
    assert (
        strangers_mib(used_mib=9000, process_mib=untold, own_pids=[10, 11], need_mib=2048) == 4904
    )


@given(
    st.integers(0, 200_000),
    st.dictionaries(st.integers(1, 9), st.none() | st.integers(0, 99_000)),
    st.lists(st.integers(1, 9)),
    needs_mib,
)
def test_strangers_hold_no_less_than_listed_and_no_more_than_used(
    used_mib: int, process_mib: dict[int, int | None], own_pids: list[int], need_mib: int
):
    strangers = strangers_mib(
        used_mib=used_mib, process_mib=process_mib, own_pids=own_pids, need_mib=need_mib
    )
    listed = sum(used or 0 for pid, used in process_mib.items() if pid not in own_pids)
    everybody = sum(used or 0 for used in process_mib.values())
    assert 0 <= strangers <= used_mib
    assert strangers >= listed or everybody > used_mib


def cpu(
    core_count: int, available_mib: int, threads: int = 2, max_slots: int | None = None
) -> VramPlan:
    return plan_cpu_slots(
        core_count=core_count,
        available_mib=available_mib,
        need_mib=2048,
        threads_per_slot=threads,
        max_slots=max_slots,
    )


@pytest.mark.parametrize(
    ("planned", "slot_count"),
    [
        (cpu(16, 64_000), 8),
        (cpu(16, 9000), 4),
        (cpu(1, 64_000, threads=4), 1),
        (cpu(16, 2000), 0),
        (cpu(16, -5), 0),
        (cpu(16, 64_000, max_slots=3), 3),
    ],
)
def test_a_cpu_carries_what_its_cores_and_its_memory_carry(planned: VramPlan, slot_count: int):
    assert planned.slots == {CPU_DEVICE: slot_count}


def test_the_cpu_plan_explains_itself():
    assert cpu(16, 9000, max_slots=3).explanation == (
        "CPU: 16 cores at 2 threads per slot carry 8; 9000 MiB of main memory carry 4 of 2048 MiB; "
        "the smaller is 4 slots, 3 after the cap.\n"
        "Together 3 slots of 2048 MiB; the cap is 3."
    )


def test_rejects_a_cpu_without_cores():
    with pytest.raises(ValueError, match="core_count = 0"):
        cpu(0, 9000)


@given(st.integers(1, 256), st.integers(0, 10**6), st.integers(1, 50_000), st.integers(1, 64), caps)
def test_a_cpu_plan_never_promises_memory_that_is_not_there(
    core_count: int, available_mib: int, need_mib: int, threads: int, max_slots: int | None
):
    planned = plan_cpu_slots(
        core_count=core_count,
        available_mib=available_mib,
        need_mib=need_mib,
        threads_per_slot=threads,
        max_slots=max_slots,
    )
    assert planned.slot_count * need_mib <= available_mib
    assert planned.slot_count * threads <= max(core_count, threads)
