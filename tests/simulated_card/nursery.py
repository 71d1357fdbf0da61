"""Starts OCR workers within milliseconds: everything is imported once, and each line forks one.

Run as a program in the environment of a simulated card, with the GPU resource's settings as JSON.
For each line on its standard input it starts a worker that takes a slot, scores some frames, gives
the slot back, and so on until it is killed. The diary tells of its birth.
"""

import json
import os
import signal
import sys
import time

import numpy as np
from scripted_detector import log

from resources.gpu import GpuResource
from resources.worker_pool import die_with_parent

FRAMES = np.full((3, 128, 160, 3), 90, np.uint8)


def work(gpu: GpuResource) -> None:
    """What a worker does all its life."""
    while True:
        with gpu.worker(lambda message: log("waits", message=message)) as worker:
            for _ in range(3):
                worker.batches.detect(FRAMES)
        time.sleep(0.01)


def main() -> None:
    """Forks a worker for each line."""
    gpu = GpuResource(**json.loads(sys.argv[1]))
    gpu.spec()
    # Nobody waits for them; the kernel is to forget them at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _line in sys.stdin:
        if os.fork() == 0:
            die_with_parent()
            log("born")
            work(gpu)


if __name__ == "__main__":
    main()
