"""What the two sharded assets share: a run takes one shard or several, each on its own account."""

from collections.abc import Callable

import dagster as dg

from ocr_assets.decoding import UnknownShardError
from ocr_assets.metadata import Metadata
from ocr_assets.scoring import DetectorFailedError, FramesMissingError

SHARD_ERRORS = (UnknownShardError, FramesMissingError, DetectorFailedError)
"""Errors that say something of one shard only."""


class UnfinishedShardError(Exception):
    """A shard is done as far as it can be now; the rest may be done later. Says what is left."""


def materialize_shards(
    context: dg.AssetExecutionContext, work: Callable[[str], Metadata]
) -> dg.MaterializeResult:
    """Does the work of every partition key of this run, and reports each on its own.

    Args:
        context: The run's.
        work: Does one shard and gives its metadata.

    Raises:
        dg.Failure: After all shards were tried, if some failed; the others are recorded as done.
        UnfinishedShardError: Likewise, if some are unfinished and none failed.
    """
    done: dict[str, Metadata] = {}
    failures: dict[str, str] = {}
    unfinished: dict[str, str] = {}
    for shard in context.partition_keys:
        try:
            done[shard] = work(shard)
        except SHARD_ERRORS as error:
            context.log.exception("shard %s failed", shard)
            failures[shard] = str(error)
        except UnfinishedShardError as error:
            context.log.warning("%s", error)
            unfinished[shard] = str(error)
    if not failures and not unfinished:
        for shard, metadata in done.items():
            context.add_asset_metadata(metadata, partition_key=shard)
        return dg.MaterializeResult()
    for shard, metadata in done.items():
        # A failed step records nothing of itself; these shards are done all the same.
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=shard, metadata=metadata)
        )
    if not failures:
        raise UnfinishedShardError("; ".join(unfinished.values()))
    raise dg.Failure(
        description="; ".join((failures | unfinished).values()),
        metadata={"failed_shards": dg.MetadataValue.json(failures | unfinished)},
        # The same input gives the same error.
        allow_retries=False,
    )
