"""What the UI shows of each materialization: summaries as Dagster metadata."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from ocr_assets.assembling import DatasetSummary
from ocr_assets.decoding import FramesSummary
from ocr_assets.discovering import DiscoverySummary
from ocr_assets.scoring import Scorer, ScoresSummary
from resources.leases import Lease

Metadata = Mapping[str, dg.MetadataValue | int | float | str]


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
        "images_mib": summary.png_bytes / 2**20,
        "seconds": seconds,
        "file": dg.MetadataValue.path(path),
    }


def scores_metadata(
    scorer: Scorer, summary: ScoresSummary, lease: Lease, path: Path, pending: str | None
) -> Metadata:
    """Of a partition of `ocr_scores`."""
    batch_sizes = {str(size): count for size, count in sorted(summary.batch_sizes.items())}
    return {
        "dagster/partition_row_count": summary.frame_count,
        "unscored_frames": summary.unscored_frame_count,
        "unreadable_segments": summary.unreadable_count,
        "text_boxes": summary.box_count,
        "frames_per_second": summary.frame_count / max(summary.total_seconds, 1e-9),
        "detect_seconds": summary.detect_seconds,
        "total_seconds": summary.total_seconds,
        "batch_sizes": dg.MetadataValue.json(batch_sizes),
        "scorer_id": scorer.scorer_id,
        "detector": scorer.detector.name,
        "sampler": scorer.sampler,
        "device": lease.device_uuid,
        "slot": lease.slot_index,
        "waited_seconds": lease.waited_seconds,
        "duckdb": pending or "merged",
        "file": dg.MetadataValue.path(path),
    }


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
