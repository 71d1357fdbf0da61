"""What is tried again later: work that memory, and nothing of its own, stood in the way of."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from ocr_assets.assets.shards import UnfinishedShardError
from resources.batch_runner import DeviceFailedError
from resources.gpu import DeviceBusyError

MAX_RETRIES = 3
"""With the wait doubling each time, the default of 30 s makes 3.5 minutes in all."""


def has_retries(context: dg.AssetExecutionContext) -> bool:
    """Whether this is not the last try."""
    return context.retry_number < MAX_RETRIES


@contextmanager
def backing_off(
    context: dg.AssetExecutionContext, *, is_living: bool, wait_seconds: float
) -> Iterator[None]:
    """Asks Dagster for a retry where the body fails for want of memory or of a sound device.

    Args:
        context: The run's.
        is_living: Whether this process serves later runs too. CUDA that failed in it cannot be had
            back, so whoever started it must start another.
        wait_seconds: Before the first retry; doubles with each.

    Raises:
        dg.RetryRequested: While there are retries; then what the body raised.
    """
    try:
        yield
    except (DeviceBusyError, DeviceFailedError, UnfinishedShardError) as error:
        if not has_retries(context) or (is_living and isinstance(error, DeviceFailedError)):
            raise
        seconds = wait_seconds * 2**context.retry_number
        context.log.warning("trying again in %g s: %s", seconds, error)
        raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=seconds) from error
