"""The asset `frames`: the sampled frames of each shard."""

import time

import dagster as dg

from ocr_assets.assets.shards import materialize_shards
from ocr_assets.assets.videos import videos
from ocr_assets.decoding import decode_shard
from ocr_assets.instance import die_with_run
from ocr_assets.metadata import OWNERS, Metadata, column_schema, frames_metadata
from ocr_assets.partitions import SHARDS
from ocr_assets.pools import DECODE_POOL
from ocr_assets.progress import reporter
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.frame_store import FRAMES_SCHEMA
from resources.worker_pool import worker_pool


@dg.asset(
    partitions_def=SHARDS,
    deps=[videos],
    group_name="curation",
    kinds={"python", "parquet"},
    code_version="1",
    owners=OWNERS,
    metadata=column_schema(FRAMES_SCHEMA),
    pool=DECODE_POOL,
)
def frames(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
) -> dg.MaterializeResult:
    """The frames that stand for each video, lossless, with where they come from."""
    die_with_run(context.instance, context.run.run_id)
    data.require_writable()
    with worker_pool(settings.decode_process_count) as pool:

        def decode(shard: str) -> Metadata:
            started = time.perf_counter()
            report = reporter(context, "frames", shard)
            summary = decode_shard(shard, settings, data, pool=pool, on_progress=report)
            return frames_metadata(summary, time.perf_counter() - started, data.frames.path(shard))

        return materialize_shards(context, decode)
