"""From the assembled dataset to its report, without Dagster: asks the stores, writes the page.

Belongs here: what is asked of whom. The numbers are in `curation/report.py`, pictures in
`gallery.py`, and the page in `report_page.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ocr_assets.curation.report import (
    Clip,
    ClipFrame,
    ClipGroup,
    Report,
    ScorerFacts,
    UnscoredGroup,
    UnscoredVideo,
    axis_for,
    histogram,
    kept_from,
    pick_clips,
    yield_steps,
)
from ocr_assets.curation.selection import SelectionRule
from ocr_assets.gallery import FrameKey, read_frames, thumbnail
from ocr_assets.report_page import render_page
from ocr_assets.results import NoResultsError
from resources.atomic_files import atomic_path
from resources.data_directory import DataDirectory

LISTED_UNSCORED = 100
"""Files without a score that the page lists per reason; DuckDB has them all."""


class OtherRuleError(Exception):
    """The dataset was assembled with another rule or scorer. The message says what to do."""


def write_report(data: DataDirectory, rule: SelectionRule, scorer_id: str) -> Path:
    """Writes the report of the dataset as last assembled, and gives its path.

    Args:
        data: Where the dataset lies.
        rule: The rule that it was assembled with.
        scorer_id: Whose scores counted.

    Raises:
        NoResultsError: If nothing was assembled here.
        OtherRuleError: If it was assembled with another rule or scorer.
        StoreBusyError: If DuckDB is held open by somebody.
    """
    return write_page(data, gather_report(data, rule, scorer_id))


def write_page(data: DataDirectory, report: Report) -> Path:
    """Writes `dataset/report.html`, whole or not at all."""
    path = data.dataset / "report.html"
    with atomic_path(path) as partial:
        partial.write_text(render_page(report), encoding="utf-8")
    return path


def gather_report(data: DataDirectory, rule: SelectionRule, scorer_id: str) -> Report:
    """Collects all that the report, and its pictures in the UI, show.

    Args and errors are those of `write_report`.
    """
    if not data.score_store.path.exists():
        raise NoResultsError(
            f"there are no results in {data.path}; materialize `filtered_dataset` first"
        )
    samples = _query(
        data,
        "SELECT video_paths, video_ids, metric, metric_values, is_kept, reason, unscored_reasons,"
        " scorer_id FROM dataset ORDER BY sample_index",
    )
    thresholds = [kept_from(rule, sample["metric_values"]) for sample in samples]
    _require_same_rule(samples, thresholds, rule, scorer_id)
    clips = _clips(samples, thresholds)
    values = [clip.value for clip in clips]
    axis = axis_for(values, rule)
    groups = pick_clips(clips, rule.max_ratio, scorer_id)
    frames = _frames(data, scorer_id, groups)
    return Report(
        made_at=datetime.now(UTC),
        data_path=str(data.path),
        rule=rule,
        scorer_id=scorer_id,
        scorer=_scorer(data, scorer_id),
        sample_count=len(samples),
        kept_count=sum(sample["is_kept"] for sample in samples),
        never_kept_count=thresholds.count(float("inf")),
        rejected_by_reason=Counter(sample["reason"] for sample in samples if not sample["is_kept"]),
        video_count=len(clips),
        **_frame_totals(data, scorer_id),
        unscored=_unscored(data, scorer_id, samples),
        axis=axis,
        histogram=histogram(values, axis),
        steps=yield_steps(thresholds, rule, axis),
        groups=groups,
        frames=frames,
        pictures=_pictures(data, frames),
    )


def _require_same_rule(
    samples: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float],
    rule: SelectionRule,
    scorer_id: str,
) -> None:
    """The slider tells what the rule would do, the samples what it did: these have to agree."""
    for sample, threshold in zip(samples, thresholds, strict=True):
        if (
            sample["scorer_id"] != scorer_id
            or sample["metric"] != rule.metric.value
            or sample["is_kept"] != (threshold <= rule.max_ratio)
        ):
            raise OtherRuleError(
                f"the dataset was assembled with another rule or scorer than '{rule}' and"
                f" {scorer_id}: {', '.join(sample['video_paths'])} has"
                f" {sample['metric']} = {sample['metric_values']} of scorer"
                f" {sample['scorer_id']} and is {'kept' if sample['is_kept'] else 'dropped'};"
                " materialize `filtered_dataset` first"
            )


def _clips(samples: Sequence[Mapping[str, Any]], thresholds: Sequence[float]) -> list[Clip]:
    sample_counts = Counter(video_id for sample in samples for video_id in set(sample["video_ids"]))
    clips: dict[str, Clip] = {}
    for sample, threshold in zip(samples, thresholds, strict=True):
        for path, video_id, value in zip(
            sample["video_paths"], sample["video_ids"], sample["metric_values"], strict=True
        ):
            if value is not None and video_id not in clips:
                clips[video_id] = Clip(
                    video_id=video_id,
                    path=path,
                    value=value,
                    kept_from=threshold,
                    sample_count=sample_counts[video_id],
                    companion_count=len(sample["video_paths"]) - 1,
                )
    return list(clips.values())


def _scorer(data: DataDirectory, scorer_id: str) -> ScorerFacts | None:
    rows = _query(
        data,
        "SELECT sampler, detector, weights_sha256, parameters FROM scorers WHERE scorer_id = ?",
        [scorer_id],
    )
    return ScorerFacts(**rows[0]) if rows else None


def _frame_totals(data: DataDirectory, scorer_id: str) -> dict[str, int]:
    rows = _query(
        data,
        """
        SELECT count(*) AS frame_count, coalesce(sum(box_count), 0)::BIGINT AS box_count
        FROM frame_scores
        WHERE scorer_id = ? AND reason IS NULL
            AND video_id IN (SELECT unnest(video_ids) FROM dataset)
        """,
        [scorer_id],
    )
    return rows[0]


def _unscored(
    data: DataDirectory, scorer_id: str, samples: Sequence[Mapping[str, Any]]
) -> list[UnscoredGroup]:
    found: dict[str, dict[str, str | None]] = defaultdict(dict)
    for sample in samples:
        for path, video_id, reason in zip(
            sample["video_paths"], sample["video_ids"], sample["unscored_reasons"], strict=True
        ):
            if reason is not None:
                found[reason][path] = video_id
    listed = {
        reason: dict(list(videos.items())[:LISTED_UNSCORED]) for reason, videos in found.items()
    }
    details = _details(data, scorer_id, chain(*(videos.items() for videos in listed.values())))
    return [
        UnscoredGroup(
            reason,
            len(found[reason]),
            [
                UnscoredVideo(path, details.get(path) or details.get(video_id or ""))
                for path, video_id in videos.items()
            ],
        )
        for reason, videos in sorted(listed.items(), key=lambda item: (-len(found[item[0]]), item))
    ]


def _details(
    data: DataDirectory, scorer_id: str, videos: Iterable[tuple[str, str | None]]
) -> dict[str, str]:
    """What is known of the causes, by path or by video id."""
    paths, video_ids = zip(*videos, strict=True) if (videos := list(videos)) else ((), ())
    rows = _query(
        data,
        """
        SELECT path AS name, detail FROM video_files
        WHERE detail IS NOT NULL AND path IN (SELECT unnest(?::VARCHAR[]))
        UNION ALL
        SELECT video_id, min(detail) FROM (
            SELECT video_id, scorer_id, detail FROM segment_scores UNION ALL
            SELECT video_id, scorer_id, detail FROM frame_scores
        )
        WHERE detail IS NOT NULL AND scorer_id = ? AND video_id IN (SELECT unnest(?::VARCHAR[]))
        GROUP BY video_id
        """,
        [list(paths), scorer_id, [video_id for video_id in video_ids if video_id]],
    )
    return {row["name"]: row["detail"] for row in rows}


def _frames(
    data: DataDirectory, scorer_id: str, groups: Sequence[ClipGroup]
) -> dict[str, ClipFrame]:
    """The frame of most text of each clip, by video id, with its boxes."""
    wanted = [clip.video_id for group in groups for clip in group.clips]
    frames = _query(
        data,
        """
        SELECT video_id, shard, frame_index, pts_seconds, width_px, height_px, text_area_ratio
        FROM frame_scores
        WHERE scorer_id = ? AND reason IS NULL AND video_id IN (SELECT unnest(?::VARCHAR[]))
        QUALIFY row_number() OVER (
            PARTITION BY video_id ORDER BY text_area_ratio DESC, frame_index
        ) = 1
        """,
        [scorer_id, wanted],
    )
    boxes: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    for row in _query(
        data,
        """
        SELECT video_id, frame_index, points
        FROM text_boxes
        WHERE scorer_id = ? AND video_id IN (SELECT unnest(?::VARCHAR[]))
        ORDER BY video_id, frame_index, box_index
        """,
        [scorer_id, wanted],
    ):
        boxes[row["video_id"], row["frame_index"]].append(row["points"])
    return {
        (video_id := frame.pop("video_id")): ClipFrame(
            **frame, boxes=boxes[video_id, frame["frame_index"]]
        )
        for frame in frames
    }


def _pictures(data: DataDirectory, frames: Mapping[str, ClipFrame]) -> dict[str, bytes]:
    wanted: list[FrameKey] = [
        (frame.shard, video_id, frame.frame_index) for video_id, frame in frames.items()
    ]
    return {key[1]: thumbnail(png) for key, png in read_frames(data.frames, wanted)}


def _query(
    data: DataDirectory, sql: str, parameters: list[Any] | None = None
) -> list[dict[str, Any]]:
    return data.score_store.query(sql, parameters).to_pylist()
