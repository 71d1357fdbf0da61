"""What the UI shows of each materialization: summaries as Dagster metadata."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pyarrow as pa

from ocr_assets.assembling import DatasetSummary
from ocr_assets.curation.report import Report
from ocr_assets.decoding import FramesSummary
from ocr_assets.discovering import DiscoverySummary
from ocr_assets.gallery import contact_sheet_png, histogram_png, yield_curve_png
from ocr_assets.plots import png_markdown, usage_plot
from ocr_assets.scoring import Scorer, ScoresSummary
from resources.ocr_worker import OcrWorker
from resources.usage_sampler import UsageSampler

Metadata = Mapping[str, dg.MetadataValue | int | float | str]

OWNERS = ["team:video-curation"]
"""Whom the UI names beside each asset; a code location of your own may say otherwise."""


def column_schema(schema: pa.Schema) -> Mapping[str, dg.TableSchema]:
    """An Arrow schema as the metadata that Dagster shows as an asset's columns."""
    columns = [
        dg.TableColumn(
            field.name,
            str(field.type),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in schema
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def discovery_metadata(summary: DiscoverySummary, catalog: Path) -> Metadata:
    """Of the asset `videos`."""
    return {
        "dagster/row_count": summary.video_count,
        "samples": summary.sample_count,
        "files": summary.file_count,
        **{f"files_{state}": count for state, count in summary.count_by_state.items()},
        "new_videos": summary.new_video_count,
        "files_opened": summary.inspected_count,
        "new_shards": dg.MetadataValue.json(list(summary.new_shards)),
        "catalog": dg.MetadataValue.path(catalog),
    }


def frames_metadata(summary: FramesSummary, seconds: float, path: Path) -> Metadata:
    """Of a partition of `frames`."""
    return {
        "dagster/partition_row_count": summary.frame_count,
        "segments": summary.segment_count,
        "unreadable_segments": summary.unreadable_count,
        "images_mib": round(summary.png_bytes / 2**20, 2),
        "seconds": round(seconds, 2),
        "file": dg.MetadataValue.path(path),
    }


def scores_metadata(
    scorer: Scorer,
    summary: ScoresSummary,
    worker: OcrWorker,
    usage: UsageSampler,
    *,
    file: Path,
    pending: str | None,
) -> Metadata:
    """Of a partition of `ocr_scores`.

    Args:
        scorer: What the scores are filed under.
        summary: What became of the frames.
        worker: Who scored them.
        usage: What that took.
        file: The score file.
        pending: Why DuckDB does not show the scores yet; None if it does.
    """
    batch_sizes = {str(size): count for size, count in sorted(summary.batch_sizes.items())}
    return {
        "dagster/partition_row_count": summary.frame_count,
        "unscored_frames": summary.unscored_frame_count,
        "unreadable_segments": summary.unreadable_count,
        "text_boxes": summary.box_count,
        "frames_per_second": round(
            summary.detected_frame_count / max(summary.total_seconds, 1e-9), 2
        ),
        "waited_seconds": round(worker.lease.waited_seconds, 2),
        "read_seconds": round(summary.read_seconds, 2),
        "detect_seconds": round(summary.detect_seconds, 2),
        "store_seconds": round(summary.store_seconds, 2),
        "total_seconds": round(summary.total_seconds, 2),
        "batch_sizes": dg.MetadataValue.json(batch_sizes),
        "out_of_memory_batches": summary.out_of_memory_count,
        **_usage_metadata(usage),
        "scorer_id": scorer.scorer_id,
        "detector": scorer.detector.name,
        "sampler": scorer.sampler,
        "device": worker.lease.device_uuid,
        "device_name": worker.device_name,
        "slot": worker.lease.slot_index,
        "slot_mib": worker.slot_mib,
        "process_id": os.getpid(),
        "waited_for": worker.waited_for or "nothing",
        "duckdb": pending or "merged",
        "file": dg.MetadataValue.path(file),
    }


def _usage_metadata(usage: UsageSampler) -> Metadata:
    figures = {
        name: round(value)
        for name, value in asdict(usage.summary()).items()
        if value is not None and name != "sample_count"
    }
    # So that a gap in the picture is not taken for an idle device.
    figures["failed_usage_samples"] = usage.failure_count
    if not usage.samples:
        return figures
    picture = png_markdown(usage_plot(usage.samples), "Memory and utilisation over time")
    return {**figures, "usage": dg.MetadataValue.md(picture)}


def dataset_metadata(summary: DatasetSummary, rule: str, scorer_id: str) -> Metadata:
    """Of the asset `filtered_dataset`."""
    return {
        "dagster/row_count": summary.kept_count,
        "samples": summary.sample_count,
        "kept": summary.kept_count,
        "rejected": dg.MetadataValue.json(dict(summary.rejected_by_reason)),
        "unscored": dg.MetadataValue.json(dict(summary.unscored_by_reason)),
        "rule": rule,
        "scorer_id": scorer_id,
        **{path.name: dg.MetadataValue.path(path) for path in summary.paths},
    }


def report_metadata(report: Report, page: Path) -> Metadata:
    """Of the report of `filtered_dataset`: where it lies, and its pictures."""
    pictures = {
        "histogram": png_markdown(histogram_png(report), "Videos by value"),
        "yield_curve": png_markdown(yield_curve_png(report), "Samples kept at each max_ratio"),
    }
    if any(group.clips for group in report.groups):
        pictures["clips"] = png_markdown(
            contact_sheet_png(report), "Highest, borderline and random clips with their boxes"
        )
    return {
        "report": dg.MetadataValue.path(page),
        **{name: dg.MetadataValue.md(text) for name, text in pictures.items()},
    }
