"""The asset `ocr_scores`: how much text each sampled frame of a shard carries."""

import os
import socket

import dagster as dg

from ocr_assets.assets.frames import frames
from ocr_assets.assets.retries import backing_off, has_retries
from ocr_assets.assets.shards import UnfinishedShardError, materialize_shards
from ocr_assets.instance import die_with_run
from ocr_assets.metadata import OWNERS, Metadata, column_schema, scores_metadata
from ocr_assets.partitions import SHARDS
from ocr_assets.pools import OCR_POOL, follow_plan, read_ocr_limit
from ocr_assets.progress import reporter
from ocr_assets.scoring import score_shard
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource, OcrWorker
from resources.score_files import SCORES_SCHEMA
from resources.score_store import StoreBusyError
from resources.usage_files import usage_table
from resources.usage_sampler import UsageSampler


@dg.asset(
    partitions_def=SHARDS,
    deps=[frames],
    group_name="curation",
    kinds={"python", "easyocr", "duckdb"},
    code_version="1",
    owners=OWNERS,
    metadata=column_schema(SCORES_SCHEMA),
    pool=OCR_POOL,
)
def ocr_scores(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.MaterializeResult:
    """Text boxes and text-area ratios of each frame, by a detector on one leased device."""
    die_with_run(context.instance, context.run.run_id)
    data.require_writable()
    context.log.info(follow_plan(context.instance, gpu))
    limit = read_ocr_limit(context.instance).by_hand
    with (
        backing_off(context, is_living=gpu.keep_warm, wait_seconds=settings.retry_wait_seconds),
        gpu.worker(context.log.info, max_slots=limit) as worker,
    ):

        def score(shard: str) -> Metadata:
            return _score(context, data, gpu, worker, shard)

        return materialize_shards(context, score)


def _score(
    context: dg.AssetExecutionContext,
    data: DataDirectory,
    gpu: GpuResource,
    worker: OcrWorker,
    shard: str,
) -> Metadata:
    with UsageSampler(worker.lease.device_uuid) as usage:
        scorer, summary = score_shard(
            shard,
            data,
            worker.batches,
            on_progress=reporter(context, "ocr_scores", shard),
            resume=context.retry_number > 0,
        )
    gpu.remember(worker)
    samples = usage_table(
        usage.samples,
        shard=shard,
        run_id=context.run.run_id,
        process_id=os.getpid(),
        host=socket.gethostname(),
        device_uuid=worker.lease.device_uuid,
        device_name=worker.device_name,
        slot_index=worker.lease.slot_index,
    )
    data.usage_files.write(shard, samples)
    pending = _merge(context, data)
    metadata = scores_metadata(
        scorer, summary, worker, usage, file=data.score_files.path(shard), pending=pending
    )
    if summary.unfit_frame_count and has_retries(context):
        raise UnfinishedShardError(
            f"{summary.unfit_frame_count} frames of shard {shard} do not fit the memory of"
            f" {worker.lease.device_uuid}; the others are scored"
        )
    return metadata


def _merge(context: dg.AssetExecutionContext, data: DataDirectory) -> str | None:
    try:
        data.score_store.merge(data.score_files, data.usage_files, data.memory_records.table())
    except StoreBusyError as error:
        context.log.warning("scores are safe, DuckDB will show them later: %s", error)
        return f"pending: {error}"
    return None
