"""A worker process of `ocr-assets run`: lives, keeps its slot and detector, does shard after shard.

`Worker` is the runner's handle on one; `_start` and `_materialize` run inside it. Each has an
executor of its own, so that the death of one is nobody else's.
"""

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection

import dagster as dg

from ocr_assets import progress
from ocr_assets.progress import ProgressEvent
from ocr_assets.settings import Settings
from resources.detectors import import_detector
from resources.worker_pool import die_with_parent

_context = multiprocessing.get_context("spawn")


class Worker:
    """One living process that materializes partitions.

    Args:
        settings: What its assets are configured with.
        asset: The asset it is meant for: what that needs is imported while nothing waits for it.
    """

    def __init__(self, settings: Settings, asset: str) -> None:
        self._events, sender = _context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            mp_context=_context,
            initializer=_start,
            initargs=(settings, asset, sender),
        )
        self._pid = self._executor.submit(os.getpid)
        # The child has its own copy now; with ours closed, its death is an end of file.
        sender.close()

    def materialize(self, asset: str, shard: str) -> "Future[None]":
        """Starts one partition of one asset."""
        return self._executor.submit(_materialize, asset, shard)

    def events(self) -> list[ProgressEvent]:
        """What the worker told since it was last asked."""
        told: list[ProgressEvent] = []
        try:
            while self._events.poll():
                told.append(self._events.recv())
        except (EOFError, ConnectionResetError):
            pass  # The process is gone; its future says so.
        return told

    def interrupt(self) -> None:
        """Asks the running partition to stop; Dagster records it as canceled."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends the process at once."""
        self._signal(signal.SIGKILL)

    def dismiss(self) -> None:
        """Has the idle process end, and does not wait for it."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._events.close()

    def close(self) -> None:
        """Lets the process end when it is idle."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._events.close()

    def _signal(self, number: int) -> None:
        if self._pid.done() and self._pid.exception() is None:
            try:
                os.kill(self._pid.result(), number)
            except ProcessLookupError:
                return


def _start(settings: Settings, asset: str, sender: Connection) -> None:
    # Out of the terminal's group: on Ctrl-C the runner decides who stops, and when.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    progress.listen(sender.send)
    _state["settings"] = settings
    import ocr_assets.definitions  # noqa: F401

    if asset == "ocr_scores":
        import_detector(settings.detector)


_state: dict[str, Settings] = {}


def _materialize(asset: str, shard: str) -> None:
    from ocr_assets.definitions import build_definitions
    from ocr_assets.instance import COMMAND_TAG, open_instance, process_tags

    settings = _state["settings"]
    job = build_definitions(settings, keep_warm=True).resolve_implicit_global_asset_job_def()
    with open_instance(settings) as instance:
        job.execute_in_process(
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            instance=instance,
            partition_key=shard,
            asset_selection=[dg.AssetKey(asset)],
            tags={**process_tags(), COMMAND_TAG: "run"},
        )
