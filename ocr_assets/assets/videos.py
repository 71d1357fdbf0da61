"""The asset `videos`: what the sources hold, as catalog rows and partition keys."""

import dagster as dg
from pydantic import Field

from ocr_assets.discovering import run_discovery
from ocr_assets.metadata import OWNERS, column_schema, discovery_metadata
from ocr_assets.partitions import add_missing_shards
from ocr_assets.pools import follow_plan, read_ocr_limit
from ocr_assets.progress import reporter
from ocr_assets.settings import Settings
from resources.catalog_store import VIDEOS_SCHEMA
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource
from resources.score_store import StoreBusyError


class VideosConfig(dg.Config):
    """What one discovery may do differently from the settings."""

    source: list[str] = Field(
        default=[], description="Folders, globs, lists or manifests; empty: as in the settings."
    )


SHARDS_VERSION = dg.DataVersion("shards are never dealt again")
"""What a shard gets from `videos` never changes: a new video makes a new shard. So no discovery
makes the frames and scores of older shards stale, which Dagster would else say of all of them."""


@dg.asset(
    group_name="curation",
    kinds={"python", "parquet"},
    code_version="1",
    owners=OWNERS,
    metadata=column_schema(VIDEOS_SCHEMA),
)
def videos(
    context: dg.AssetExecutionContext,
    config: VideosConfig,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.MaterializeResult:
    """Every video of the sources: identified by content, probed, cut into segments, sharded."""
    data.require_writable()
    context.log.info(follow_plan(context.instance, gpu))
    summary = run_discovery(
        settings,
        data,
        sources=config.source or settings.source,
        min_shard_count=read_ocr_limit(context.instance).limit or 1,
        process_count=settings.decode_process_count,
        on_progress=reporter(context, "videos"),
    )
    add_missing_shards(context.instance, list(summary.shards))
    try:
        data.score_store.refresh_catalog(data.catalog)
    except StoreBusyError as error:
        context.log.warning("DuckDB will show this discovery later: %s", error)
    return dg.MaterializeResult(
        metadata=discovery_metadata(summary, data.catalog.directory), data_version=SHARDS_VERSION
    )
