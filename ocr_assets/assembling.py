"""From scores to the filtered dataset, without Dagster: decides, and writes both sides."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ocr_assets.curation.discovery import FileState
from ocr_assets.curation.manifest import SAMPLE_JSON, SAMPLE_PATHS
from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.selection import Decision, SelectionRule, decide
from resources.atomic_files import atomic_path, write_table
from resources.data_directory import DataDirectory

DATA_JUICER_STATS = "__dj__stats__"
"""Data-Juicer's key for a sample's statistics (`Fields.stats` in data_juicer/utils/constant.py)."""

DATA_JUICER_RATIO = "video_ocr_area_ratio"
"""Its statistic: one mean `box_area_ratio` per video (`StatsKeys.video_ocr_area_ratio`)."""


class CatalogMissingError(Exception):
    """No discovery has finished in this data directory. The message says what to do."""


@dataclass(frozen=True)
class VideoScore:
    """What the rule and the export need of one scored video.

    Attributes:
        metric: The rule's metric.
        box_area_ratio_mean: Data-Juicer's statistic.
    """

    metric: float
    box_area_ratio_mean: float


@dataclass(frozen=True)
class SampleVerdict:
    """One sample with all that is known of its videos, and what became of it.

    Attributes:
        video_ids: Content id per video; None where its bytes could not be read.
        scores: Per video; None where it is unscored.
        unscored_reasons: Per video; None where it has a score.
        decision: The rule's.
    """

    video_ids: Sequence[str | None]
    scores: Sequence[VideoScore | None]
    unscored_reasons: Sequence[str | None]
    decision: Decision


@dataclass(frozen=True)
class DatasetSummary:
    """What an assembly came to.

    Attributes:
        sample_count: Samples judged.
        kept_count: Of these, kept.
        rejected_by_reason: The others, by reason.
        unscored_by_reason: Videos of samples without a score, by reason.
        paths: The files written.
    """

    sample_count: int
    kept_count: int
    rejected_by_reason: Mapping[str, int]
    unscored_by_reason: Mapping[str, int]
    paths: Sequence[Path]


def assemble_dataset(data: DataDirectory, rule: SelectionRule, scorer_id: str) -> DatasetSummary:
    """Applies the rule to every sample of the last discovery and writes what is kept and what not.

    Args:
        data: Where catalog, scores and dataset lie.
        rule: The rule.
        scorer_id: Whose scores count; scores of different scorers never mix.

    Raises:
        CatalogMissingError: If no discovery has finished here.
        StoreBusyError: If DuckDB is held open by somebody.
        UnscoredSamplesError: If the rule says `unscored: fail` and one cannot be judged.
    """
    if not data.catalog.has_catalog():
        raise CatalogMissingError(
            f"there is no catalog in {data.catalog.directory}; materialize `videos` first"
        )
    data.score_store.refresh_catalog(data.catalog)
    data.score_store.merge(data.score_files, data.usage_files, data.memory_records.table())
    tables = list(data.catalog.samples())
    judge = _Judge(data, rule, scorer_id)
    verdicts = [[judge(paths) for paths in _values(table, SAMPLE_PATHS)] for table in tables]
    written = [
        path
        for is_kept, name in ((True, "kept"), (False, "rejected"))
        for path in _write_side(data.dataset / name, tables, verdicts, is_kept=is_kept)
    ]
    data.score_store.replace_dataset(_dataset_rows(tables, verdicts, rule, scorer_id))
    flat = [verdict for of_table in verdicts for verdict in of_table]
    return DatasetSummary(
        sample_count=len(flat),
        kept_count=sum(verdict.decision.is_kept for verdict in flat),
        rejected_by_reason=Counter(str(v.decision.reason) for v in flat if not v.decision.is_kept),
        unscored_by_reason=Counter(
            reason for v in flat for reason in v.unscored_reasons if reason is not None
        ),
        paths=written,
    )


class _Judge:
    """Looks up what is known of a sample's videos, and decides."""

    def __init__(self, data: DataDirectory, rule: SelectionRule, scorer_id: str) -> None:
        self._rule = rule
        self._files: dict[str, tuple[str | None, str, str | None]] = {
            path: (video_id, state, reason)
            for path, video_id, state, reason in _rows(
                data.catalog.files().select(["path", "video_id", "state", "reason"])
            )
        }
        self._scores = {
            video_id: VideoScore(metric, box_area_ratio_mean)
            for video_id, metric, box_area_ratio_mean in _rows(
                data.score_store.query(
                    # The metric is a member of a closed set and a column of the view.
                    f"SELECT video_id, {rule.metric.value}, box_area_ratio_mean"  # noqa: S608
                    " FROM video_scores WHERE scorer_id = ?",
                    [scorer_id],
                )
            )
        }
        self._metric_by_video = {key: score.metric for key, score in self._scores.items()}
        self._reasons: dict[str, str] = dict(
            _rows(
                data.score_store.query(
                    "SELECT video_id, min(reason) FROM ("
                    " SELECT video_id, reason, scorer_id FROM segment_scores UNION ALL"
                    " SELECT video_id, reason, scorer_id FROM frame_scores)"
                    " WHERE scorer_id = ? AND reason IS NOT NULL GROUP BY video_id",
                    [scorer_id],
                )
            )
        )

    def __call__(self, paths: Sequence[str]) -> SampleVerdict:
        known = [self._files[path] for path in paths]
        video_ids = [
            video_id if state == FileState.PRESENT else None for video_id, state, _ in known
        ]
        scores = [self._scores.get(video_id) if video_id else None for video_id in video_ids]
        return SampleVerdict(
            video_ids=video_ids,
            scores=scores,
            unscored_reasons=[
                None if score else self._reason(video_id, state, reason)
                for score, (video_id, state, reason) in zip(scores, known, strict=True)
            ],
            decision=decide(
                self._rule,
                # A path without content stands for itself: nothing has a score under its name.
                [video_id or path for video_id, path in zip(video_ids, paths, strict=True)],
                self._metric_by_video,
            ),
        )

    def _reason(self, video_id: str | None, state: str, reason: str | None) -> str:
        if state == FileState.MISSING:
            return UnscoredReason.FILE_MISSING.value
        if reason:
            return reason
        return self._reasons.get(video_id or "", UnscoredReason.NOT_SCORED_YET.value)


