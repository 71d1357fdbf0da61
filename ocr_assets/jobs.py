"""Jobs: one per thing that people do, and the schedule that looks for new videos."""

import dagster as dg
from pydantic import Field

from ocr_assets.progress import ProgressEvent
from ocr_assets.settings import Settings, load_settings

DISCOVER = "discover"
SCORE_SHARDS = "score_shards"
ASSEMBLE = "assemble"
CURATE = "curate"

discover = dg.define_asset_job(
    DISCOVER,
    selection=["videos"],
    description="Looks for new, changed and vanished videos, and deals new ones into shards.",
)
score_shards = dg.define_asset_job(
    SCORE_SHARDS,
    selection=["frames", "ocr_scores"],
    description="Decodes and scores shards. Choose partitions; a run keeps one warm detector.",
)
assemble = dg.define_asset_job(
    ASSEMBLE,
    selection=["filtered_dataset"],
    description="Applies the rule to the scores that there are. Costs no OCR.",
)


class CurateConfig(dg.Config):
    """What one curation may do differently from the settings; unset: as in the settings."""

    source: list[str] = Field(
        default=[], description="Folders, globs, lists or manifests; empty: as in the settings."
    )
    max_ratio: float | None = Field(
        default=None, ge=0, description="Keep videos up to this value of the metric."
    )
    max_slots: int | None = Field(
        default=None, ge=1, description="At most so many OCR processes; unset: what memory carries."
    )


@dg.op(description="The whole pipeline, in worker processes of its own.")
def curate_all(
    context: dg.OpExecutionContext, config: CurateConfig, settings: dg.ResourceParam[Settings]
) -> None:
    """Runs discovery, frames, scores and dataset; every shard is a run of its own."""
    from ocr_assets.runner import ShardsFailedError, run_pipeline

    changes = {key: value for key, value in dict(config).items() if value not in (None, [])}

    def tell(event: ProgressEvent) -> None:
        if event.done == event.total:
            context.log.info("%s %s: %d done", event.stage, event.shard, event.total)

    report = run_pipeline(
        load_settings(**(settings.model_dump() | changes)),
        on_progress=tell,
        on_plan=lambda plan: context.log.info(
            "%d shards to score, %d of them to decode; %s\n%s",
            len(plan.to_score),
            len(plan.to_decode),
            plan.limit,
            plan.devices.explanation,
        ),
    )
    if report.failures:
        raise ShardsFailedError(report.failures)


@dg.job(
    name=CURATE,
    description="Everything in one go: discovery, frames, scores, dataset. As `ocr-assets run`.",
)
def curate() -> None:
    """The whole pipeline as one job."""
    curate_all()


ALL_JOBS = [discover, score_shards, assemble, curate]


def discovery_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Builds the schedule that looks for new videos."""
    return dg.ScheduleDefinition(
        name="discovery",
        job=discover,
        cron_schedule=settings.schedule_cron,
        description="Looks for new videos; the sensor `new_shards` sees to the rest.",
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.automation
        else dg.DefaultScheduleStatus.STOPPED,
    )
