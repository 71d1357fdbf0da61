import os
import pickle
import signal
import time
from collections.abc import Iterator

import pytest

from resources.worker_pool import WorkerLoss, WorkerLostError, WorkerPool, worker_pool

# Enough for a worker to start on a busy machine; no item here is meant to need it.
PATIENCE_SECONDS = 60.0


def work(item: str) -> str:
    """What an item's name says; runs in a worker."""
    name, _, argument = item.partition(" ")
    if name == "hang":
        while True:
            time.sleep(60)
    if name == "exit":
        os._exit(int(argument))
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "raise":
        raise LookupError(argument)
    if name == "sleep":
        time.sleep(float(argument))
    return f"{os.getpid()}" if name == "pid" else item


def patient(_item: str) -> float:
    return PATIENCE_SECONDS


def short_for_those_that_hang(item: str) -> float:
    return 0.5 if item.startswith("hang") else PATIENCE_SECONDS


def results(pool: WorkerPool, items: list[str]) -> list[str]:
    """Each item's result, or how its worker was lost."""
    found: list[str] = []
    for outcome in pool.map(work, items, short_for_those_that_hang):
        try:
            found.append(outcome.result())
        except WorkerLostError as error:
            found.append(error.loss)
    return found


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One pool for all: a worker takes half a second to start."""
    with worker_pool(2) as shared:
        yield shared


def test_results_come_in_the_order_of_the_items(pool: WorkerPool):
    items = ["sleep 0.3", "a", "b", "sleep 0.1", "c", "d", "e", "f"]
    assert results(pool, items) == items


def test_an_item_that_hangs_is_stopped_at_its_deadline_and_the_others_finish(pool: WorkerPool):
    started = time.monotonic()
    assert results(pool, ["a", "hang", "b", "c", "d"]) == ["a", WorkerLoss.TIMED_OUT, "b", "c", "d"]
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_lost_worker_says_how_long_it_was_let_run(pool: WorkerPool):
    (outcome,) = pool.map(work, ["hang"], short_for_those_that_hang)
    with pytest.raises(WorkerLostError, match=r"stopped after 0\.5 s"):
        outcome.result()


@pytest.mark.parametrize(("item", "code"), [("exit 3", "3"), ("kill", "-9")])
def test_an_item_that_kills_its_worker_costs_only_itself(pool: WorkerPool, item: str, code: str):
    outcomes = list(pool.map(work, ["a", "b", item, "c", "d"], patient))
    with pytest.raises(WorkerLostError, match=f"exit code {code}$") as raised:
        outcomes[2].result()
    assert raised.value.loss is WorkerLoss.CRASHED
    others = [outcome.result() for index, outcome in enumerate(outcomes) if index != 2]
    assert others == ["a", "b", "c", "d"]


def test_many_that_crash_and_hang_cost_only_themselves(pool: WorkerPool):
    items = ["exit 1", "exit 1", "hang", "a", "kill", "b"]
    lost = {"hang": WorkerLoss.TIMED_OUT, "kill": WorkerLoss.CRASHED, "exit 1": WorkerLoss.CRASHED}
    assert results(pool, items) == [lost.get(item, item) for item in items]


def test_an_exception_passes_through(pool: WorkerPool):
    raising, fine = pool.map(work, ["raise of the item", "a"], patient)
    with pytest.raises(LookupError, match="of the item"):
        raising.result()
    assert fine.result() == "a"


def test_work_is_done_in_other_processes(pool: WorkerPool):
    pids = {int(pid) for pid in results(pool, ["pid"] * 4)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_items_are_taken_only_as_fast_as_results_are(pool: WorkerPool):
    taken: list[int] = []

    def items() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield f"item{number}"

    outcomes = pool.map(work, items(), patient)
    assert next(outcomes).result() == "item0"
    assert len(taken) <= 4
    outcomes.close()  # type: ignore[attr-defined]


def test_no_items_have_no_outcomes(pool: WorkerPool):
    assert list(pool.map(work, [], patient)) == []


def test_a_deadline_begins_when_a_worker_takes_the_item():
    # The last item waits for three others; all four together run far longer than its deadline.
    with worker_pool(1) as single:
        results(single, ["warm up"])
        outcomes = list(single.map(work, ["sleep 0.4"] * 4, lambda _: 1.2))
        assert [outcome.result() for outcome in outcomes] == ["sleep 0.4"] * 4


def test_a_lost_worker_that_nobody_catches_leaves_the_pool_as_what_it_is():
    with pytest.raises(WorkerLostError, match="exit code 3"), worker_pool(1) as single:
        next(single.map(work, ["exit 3"], patient)).result()


def test_leaving_the_pool_stops_its_workers_at_once():
    with worker_pool(1) as single:
        (pid,) = results(single, ["pid"])
        next(single.map(work, ["hang"], patient))
        started = time.monotonic()
    assert time.monotonic() - started < PATIENCE_SECONDS
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_lost_worker_can_be_told_to_another_process():
    error = WorkerLostError(WorkerLoss.CRASHED, "the process died with exit code 3")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.loss, str(copy)) == (error.loss, str(error))
