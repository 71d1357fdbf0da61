"""The asset `filtered_dataset`: the samples that pass the rule, the others with their reason."""

import dagster as dg
from pydantic import Field

from ocr_assets.assembling import assemble_dataset
from ocr_assets.assets.ocr_scores import ocr_scores
from ocr_assets.curation.selection import Metric, SelectionRule, SeveralVideos, UnscoredPolicy
from ocr_assets.metadata import OWNERS, dataset_metadata, report_metadata
from ocr_assets.reporting import gather_report, write_page
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource


class FilterConfig(dg.Config):
    """What one assembly may do differently from the settings; unset: as in the settings."""

    metric: Metric | None = Field(default=None, description="What the rule looks at.")
    min_ratio: float | None = Field(default=None, ge=0, description="Lower end, included.")
    max_ratio: float | None = Field(default=None, ge=0, description="Upper end, included.")
    several_videos: SeveralVideos | None = Field(default=None, description="ANY or ALL must pass.")
    unscored: UnscoredPolicy | None = Field(default=None, description="DROP, KEEP or FAIL.")

    def rule(self, settings: Settings) -> SelectionRule:
        """The settings' rule with this config's changes."""
        changes = {key: value for key, value in dict(self).items() if value is not None}
        return SelectionRule(**(vars(settings.rule) | changes))


@dg.asset(
    deps=[ocr_scores],
    group_name="curation",
    kinds={"parquet", "duckdb"},
    code_version="1",
    owners=OWNERS,
)
def filtered_dataset(
    config: FilterConfig,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.MaterializeResult:
    """What is kept and what is rejected, as Parquet and as JSONL that Data-Juicer reads."""
    data.require_writable()
    scorer = Scorer(settings.sampler, gpu.spec())
    rule = config.rule(settings)
    summary = assemble_dataset(data, rule, scorer.scorer_id)
    report = gather_report(data, rule, scorer.scorer_id)
    page = write_page(data, report)
    return dg.MaterializeResult(
        metadata={
            **dataset_metadata(summary, str(rule), scorer.scorer_id),
            **report_metadata(report, page),
        }
    )
