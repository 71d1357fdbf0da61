"""Progress: how a long partition tells how far it is, to the log or to a progress bar.

A worker process of `ocr-assets run` sets a listener; everywhere else the run's log is told, at most
every few seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

LOG_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True)
class ProgressEvent:
    """How far one piece of work is.

    Attributes:
        stage: The asset's name.
        shard: The partition key; empty for an unpartitioned asset.
        done: Units done: files, segments or frames.
        total: Of how many.
    """

    stage: str
    shard: str
    done: int
    total: int


Listener = Callable[[ProgressEvent], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Sends this process's progress to a listener; None gives it back to the logs."""
    global _listener  # noqa: PLW0603 (one per process, set once at its start)
    _listener = listener


def reporter(
    context: dg.AssetExecutionContext, stage: str, shard: str = ""
) -> Callable[[int, int], None]:
    """Gives the callback that a stage tells how far it is."""
    last_logged = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last_logged
        if _listener is not None:
            _listener(ProgressEvent(stage, shard, done, total))
        elif done == total or time.monotonic() - last_logged >= LOG_INTERVAL_SECONDS:
            last_logged = time.monotonic()
            context.log.info("%s %s: %d of %d", stage, shard, done, total)

    return report
