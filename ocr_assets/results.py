"""Results for people: the questions that the command line asks of DuckDB, as plain rows."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from resources.data_directory import DataDirectory


class NoResultsError(Exception):
    """There is nothing to show yet. The message says what to run."""


@dataclass(frozen=True)
class SampleRow:
    """One sample of the assembled dataset.

    Attributes:
        video_paths: Its videos.
        metric_values: The rule's metric per video; None where unscored.
        is_kept: Whether it passed.
        reason: Why not, with the reason of an unscored video where that is it.
    """

    video_paths: list[str]
    metric_values: list[float | None]
    is_kept: bool
    reason: str | None


def sample_rows(data: DataDirectory) -> list[SampleRow]:
    """Every sample of the last assembly, in the order of the sources."""
    rows = _query(
        data,
        "SELECT video_paths, metric_values, is_kept, reason, unscored_reasons FROM dataset"
        " ORDER BY sample_index",
    )
    return [
        SampleRow(
            video_paths=row["video_paths"],
            metric_values=row["metric_values"],
            is_kept=row["is_kept"],
            reason=_reason(row["reason"], row["unscored_reasons"]),
        )
        for row in rows
    ]


def top_videos(data: DataDirectory, scorer_id: str, limit: int) -> list[dict[str, Any]]:
    """The videos with most text, one row per content with one of its paths."""
    return _query(
        data,
        """
        SELECT min(f.path) AS path, s.text_area_ratio_mean, s.text_area_ratio_max,
            s.text_frame_ratio, s.box_area_ratio_mean, any_value(s.frame_count) AS frame_count
        FROM video_scores AS s
        JOIN video_files AS f USING (video_id)
        WHERE s.scorer_id = ? AND f.state = 'present'
        GROUP BY ALL
        ORDER BY s.text_area_ratio_mean DESC, path
        LIMIT ?
        """,
        [scorer_id, limit],
    )


HISTOGRAM_EDGES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Denser where thresholds lie: public pipelines state 0.02 to 0.07."""


def histogram(data: DataDirectory, scorer_id: str) -> list[tuple[str, int]]:
    """How many videos have a mean text-area ratio in each interval; exact zeros on their own."""
    values = _values(data, scorer_id)
    counts = [("0", sum(value == 0 for value in values))]
    for low, high in pairwise(HISTOGRAM_EDGES):
        counts.append((f"({low:g}, {high:g}]", sum(low < value <= high for value in values)))
    return counts


def yield_curve(data: DataDirectory, scorer_id: str) -> list[tuple[float, int, float]]:
    """For each possible `max_ratio`: videos kept, and their share of the scored ones."""
    values = _values(data, scorer_id)
    return [
        (edge, kept, kept / len(values))
        for edge in HISTOGRAM_EDGES
        for kept in [sum(value <= edge for value in values)]
    ]


def _values(data: DataDirectory, scorer_id: str) -> list[float]:
    rows = _query(
        data,
        "SELECT text_area_ratio_mean AS value FROM video_scores WHERE scorer_id = ?",
        [scorer_id],
    )
    if not rows:
        raise NoResultsError(
            f"{data.score_store.path} holds no scores of the current settings' detector and"
            " sampler; run `ocr-assets run` first"
        )
    return [row["value"] for row in rows]


def _query(
    data: DataDirectory, sql: str, parameters: list[Any] | None = None
) -> list[dict[str, Any]]:
    if not data.score_store.path.exists():
        raise NoResultsError(
            f"there are no results in {data.path}; run `ocr-assets run SOURCE` first, or name"
            " another data directory with --out"
        )
    return data.score_store.query(sql, parameters).to_pylist()


def _reason(reason: str | None, unscored_reasons: list[str | None]) -> str | None:
    why = sorted({item for item in unscored_reasons if item is not None})
    return f"{reason}: {', '.join(why)}" if reason == "unscored" else reason
