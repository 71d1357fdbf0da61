"""The asset `ocr_scores`: how much text each sampled frame of a shard carries."""

import dagster as dg

from ocr_assets.assets.frames import frames
from ocr_assets.assets.shards import materialize_shards
from ocr_assets.metadata import Metadata, scores_metadata
from ocr_assets.partitions import SHARDS
from ocr_assets.pools import OCR_POOL
from ocr_assets.progress import reporter
from ocr_assets.scoring import score_shard
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource
from resources.score_store import StoreBusyError


@dg.asset(
    partitions_def=SHARDS,
    deps=[frames],
    group_name="curation",
    kinds={"python", "easyocr", "duckdb"},
    code_version="1",
    pool=OCR_POOL,
)
def ocr_scores(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.MaterializeResult:
    """Text boxes and text-area ratios of each frame, by a detector on one leased device."""
    data.require_writable()
    with gpu.worker(context.log.info) as worker:

        def score(shard: str) -> Metadata:
            scorer, summary = score_shard(
                shard,
                data,
                worker.detector,
                batch_px=int(settings.batch_megapixels * 1e6),
                on_progress=reporter(context, "ocr_scores", shard),
            )
            pending = _merge(context, data)
            path = data.score_files.path(shard)
            return scores_metadata(scorer, summary, worker.lease, path, pending)

        return materialize_shards(context, score)


def _merge(context: dg.AssetExecutionContext, data: DataDirectory) -> str | None:
    try:
        data.score_store.merge(data.score_files)
    except StoreBusyError as error:
        context.log.warning("scores are safe, DuckDB will show them later: %s", error)
        return f"pending: {error}"
    return None
