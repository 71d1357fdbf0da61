"""Work that may hang, crash or eat its process: done in worker processes that can be killed.

A decoder fed with other people's files can loop for ever while holding the interpreter's lock
(dmlc/decord issues 269, 373, 375), so no thread and no signal handler in the same process could
stop it. The library `pebble` kills a worker at its deadline and starts another.
"""

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class WorkerLoss(StrEnum):
    """How a worker was lost."""

    TIMED_OUT = "timed_out"
    CRASHED = "crashed"


class WorkerLostError(Exception):
    """The worker that held an item is gone; the item has no result.

    Attributes:
        loss: How.
        detail: Deadline or exit code, in words.
    """

    def __init__(self, loss: WorkerLoss, detail: str) -> None:
        super().__init__(loss, detail)
        self.loss = loss
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class WorkerPool:
    """Runs one function over items in killable processes, results in the order of the items."""

    def __init__(self, pool: ProcessPool, process_count: int) -> None:
        self._pool = pool
        # Two per process keep every worker busy; more would hold finished results in memory.
        self._window = 2 * process_count

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        timeout_seconds: Callable[[ItemT], float],
    ) -> Iterator["Outcome[ItemT, ResultT]"]:
        """Applies a picklable function to each item, in worker processes.

        Args:
            function: A module's top-level function.
            items: Picklable; taken only as fast as results are.
            timeout_seconds: How long one item may run, from when a worker takes it.

        Yields:
            One outcome per item, in order. An exception that `function` raises is raised by the
            outcome's `result()`, as is `WorkerLostError`.
        """
        waiting: deque[Outcome[ItemT, ResultT]] = deque()
        for item in items:
            limit = timeout_seconds(item)
            future = self._pool.schedule(function, args=[item], timeout=limit)
            waiting.append(Outcome(item, future, limit))
            if len(waiting) >= self._window:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


@dataclass(frozen=True)
class Outcome(Generic[ItemT, ResultT]):
    """What became of one item.

    Attributes:
        item: The item.
        timeout_seconds: How long it was allowed to run.
    """

    item: ItemT
    _future: "ProcessFuture"
    timeout_seconds: float

    def result(self) -> ResultT:
        """Waits for the result.

        Raises:
            WorkerLostError: If the worker ran past its deadline or died.
            Exception: What the function raised.
        """
        try:
            return self._future.result()
        except FutureTimeoutError:
            raise WorkerLostError(
                WorkerLoss.TIMED_OUT, f"stopped after {self.timeout_seconds:g} s"
            ) from None
        except ProcessExpired as error:
            raise WorkerLostError(
                WorkerLoss.CRASHED, f"the process died with exit code {error.exitcode}"
            ) from None


@contextmanager
def worker_pool(process_count: int) -> Iterator[WorkerPool]:
    """Opens a pool of killable processes; leaving it stops them at once."""
    pool = ProcessPool(
        max_workers=process_count,
        # A forked child would inherit this process's threads' locks, and its CUDA context.
        context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        yield WorkerPool(pool, process_count)
    finally:
        pool.stop()
        pool.join()


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent decides what stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Asks Linux to kill this process when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
