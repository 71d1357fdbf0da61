"""From one shard's frames to its scores, without Dagster."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ocr_assets.curation.batching import batches_of_equal_size
from ocr_assets.curation.geometry import box_area_ratio, text_area_ratio
from ocr_assets.curation.identity import scorer_id
from ocr_assets.curation.reasons import UnscoredReason
from resources.batch_runner import BatchRunner, FrameFailure
from resources.data_directory import DataDirectory
from resources.detectors.base import DetectorSpec, TextBoxes
from resources.frame_store import StoredFrame
from resources.score_files import SCORES_SCHEMA

Progress = Callable[[int, int], None]
SegmentKey = tuple[str, int]

BUFFER_BATCHES = 8
"""Batches' worth of pixels that may wait for company of their size."""


class FramesMissingError(Exception):
    """A shard has no frames file yet. The message says what to do."""


class DetectorFailedError(Exception):
    """The detector failed on every frame of a shard: that is its fault, not the frames'."""


@dataclass
class ScoresSummary:
    """What became of a shard's frames, and where the time went.

    Attributes:
        frame_count: Frames that have a score.
        unscored_frame_count: Frames that have a reason instead.
        unfit_frame_count: Of these, frames that did not fit the device's memory.
        unreadable_count: Segments that had no frames, with their reason.
        box_count: Text boxes found.
        detected_frame_count: Frames that went through the detector this time.
        read_seconds: Reading and unpacking frames.
        detect_seconds: In the detector.
        store_seconds: Writing the score file.
        total_seconds: In all.
        out_of_memory_count: How often a batch did not fit the device's memory.
        batch_sizes: How often each number of frames went through the detector together.
    """

    frame_count: int = 0
    unscored_frame_count: int = 0
    unfit_frame_count: int = 0
    unreadable_count: int = 0
    box_count: int = 0
    detected_frame_count: int = 0
    read_seconds: float = 0.0
    detect_seconds: float = 0.0
    store_seconds: float = 0.0
    total_seconds: float = 0.0
    out_of_memory_count: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)

    def count(self, row: Mapping[str, Any]) -> None:
        """Counts one frame's row."""
        self.frame_count += row["reason"] is None
        self.unscored_frame_count += row["reason"] is not None
        self.unfit_frame_count += row["reason"] == UnscoredReason.OUT_OF_MEMORY
        self.box_count += len(row["boxes"])


@dataclass(frozen=True)
class Scorer:
    """One way of scoring: what its rows are filed under.

    Attributes:
        sampler: The sampler's text.
        detector: What decides the boxes.
    """

    sampler: str
    detector: DetectorSpec

    @property
    def scorer_id(self) -> str:
        """The id of this way of scoring."""
        return scorer_id(sampler=self.sampler, detector_digest=self.detector.digest())

    def row(self) -> dict[str, str]:
        """What every score row, and the table `scorers`, tells of it."""
        return {
            "scorer_id": self.scorer_id,
            "sampler": self.sampler,
            "detector": self.detector.name,
            "weights_sha256": self.detector.weights_sha256,
            "parameters": json.dumps(dict(self.detector.parameters), sort_keys=True),
        }


def score_shard(
    shard: str,
    data: DataDirectory,
    batches: BatchRunner,
    *,
    on_progress: Progress,
    resume: bool = False,
) -> tuple[Scorer, ScoresSummary]:
    """Scores a shard's frames and writes its score file, which changes whole or not at all.

    Args:
        shard: Partition key.
        data: Where frames and scores lie.
        batches: With the detector, loaded and warm.
        on_progress: Told after each batch, in frames.
        resume: Whether segments that this scorer has scored already keep their scores.

    Raises:
        FramesMissingError: If the shard's frames were not made.
        DetectorFailedError: If the detector failed on every frame, and not for want of memory.
        DeviceFailedError: If the device can compute no more in this process.
    """
    provenance = data.frames.provenance(shard)
    if provenance is None:
        raise FramesMissingError(
            f"shard {shard} has no frames ({data.frames.path(shard)}); materialize `frames` first"
        )
    batches.warm_up(data.frames.frame_sizes(shard))
    started = time.perf_counter()
    scorer = Scorer(provenance.sampler, batches.detector.spec)
    scored = _scored_before(shard, data, scorer) if resume else {}
    wanted = {
        (entry["video_id"], entry["segment_index"]): entry["frame_count"]
        for entry in provenance.segments
        if entry["reason"] is None and (entry["video_id"], entry["segment_index"]) not in scored
    }
    summary = ScoresSummary()
    found = _detect_frames(shard, data, batches, wanted, summary, on_progress)
    rows = [
        {
            **scorer.row(),
            "shard": shard,
            "video_id": entry["video_id"],
            "segment_index": entry["segment_index"],
            "frames": sorted(
                (scored | found).get((entry["video_id"], entry["segment_index"]), []),
                key=lambda row: row["frame_index"],
            ),
            "reason": entry["reason"],
            "detail": entry["detail"],
        }
        for entry in provenance.segments
    ]
    for row in rows:
        summary.unreadable_count += row["reason"] is not None
        for frame_row in row["frames"]:
            summary.count(frame_row)
    _require_a_score(shard, rows, summary)
    stored = time.perf_counter()
    data.score_files.write(
        shard, scorer.scorer_id, pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)
    )
    summary.store_seconds = time.perf_counter() - stored
    statistics = batches.take_statistics()
    summary.batch_sizes = statistics.batch_sizes
    summary.detect_seconds = statistics.detect_seconds
    summary.out_of_memory_count = statistics.out_of_memory_count
    summary.total_seconds = time.perf_counter() - started
    return scorer, summary


