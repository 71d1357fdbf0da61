"""Eight warm processes, released from a barrier again and again: what a pool and a lease let in.

Run as a program in the environment of a simulated card: home of an instance, number of processes,
number of bursts, limit of the pool, file for the result. Per burst every process claims a slot of a
Dagster pool, as Dagster's executors do, and frees it; then, released anew, it takes a worker of the
GPU resource, and who gets none at once gives up. Whoever has something keeps it until all have
tried, so what is counted was held at the same time.
"""

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from resources.gpu import GpuResource

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import SynchronizedArray

POOL = "bare"

_BARRIER_SECONDS = 120.0


class _TakenError(Exception):
    """Every slot is taken."""


def burst(
    home: str,
    count: int,
    barrier: Barrier,
    claimed: "SynchronizedArray[int]",
    leased: "SynchronizedArray[int]",
) -> None:
    """One process' part of every burst."""
    gpu = GpuResource()
    run_id = f"process-{os.getpid()}"
    with dg.DagsterInstance.from_config(home) as instance:
        storage = instance.event_log_storage
        # Once for nothing, so that all is imported and open.
        storage.get_concurrency_info(POOL)
        gpu.plan()
        for index in range(count):
            barrier.wait(_BARRIER_SECONDS)
            if storage.claim_concurrency_slot(POOL, run_id, "step").is_claimed:
                _count(claimed, index)
            barrier.wait(_BARRIER_SECONDS)
            storage.free_concurrency_slots_for_run(run_id)
            barrier.wait(_BARRIER_SECONDS)
            try:
                with gpu.worker(_give_up):
                    _count(leased, index)
                    barrier.wait(_BARRIER_SECONDS)
            except _TakenError:
                barrier.wait(_BARRIER_SECONDS)


def main(home: str, process_count: int, count: int, limit: int, result: Path) -> None:
    """Runs the bursts and writes down how many got what in each."""
    with dg.DagsterInstance.from_config(home) as instance:
        instance.event_log_storage.set_concurrency_slots(POOL, limit)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(process_count)
    claimed, leased = context.Array("i", count), context.Array("i", count)
    started = time.monotonic()
    processes = [
        context.Process(target=burst, args=(home, count, barrier, claimed, leased))
        for _ in range(process_count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"exit codes {[process.exitcode for process in processes]}")
    seconds = time.monotonic() - started
    result.write_text(json.dumps({"claimed": claimed[:], "leased": leased[:], "seconds": seconds}))


def _give_up(_message: str) -> None:
    raise _TakenError


def _count(counts: "SynchronizedArray[int]", index: int) -> None:
    with counts.get_lock():
        counts[index] += 1


if __name__ == "__main__":
    _home, *_numbers, _result = sys.argv[1:]
    _process_count, _burst_count, _limit = map(int, _numbers)
    main(_home, _process_count, _burst_count, _limit, Path(_result))