def _write_side(
    stem: Path,
    tables: Sequence[pa.Table],
    verdicts: Sequence[Sequence[SampleVerdict]],
    *,
    is_kept: bool,
) -> Iterator[Path]:
    parquet, jsonl = stem.with_suffix(".parquet"), stem.with_suffix(".jsonl")
    sides = [
        _side(table, of_table, is_kept=is_kept)
        for table, of_table in zip(tables, verdicts, strict=True)
    ]
    columns = pa.concat_tables(
        [table.drop_columns([SAMPLE_PATHS, SAMPLE_JSON]) for table, _ in sides],
        promote_options="permissive",
    )
    write_table(parquet, columns)
    yield parquet
    with atomic_path(jsonl) as partial, partial.open("w", encoding="utf-8") as file:
        for table, of_side in sides:
            for text, verdict in zip(_values(table, SAMPLE_JSON), of_side, strict=True):
                file.write(_json_line(json.loads(text), verdict) + "\n")
    yield jsonl


def _side(
    table: pa.Table, verdicts: Sequence[SampleVerdict], *, is_kept: bool
) -> tuple[pa.Table, list[SampleVerdict]]:
    chosen = [i for i, verdict in enumerate(verdicts) if verdict.decision.is_kept is is_kept]
    side = [verdicts[i] for i in chosen]
    table = table.take(pa.array(chosen, pa.int64()))
    return _with_columns(table, side), side


def _with_columns(table: pa.Table, side: Iterable[SampleVerdict]) -> pa.Table:
    side = list(side)
    added = {
        "video_ids": pa.array([v.video_ids for v in side], pa.list_(pa.string())),
        "metric_values": pa.array([_metrics(v) for v in side], pa.list_(pa.float64())),
        "reason": pa.array([v.decision.reason for v in side], pa.string()),
        "unscored_reasons": pa.array([v.unscored_reasons for v in side], pa.list_(pa.string())),
    }
    for name, array in added.items():
        table = table.append_column(name, array)
    return table


def _metrics(verdict: SampleVerdict) -> list[float | None]:
    return [score.metric if score else None for score in verdict.scores]


def _json_line(sample: dict[str, Any], verdict: SampleVerdict) -> str:
    stats = dict(sample.get(DATA_JUICER_STATS) or {})
    stats[DATA_JUICER_RATIO] = [s.box_area_ratio_mean if s else None for s in verdict.scores]
    sample[DATA_JUICER_STATS] = stats
    if verdict.decision.reason is not None:
        sample["reason"] = verdict.decision.reason.value
        sample["unscored_reasons"] = verdict.unscored_reasons
    return json.dumps(sample, ensure_ascii=False)


def _dataset_rows(
    tables: Sequence[pa.Table],
    verdicts: Sequence[Sequence[SampleVerdict]],
    rule: SelectionRule,
    scorer_id: str,
) -> pa.Table:
    flat = [verdict for of_table in verdicts for verdict in of_table]
    paths = [paths for table in tables for paths in _values(table, SAMPLE_PATHS)]
    return _with_columns(
        pa.table(
            {
                "sample_index": pa.array(range(len(flat)), pa.int64()),
                "video_paths": pa.array(paths, pa.list_(pa.string())),
                "metric": pa.array([rule.metric.value] * len(flat), pa.string()),
                "is_kept": pa.array([v.decision.is_kept for v in flat], pa.bool_()),
                "scorer_id": pa.array([scorer_id] * len(flat), pa.string()),
            }
        ),
        flat,
    )


def _values(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def _rows(table: pa.Table) -> Iterator[Any]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)
