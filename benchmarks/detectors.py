"""Frames per second of each detector, by worker processes and threads. Run by `make bench`.

Every worker loads its own detector, warms it up with one frame, waits for the others, and then
scores frames one at a time; what is told is all frames over the time of the slowest worker.
"""

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from resources.detectors import DETECTOR_NAMES, load_detector

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

WIDTH_PX, HEIGHT_PX = 640, 384


def textless_frame() -> np.ndarray:
    """A frame (1, H, W, 3) of smooth noise: what a detector costs hardly depends on the picture."""
    small = np.random.default_rng(0).integers(0, 255, (1, 12, 20, 3), np.uint8)
    return small.repeat(32, axis=1).repeat(32, axis=2)


def work(
    name: str, thread_count: int, frame_count: int, start: Barrier, seconds: "Queue[float]"
) -> None:
    """One worker: loads, warms up, waits, scores."""
    detector = load_detector(name, device="cpu", thread_count=thread_count)
    frame = textless_frame()
    detector.detect(frame)
    start.wait()
    started = time.perf_counter()
    for _ in range(frame_count):
        detector.detect(frame)
    seconds.put(time.perf_counter() - started)


def frames_per_second(name: str, workers: int, thread_count: int, frame_count: int) -> float:
    """Measures one combination."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=work, args=(name, thread_count, frame_count, start, seconds))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    slowest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return workers * frame_count / slowest


def combinations(core_count: int) -> Iterator[tuple[int, int]]:
    """Workers and threads that fill the cores: 1 x n, 2 x n/2, … n x 1."""
    workers = 1
    while workers <= core_count:
        yield workers, core_count // workers
        workers *= 2


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=12, help="frames per worker and repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    table = Table(title=f"{platform.processor() or platform.machine()}, {cores} cores")
    for column in ("detector", "workers", "threads each", "frames/s, median", "least", "most"):
        table.add_column(column)
    for name in DETECTOR_NAMES:
        for workers, thread_count in combinations(cores):
            measured = sorted(
                frames_per_second(name, workers, thread_count, options.frames)
                for _ in range(options.repetitions)
            )
            median = measured[len(measured) // 2]
            cells = (f"{value:.2f}" for value in (median, measured[0], measured[-1]))
            table.add_row(name, str(workers), str(thread_count), *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
