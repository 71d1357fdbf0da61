"""Hands-free curation: sensors that see new videos through, from the source to the dataset.

Belongs here: asking what is to be done, and requesting runs for it. Does not belong here: what is
pending (`pending.py`), and how requests are cut (`run_requests.py`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
)

from ocr_assets.curation.manifest import ManifestError
from ocr_assets.curation.sources import SourceError, list_sources, video_paths
from ocr_assets.instance import COMMAND_TAG
from ocr_assets.jobs import CURATE, assemble, discover, score_shards
from ocr_assets.partitions import SHARDS
from ocr_assets.pending import PendingWork, pending_work
from ocr_assets.pools import read_ocr_limit
from ocr_assets.run_requests import (
    RUNS_PER_SLOT,
    Asked,
    ShardRun,
    next_runs,
    shards_per_run,
)
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource

NEW_SHARDS_SECONDS = 15
"""How long a finished discovery, or a run that made room, may stay unnoticed."""

SOURCES_SECONDS = 60
"""How often the sources are looked at. A change counts once it looks the same twice: whatever is
still being copied is left alone."""

MEASURED_RUNS = 20
"""How many of the last scored shards tell how long one takes."""

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def hands_free_sensors(settings: Settings, gpu: GpuResource) -> list[dg.SensorDefinition]:
    """Builds the sensors for some settings; they run from the start where `automation` is set."""
    status = (
        dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED
    )

    @dg.sensor(
        jobs=[score_shards, assemble],
        minimum_interval_seconds=NEW_SHARDS_SECONDS,
        default_status=status,
        description="Has new and changed shards decoded and scored, costliest first and as many at"
        " a time as the pool can use, and the dataset assembled once when all are done.",
    )
    def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        data = DataDirectory(settings.data_dir)
        if not data.catalog.has_catalog():
            return dg.SkipReason("nothing was discovered yet")
        scorer = Scorer(settings.sampler, gpu.spec())
        return _next(context, settings, data, pending_work(data, scorer), scorer)

    @dg.sensor(
        job=discover,
        minimum_interval_seconds=SOURCES_SECONDS,
        default_status=status,
        description="Starts a discovery when files of the sources were added, changed or removed.",
    )
    def changed_sources(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            seen = _fingerprint(video_paths(list_sources(settings.source)))
        except (SourceError, ManifestError) as error:
            return dg.SkipReason(str(error))
        before, _, _ = (context.cursor or "").partition("/")
        if seen != before:
            return dg.SensorResult(
                cursor=seen, skip_reason="the sources changed; waiting until they stay as they are"
            )
        if context.cursor == f"{seen}/discovered":
            return dg.SkipReason("the sources are as they were")
        # No run key: Dagster would request nothing when the sources are as they once were.
        return dg.SensorResult(cursor=f"{seen}/discovered", run_requests=[dg.RunRequest()])

    return [new_shards, changed_sources]


def _next(
    context: dg.SensorEvaluationContext,
    settings: Settings,
    data: DataDirectory,
    pending: PendingWork,
    scorer: Scorer,
) -> dg.SensorResult:
    stamp = _digest([str(data.catalog.files_path.stat().st_mtime_ns), scorer.scorer_id])
    asked = Asked.from_json(context.cursor).of(stamp, pending.to_score)
    at_work = context.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
    if any(COMMAND_TAG in run.tags or run.job_name == CURATE for run in at_work):
        return dg.SensorResult(
            skip_reason="`ocr-assets run` sees to all shards", cursor=context.cursor
        )
    busy = {key for run in at_work for key in _shards_of(run, pending.shards)}
    keys = set(context.instance.get_dynamic_partitions(str(SHARDS.name)))
    if not keys.issuperset(pending.to_score):
        # Discovery writes the catalog first; or the catalog was made on another instance.
        return dg.SensorResult(
            skip_reason="some shards are no partitions yet; if that stays so, run `discover`",
            cursor=asked.to_json(),
        )
    wanted = set(pending.to_score) - busy - asked.shards
    if wanted:
        limit = read_ocr_limit(context.instance).limit or 1
        own_count = sum(run.job_name == score_shards.name for run in at_work)
        runs = next_runs(
            {key: shard.cost_megapixels for key, shard in pending.shards.items()},
            wanted=wanted,
            run_count=RUNS_PER_SLOT * limit - own_count,
            shard_count_per_run=shards_per_run(
                _seconds_per_shard(context.instance), wanted_count=len(wanted), slot_count=limit
            ),
        )
        taken = {key for key in pending.shards for run in runs if run.first <= key <= run.last}
        return dg.SensorResult(
            run_requests=[_request(run, stamp) for run in runs],
            skip_reason=None if runs else f"{len(wanted)} shards wait for {own_count} runs",
            cursor=Asked(stamp, asked.shards | taken).to_json(),
        )
    if busy:
        return dg.SensorResult(
            skip_reason=f"{len(busy)} shards are at work", cursor=asked.to_json()
        )
    if asked.shards:
        # They keep their videos unscored, with a reason; the next discovery asks for them again.
        context.log.warning("%d shards failed, see their runs", len(asked.shards))
    # The same key again requests nothing: one assembly per discovery, scorer and rule.
    done = _digest([stamp, str(settings.rule), *_score_stamps(data)])
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"dataset/{done}", job_name=assemble.name)],
        cursor=asked.to_json(),
    )


def _request(run: ShardRun, stamp: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"shards/{stamp}/{run.first}-{run.last}",
        job_name=score_shards.name,
        tags={
            ASSET_PARTITION_RANGE_START_TAG: run.first,
            ASSET_PARTITION_RANGE_END_TAG: run.last,
            PRIORITY_TAG: str(round(run.cost_megapixels)),
        },
    )


def _shards_of(run: dg.DagsterRun, keys: Iterable[str]) -> list[str]:
    one = run.tags.get(PARTITION_NAME_TAG)
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG, one)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, one)
    if first is None or last is None:
        return []
    return [key for key in keys if first <= key <= last]


def _seconds_per_shard(instance: dg.DagsterInstance) -> list[float]:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey("ocr_scores")), limit=MEASURED_RUNS
    ).records
    figures = [
        record.asset_materialization.metadata["total_seconds"].value
        for record in records
        if record.asset_materialization and "total_seconds" in record.asset_materialization.metadata
    ]
    return [float(figure) for figure in figures if isinstance(figure, int | float)]


def _score_stamps(data: DataDirectory) -> list[str]:
    return [f"{path.name} {path.stat().st_mtime_ns}" for path in data.score_files.all_paths()]


def _fingerprint(paths: Sequence[str]) -> str:
    """Of what `videos` would look at to tell whether a file is as it was."""
    stamps = []
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError as error:
            stamps.append(f"{path} {error.errno}")
        else:
            stamps.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return _digest(stamps)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
