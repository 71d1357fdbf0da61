"""From one shard's frames to its scores, without Dagster."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from ocr_assets.curation.batching import batches_of_equal_size
from ocr_assets.curation.geometry import box_area_ratio, text_area_ratio
from ocr_assets.curation.identity import scorer_id
from ocr_assets.curation.reasons import UnscoredReason
from resources.data_directory import DataDirectory
from resources.detectors.base import DetectorSpec, TextBoxes, TextDetector
from resources.frame_store import StoredFrame
from resources.score_files import SCORES_SCHEMA

Progress = Callable[[int, int], None]

BUFFER_BATCHES = 8
"""Batches' worth of pixels that may wait for company of their size."""

# What a detector raises over one frame: torch and onnxruntime raise RuntimeError, OpenCV its own,
# a frame of impossible shape ValueError. Anything else is a defect of ours and is not caught.
_FRAME_ERRORS = (RuntimeError, ValueError, cv2.error)


class FramesMissingError(Exception):
    """A shard has no frames file yet. The message says what to do."""


class DetectorFailedError(Exception):
    """The detector failed on every frame of a shard: that is its fault, not the frames'."""


@dataclass
class ScoresSummary:
    """What became of a shard's frames, and where the time went.

    Attributes:
        frame_count: Frames that got a score.
        unscored_frame_count: Frames that got a reason instead.
        unreadable_count: Segments that had no frames, with their reason.
        box_count: Text boxes found.
        detect_seconds: In the detector.
        total_seconds: In all.
        batch_sizes: How often each number of frames went through the detector together.
    """

    frame_count: int = 0
    unscored_frame_count: int = 0
    unreadable_count: int = 0
    box_count: int = 0
    detect_seconds: float = 0.0
    total_seconds: float = 0.0
    batch_sizes: Counter[int] = field(default_factory=Counter)


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
    detector: TextDetector,
    *,
    batch_px: int,
    on_progress: Progress,
) -> tuple[Scorer, ScoresSummary]:
    """Scores a shard's frames and writes its score file, which changes whole or not at all.

    Args:
        shard: Partition key.
        data: Where frames and scores lie.
        detector: Loaded and warm.
        batch_px: Pixels that one forward pass takes.
        on_progress: Told after each batch, in frames.

    Raises:
        FramesMissingError: If the shard's frames were not made.
        DetectorFailedError: If the detector failed on every frame.
    """
    started = time.perf_counter()
    provenance = data.frames.provenance(shard)
    if provenance is None:
        raise FramesMissingError(
            f"shard {shard} has no frames ({data.frames.path(shard)}); materialize `frames` first"
        )
    readable = {
        (entry["video_id"], entry["segment_index"]): entry
        for entry in provenance.segments
        if entry["reason"] is None
    }
    expected_count = sum(entry["frame_count"] for entry in readable.values())
    summary = ScoresSummary(unreadable_count=len(provenance.segments) - len(readable))
    frames = (
        frame
        for frame in data.frames.read(shard)
        if (frame.video_id, frame.segment_index) in readable
    )
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in readable}
    for batch in batches_of_equal_size(
        frames, batch_px=batch_px, buffer_px=BUFFER_BATCHES * batch_px
    ):
        for frame, found in zip(batch, _detect(batch, detector, summary), strict=True):
            rows[frame.video_id, frame.segment_index].append(_frame_row(frame, found))
            _count(summary, found)
        on_progress(summary.frame_count + summary.unscored_frame_count, expected_count)
    if summary.unscored_frame_count and not summary.frame_count:
        raise DetectorFailedError(
            f"the detector failed on all {summary.unscored_frame_count} frames of shard {shard}:"
            f" {next(row['detail'] for found in rows.values() for row in found)}"
        )
    scorer = Scorer(provenance.sampler, detector.spec)
    table = pa.Table.from_pylist(
        [
            {
                **scorer.row(),
                "shard": shard,
                "video_id": entry["video_id"],
                "segment_index": entry["segment_index"],
                "frames": sorted(
                    rows.get((entry["video_id"], entry["segment_index"]), []),
                    key=lambda row: row["frame_index"],
                ),
                "reason": entry["reason"],
                "detail": entry["detail"],
            }
            for entry in provenance.segments
        ],
        schema=SCORES_SCHEMA,
    )
    data.score_files.write(shard, scorer.scorer_id, table)
    summary.total_seconds = time.perf_counter() - started
    return scorer, summary


def _detect(
    frames: Sequence[StoredFrame], detector: TextDetector, summary: ScoresSummary
) -> Iterator[TextBoxes | str]:
    """One answer per frame: its boxes, or what the detector said of it alone."""
    started = time.perf_counter()
    try:
        found: Sequence[TextBoxes | str] = detector.detect(
            np.stack([frame.pixels() for frame in frames])
        )
        summary.batch_sizes[len(frames)] += 1
    except _FRAME_ERRORS as error:
        found = [f"{type(error).__name__}: {error}"] if len(frames) == 1 else []
    summary.detect_seconds += time.perf_counter() - started
    if found:
        yield from found
        return
    # Half the frames at a time: a frame that cannot be scored must not cost the others theirs.
    middle = len(frames) // 2
    yield from _detect(frames[:middle], detector, summary)
    yield from _detect(frames[middle:], detector, summary)


def _frame_row(frame: StoredFrame, found: TextBoxes | str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "frame_index": frame.frame_index,
        "pts_seconds": frame.pts_seconds,
        "width_px": frame.width_px,
        "height_px": frame.height_px,
    }
    if isinstance(found, str):
        failed = UnscoredReason.DETECTION_FAILED.value
        return row | {"boxes": [], "reason": failed, "detail": found}
    size = {"width_px": frame.width_px, "height_px": frame.height_px}
    boxes = zip(found.points.reshape(-1, 8).tolist(), found.confidence.tolist(), strict=True)
    return row | {
        "text_area_ratio": text_area_ratio(found.points, **size),
        "box_area_ratio": box_area_ratio(found.points, **size),
        "boxes": [{"points": points, "confidence": sure} for points, sure in boxes],
    }


def _count(summary: ScoresSummary, found: TextBoxes | str) -> None:
    if isinstance(found, str):
        summary.unscored_frame_count += 1
    else:
        summary.frame_count += 1
        summary.box_count += len(found)