def _scored_before(
    shard: str, data: DataDirectory, scorer: Scorer
) -> dict[SegmentKey, list[dict[str, Any]]]:
    """The frames of segments that lack nothing, as an earlier attempt left them."""
    return {
        (row["video_id"], row["segment_index"]): row["frames"]
        for row in data.score_files.rows(shard, scorer.scorer_id).to_pylist()
        if row["reason"] is None and not any(frame["reason"] for frame in row["frames"])
    }


def _detect_frames(
    shard: str,
    data: DataDirectory,
    batches: BatchRunner,
    wanted: Mapping[SegmentKey, int],
    summary: ScoresSummary,
    on_progress: Progress,
) -> dict[SegmentKey, list[dict[str, Any]]]:
    rows: dict[SegmentKey, list[dict[str, Any]]] = {key: [] for key in wanted}
    frames = (
        frame
        for frame in data.frames.read(shard)
        if (frame.video_id, frame.segment_index) in wanted
    )
    read = time.perf_counter()
    for batch in batches_of_equal_size(
        frames,
        batch_px=batches.batch_px,
        buffer_px=BUFFER_BATCHES * batches.batch_px,
        input_px=batches.input_px,
    ):
        pixels = np.stack([frame.pixels() for frame in batch])
        summary.read_seconds += time.perf_counter() - read
        found = batches.detect(pixels)
        for frame, answer in zip(batch, found, strict=True):
            rows[frame.video_id, frame.segment_index].append(_frame_row(frame, answer))
        summary.detected_frame_count += len(batch)
        on_progress(summary.detected_frame_count, sum(wanted.values()))
        read = time.perf_counter()
    return rows


def _require_a_score(shard: str, rows: Sequence[Mapping[str, Any]], summary: ScoresSummary) -> None:
    failed_count = summary.unscored_frame_count - summary.unfit_frame_count
    if failed_count and not summary.frame_count:
        failed = UnscoredReason.DETECTION_FAILED
        first = next(
            frame["detail"] for row in rows for frame in row["frames"] if frame["reason"] == failed
        )
        raise DetectorFailedError(
            f"the detector failed on all {failed_count} frames of shard {shard}: {first}"
        )


def _frame_row(frame: StoredFrame, found: TextBoxes | FrameFailure) -> dict[str, Any]:
    row: dict[str, Any] = {
        "frame_index": frame.frame_index,
        "pts_seconds": frame.pts_seconds,
        "width_px": frame.width_px,
        "height_px": frame.height_px,
        "text_area_ratio": None,
        "box_area_ratio": None,
        "boxes": [],
        "reason": None,
        "detail": None,
    }
    if isinstance(found, FrameFailure):
        reason = (
            UnscoredReason.OUT_OF_MEMORY
            if found.is_out_of_memory
            else UnscoredReason.DETECTION_FAILED
        )
        return row | {"reason": reason.value, "detail": found.detail}
    size = {"width_px": frame.width_px, "height_px": frame.height_px}
    boxes = zip(found.points.reshape(-1, 8).tolist(), found.confidence.tolist(), strict=True)
    return row | {
        "text_area_ratio": text_area_ratio(found.points, **size),
        "box_area_ratio": box_area_ratio(found.points, **size),
        "boxes": [{"points": points, "confidence": sure} for points, sure in boxes],
    }
