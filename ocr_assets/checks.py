"""Asset checks: what can be wrong with catalog, scores and dataset, and what to do about it.

Belongs here: looking, and saying in numbers what was found. Does not belong here: mending. Each
check is a plain function that gives a `Finding`; the wiring stands at the end.

Checks of the whole corpus belong to `filtered_dataset`, which is made once: on the partitioned
`ocr_scores` they would look at all videos again for every shard. What cannot be looked at has not
passed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ocr_assets.assets import filtered_dataset, videos
from ocr_assets.curation.discovery import FileState
from ocr_assets.curation.manifest import OUTPUT_COLUMNS, SAMPLE_PATHS, VIDEOS_KEY
from ocr_assets.curation.selection import Metric, SelectionRule, UnscoredSamplesError, decide
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource
from resources.score_store import StoreBusyError

CULPRIT_COUNT = 5
"""How many culprits a description names; the metadata counts all."""

STORE_WAIT_SECONDS = 10.0
"""How long a check waits for DuckDB: longer than our own transactions, shorter than patience."""

MIN_COMPARED_COUNT = 30
"""Fewer values say too little of a distribution to compare it with another."""

CHANCE_QUANTILE = 1.63
"""Two samples of n and m values of the same distribution differ by more than 1.63 √(1/n + 1/m) in
one of a hundred cases (Smirnov 1948, Table for estimating the goodness of fit)."""

DATASET_COUNT = 100
"""How many earlier datasets are looked at for one that newer scores can be compared with."""

METRIC_TOLERANCE = 1e-9
"""DuckDB adds up in parallel, so the same mean may end in other last digits."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        is_passed: Whether all is well.
        description: In numbers; where it is not, also the culprits and the fix.
        metadata: The numbers on their own.
    """

    is_passed: bool
    description: str
    metadata: Mapping[str, int | float | str] = field(default_factory=dict)


def look_at_catalog(data: DataDirectory, max_missing_share: float) -> Finding:
    """Whether the catalog holds videos and has not lost more files than may be.

    Args:
        data: Where the catalog lies; DuckDB is not needed.
        max_missing_share: Allowed share of the files that were there and are missing, in [0, 1].
    """
    if not data.catalog.has_catalog():
        return _unknown(f"there is no catalog in {data.catalog.directory}", "videos")
    files = data.catalog.files()
    count_by_state = Counter(files.column("state").to_pylist())
    metadata = {f"files_{state.value}": count_by_state[state.value] for state in FileState}
    if not count_by_state[FileState.PRESENT]:
        states = ", ".join(f"{count} {state}" for state, count in sorted(count_by_state.items()))
        return Finding(
            is_passed=False,
            description=f"none of the {files.num_rows} files in {data.catalog.files_path} is"
            f" present ({states or 'it is empty'}); mount or restore the folders of the sources,"
            " or set `source` to where the videos are, and materialize `videos`",
            metadata=metadata,
        )
    gone = _paths_gone(data, files)
    there = count_by_state[FileState.PRESENT] + count_by_state[FileState.OUTSIDE]
    known = there + len(gone)
    share = len(gone) / known
    metadata |= {"gone_files": len(gone), "gone_share": share}
    told = (
        f"{len(gone)} of {known} files that were there are missing ({share:.1%}; max_missing_share"
        f" is {max_missing_share:.1%})"
    )
    if share <= max_missing_share:
        return Finding(is_passed=True, description=told, metadata=metadata)
    return Finding(
        is_passed=False,
        description=f"{told}: {_first_few(gone)}; bring them back and materialize `videos`. If they"
        " are meant to be gone, `ocr-assets prune --stale` forgets shards of which nothing is left,"
        " and max_missing_share may be raised",
        metadata=metadata,
    )


def look_at_accounts(data: DataDirectory, scorer_id: str) -> Finding:
    """Whether every discovered video is either scored or unscored for a known reason.

    Args:
        data: Where catalog and scores lie.
        scorer_id: Whose scores count.

    Raises:
        StoreBusyError: If DuckDB is held open by somebody.
    """
    if not data.catalog.has_catalog():
        return _unknown(f"there is no catalog in {data.catalog.directory}", "videos")
    _bring_up_to_date(data)
    rows = data.score_store.query(
        """
        WITH discovered AS (
            SELECT video_id, min(path) AS path
            FROM video_files WHERE state = 'present' GROUP BY video_id
        ),
        failed AS (
            SELECT DISTINCT video_id, true AS is_failed
            FROM unscored WHERE scorer_id = $1 AND reason <> 'not_scored_yet'
        ),
        pending AS (
            SELECT DISTINCT g.video_id, true AS is_pending
            FROM segments AS g
            WHERE NOT EXISTS (
                SELECT 1 FROM segment_scores AS s
                WHERE s.scorer_id = $1 AND s.video_id = g.video_id
                    AND s.segment_index = g.segment_index
            )
        )
        SELECT d.path, v.video_id IS NOT NULL AS is_scored,
            coalesce(is_failed, false) AS is_failed, coalesce(is_pending, false) AS is_pending
        FROM discovered AS d
        LEFT JOIN video_scores AS v ON v.video_id = d.video_id AND v.scorer_id = $1
        LEFT JOIN failed AS f ON f.video_id = d.video_id
        LEFT JOIN pending AS p ON p.video_id = d.video_id
        ORDER BY d.path
        """,
        [scorer_id],
    )
    is_unscored = pc.or_(rows["is_failed"], rows["is_pending"])
    is_accounted = pc.xor(rows["is_scored"], is_unscored)
    lost = _values(rows.filter(pc.invert(is_accounted)), "path")
    scored_count, unscored_count = _true_count(rows["is_scored"]), _true_count(is_unscored)
    waiting_count = _true_count(pc.and_not(rows["is_pending"], rows["is_failed"]))
    metadata = {
        "discovered": rows.num_rows,
        "scored": scored_count,
        "unscored": unscored_count,
        "not_scored_yet": waiting_count,
        "unaccounted": len(lost),
    }
    if not lost:
        return Finding(
            is_passed=True,
            description=f"{rows.num_rows} videos discovered = {scored_count} scored +"
            f" {unscored_count} unscored (of these, {waiting_count} not yet)",
            metadata=metadata,
        )
    return Finding(
        is_passed=False,
        description=f"{len(lost)} of {rows.num_rows} discovered videos are neither scored nor"
        f" unscored, or both: {_first_few(lost)}; the files in {data.catalog.directory} and"
        f" {data.score_files.directory} contradict each other: restore both from one backup, or run"
        " into a new data directory",
        metadata=metadata,
    )


def look_at_ratios(data: DataDirectory, scorer_id: str) -> Finding:
    """Whether every score can be: text_area_ratio in [0, 1], box_area_ratio from 0 on, no NaN.

    Args:
        data: Where the scores lie.
        scorer_id: Whose scores are looked at.

    Raises:
        StoreBusyError: If DuckDB is held open by somebody.
    """
    if not data.catalog.has_catalog():
        return _unknown(f"there is no catalog in {data.catalog.directory}", "videos")
    _bring_up_to_date(data)
    [counted] = data.score_store.query(
        "SELECT count(*) AS n FROM frame_scores WHERE scorer_id = $1 AND reason IS NULL",
        [scorer_id],
    ).to_pylist()
    scored_count = counted["n"]
    rows = data.score_store.query(
        """
        SELECT shard, coalesce(path, video_id) AS path, frame_index, text_area_ratio, box_area_ratio
        FROM frame_scores
        LEFT JOIN (
            SELECT video_id, min(path) AS path FROM video_files GROUP BY video_id
        ) USING (video_id)
        WHERE scorer_id = $1 AND reason IS NULL
            -- To DuckDB, NaN is above every number.
            AND (text_area_ratio BETWEEN 0 AND 1 AND box_area_ratio >= 0
                AND isfinite(box_area_ratio)) IS NOT TRUE
        ORDER BY path, frame_index
        """,
        [scorer_id],
    ).to_pylist()
    metadata = {"frames": scored_count, "frames_out_of_bounds": len(rows)}
    if not scored_count:
        return _unknown(f"{data.path} holds no frame scored by {scorer_id}", "ocr_scores")
    if not rows:
        return Finding(
            is_passed=True,
            description=f"all {scored_count} scored frames have 0 <= text_area_ratio <= 1 and"
            " box_area_ratio >= 0",
            metadata=metadata,
        )
    culprits = [
        f"{row['path']} frame {row['frame_index']} (text_area_ratio {row['text_area_ratio']},"
        f" box_area_ratio {row['box_area_ratio']})"
        for row in rows
    ]
    shards = sorted({row["shard"] for row in rows})
    return Finding(
        is_passed=False,
        description=f"{len(rows)} of {scored_count} scored frames have a ratio that cannot be:"
        f" {_first_few(culprits)}; materialize `ocr_scores` of shard {_first_few(shards)}, and then"
        " `filtered_dataset`. Should it come back, the detector's boxes are at fault",
        metadata=metadata,
    )


def look_at_unscored(data: DataDirectory, max_unscored_share: float) -> Finding:
    """Whether enough of the dataset's videos have a score.

    Args:
        data: Where the dataset lies; DuckDB is not needed.
        max_unscored_share: Allowed share of videos without a score, in [0, 1].
    """
    rows = _dataset_rows(data)
    if rows is None:
        return _unknown(f"there is no dataset in {data.dataset}", "filtered_dataset")
    paths = pc.list_flatten(rows[VIDEOS_KEY]).to_pylist()
    reasons = pc.list_flatten(rows["unscored_reasons"]).to_pylist()
    unscored = [
        (path, reason) for path, reason in zip(paths, reasons, strict=False) if reason is not None
    ]
    by_reason = Counter(reason for _, reason in unscored).most_common()
    share = len(unscored) / max(1, len(reasons))
    metadata = {
        "videos": len(reasons),
        "unscored": len(unscored),
        "unscored_share": share,
        **{f"unscored_{reason}": count for reason, count in by_reason},
    }
    told = (
        f"{len(unscored)} of the dataset's {len(reasons)} videos have no score ({share:.1%};"
        f" max_unscored_share is {max_unscored_share:.1%})"
    )
    if share <= max_unscored_share:
        return Finding(is_passed=True, description=told, metadata=metadata)
    counts = ", ".join(f"{count} {reason}" for reason, count in by_reason)
    culprits = [f"{path} ({reason})" for path, reason in unscored]
    return Finding(
        is_passed=False,
        description=f"{told}: {counts}. The first: {_first_few(culprits)}. Mend what the reasons"
        " name (the view `unscored` has details), materialize `videos`, then `frames` and"
        " `ocr_scores` of the shards concerned, then `filtered_dataset`; or raise"
        " max_unscored_share",
        metadata=metadata,
    )


def look_at_shift(
    data: DataDirectory,
    scorer_id: str,
    metric: Metric,
    max_distribution_shift: float,
    dataset_times: Sequence[float],
) -> Finding:
    """Whether newly scored videos are distributed as the earlier ones.

    When a video was scored is told by its score file, when a dataset was made by the instance:
    both outlive restarts and are there without this check, which therefore keeps nothing and says
    the same however often it is run.

    Args:
        data: Where the scores lie.
        scorer_id: Whose scores are compared.
        metric: What is compared.
        max_distribution_shift: Allowed Kolmogorov-Smirnov distance, in [0, 1]. Between few videos
            chance alone makes a larger one, which is then what is allowed.
        dataset_times: When datasets were made, newest first, in seconds since 1970.

    Raises:
        StoreBusyError: If DuckDB is held open by somebody.
    """
    if not data.catalog.has_catalog():
        return _unknown(f"there is no catalog in {data.catalog.directory}", "videos")
    _bring_up_to_date(data)
    rows = data.score_store.query(
        # The metric is a member of a closed set and a column of the view.
        f"""
        SELECT v.{metric.value} AS value, max(m.mtime_ns) / 1e9 AS scored_at, max(s.shard) AS shard
        FROM video_scores AS v
        JOIN segment_scores AS s ON s.scorer_id = v.scorer_id AND s.video_id = v.video_id
        JOIN merged_score_files AS m ON m.shard = s.shard
        WHERE v.scorer_id = $1 AND isfinite(v.{metric.value})
        GROUP BY v.video_id, v.{metric.value}
        """,  # noqa: S608
        [scorer_id],
    )
    values, scored_at = rows["value"].to_numpy(), rows["scored_at"].to_numpy()
    made_at = _comparable_dataset(scored_at, dataset_times)
    is_new = scored_at > made_at
    before, since = values[~is_new], values[is_new]
    metadata: dict[str, int | float | str] = {
        "videos_before": len(before),
        "videos_since": len(since),
        "metric": metric.value,
    }
    when = _in_utc(made_at)
    if min(len(before), len(since)) < MIN_COMPARED_COUNT:
        return Finding(
            is_passed=True,
            description=f"nothing to compare: {len(before)} videos were scored before the dataset"
            f" {when} and {len(since)} since, at least {MIN_COMPARED_COUNT} are needed on both"
            " sides",
            metadata=metadata,
        )
    distance = distribution_distance(before, since)
    chance = CHANCE_QUANTILE * math.sqrt(1 / len(before) + 1 / len(since))
    bound = max(max_distribution_shift, chance)
    metadata |= {
        "distance": distance,
        "allowed_distance": bound,
        "mean_before": float(before.mean()),
        "mean_since": float(since.mean()),
    }
    told = (
        f"{metric.value} of {len(since)} videos scored since the dataset {when} is {distance:.3f}"
        f" away from that of the {len(before)} before (Kolmogorov-Smirnov; {bound:.3f} is allowed:"
        f" max_distribution_shift {max_distribution_shift:g}, by chance {chance:.3f}); mean"
        f" {before.mean():.4f} before, {since.mean():.4f} since"
    )
    if distance <= bound:
        return Finding(is_passed=True, description=told, metadata=metadata)
    shards = sorted(set(_values(rows.filter(pa.array(is_new)), "shard")))
    return Finding(
        is_passed=False,
        description=f"{told}. Look at videos of shard {_first_few(shards)} with their boxes: if"
        " other videos came in, look at the yield again (`ocr-assets scores`) and raise"
        " max_distribution_shift; if not, compare driver, library versions and device with those of"
        " earlier shards, and materialize `ocr_scores` of these anew",
        metadata=metadata,
    )


def distribution_distance(
    first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]
) -> float:
    """The two-sample Kolmogorov-Smirnov distance: the largest gap between cumulative shares.

    Args:
        first: float (N,), not empty, no NaN.
        second: float (M,), likewise.

    Returns:
        From 0.0, the same, to 1.0, no overlap.
    """
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(s), at, side="right") / len(s) for s in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def look_at_dataset(
    data: DataDirectory, rule: SelectionRule, scorer_id: str, *, made_by: str | None
) -> Finding:
    """Whether the dataset is what the rule gives when it is applied afresh, sample by sample.

    Args:
        data: Where catalog, scores and dataset lie.
        rule: The rule.
        scorer_id: Whose scores count.
        made_by: The rule that the dataset was made by, in words; None where nobody remembers.

    Raises:
        StoreBusyError: If DuckDB is held open by somebody.
    """
    written = _dataset_rows(data)
    if written is None:
        return _unknown(f"there is no dataset in {data.dataset}", "filtered_dataset")
    if not data.catalog.has_catalog():
        return _unknown(f"there is no catalog in {data.catalog.directory}", "videos")
    _bring_up_to_date(data)
    samples = Counter(_sample_paths(data))
    try:
        fresh = _fresh_verdicts(data, rule, scorer_id, samples)
    except UnscoredSamplesError as error:
        return Finding(
            is_passed=False,
            description=f"the rule gives no dataset any more, the one that is there is older:"
            f" {error}",
        )
    wrong = [*_wrong_samples(written, fresh, samples), *_wrong_line_counts(data)]
    metadata = {
        "samples": samples.total(),
        "samples_written": written.num_rows,
        "differences": len(wrong),
        "rule": str(rule),
    }
    if not wrong:
        return Finding(
            is_passed=True,
            description=f"all {written.num_rows} samples are where the rule puts them: {rule}",
            metadata=metadata,
        )
    cause = (
        f"it was made by the rule «{made_by}», the settings say «{rule}»"
        if made_by not in {None, str(rule)}
        else "scores or samples have changed since it was made, or it was edited"
    )
    return Finding(
        is_passed=False,
        description=f"{len(wrong)} differences between the dataset and the rule applied afresh to"
        f" {samples.total()} samples: {_first_few(wrong, '; ')}; {cause}: materialize"
        " `filtered_dataset`",
        metadata=metadata,
    )


class _Verdict(NamedTuple):
    """What the dataset says of one sample."""

    is_kept: bool
    reason: str | None
    video_ids: tuple[str | None, ...]
    metric_values: tuple[float | None, ...]


_Paths = tuple[str, ...]


def _sample_paths(data: DataDirectory) -> Iterator[_Paths]:
    for table in data.catalog.samples():
        yield from map(tuple, _values(table, SAMPLE_PATHS))


def _fresh_verdicts(
    data: DataDirectory, rule: SelectionRule, scorer_id: str, samples: Iterable[_Paths]
) -> dict[_Paths, _Verdict]:
    """What becomes of each sample; that hangs on its paths alone."""
    files = data.catalog.files()
    present = files.filter(pc.field("state") == FileState.PRESENT.value)
    id_by_path = dict(_rows(present.select(["path", "video_id"])))
    metric_by_video = dict(
        _rows(
            data.score_store.query(
                # The metric is a member of a closed set and a column of the view.
                f"SELECT video_id, {rule.metric.value}"  # noqa: S608
                " FROM video_scores WHERE scorer_id = $1",
                [scorer_id],
            )
        )
    )
    verdicts: dict[_Paths, _Verdict] = {}
    for paths in samples:
        video_ids = [id_by_path.get(path) for path in paths]
        # A path without content stands for itself: nothing has a score under its name.
        known = [video_id or path for video_id, path in zip(video_ids, paths, strict=True)]
        decision = decide(rule, known, metric_by_video)
        verdicts[paths] = _Verdict(
            is_kept=decision.is_kept,
            reason=decision.reason.value if decision.reason else None,
            video_ids=tuple(video_ids),
            metric_values=tuple(metric_by_video.get(video_id) for video_id in known),
        )
    return verdicts


def _wrong_samples(
    written: pa.Table, fresh: Mapping[_Paths, _Verdict], samples: Counter[_Paths]
) -> Iterator[str]:
    """Says of each sample what is wrong with it."""
    written_counts: Counter[_Paths] = Counter()
    columns = [VIDEOS_KEY, "is_kept", "reason", "video_ids", "metric_values"]
    for videos_of_sample, is_kept, reason, video_ids, metric_values in _rows(
        written.select(columns)
    ):
        paths = tuple(videos_of_sample or ())
        written_counts[paths] += 1
        found = _Verdict(is_kept, reason, tuple(video_ids), tuple(metric_values))
        expected = fresh.get(paths)
        if expected is None:
            yield f"{_name(paths)} is in no source"
        elif found[:3] != expected[:3] or not _are_equal(found, expected):
            yield f"{_name(paths)} is {_in_words(found)}, not {_in_words(expected)}"
    for paths, count in samples.items():
        if written_counts[paths] != count:
            yield f"{_name(paths)} is there {written_counts[paths]} times, not {count}"


def _are_equal(found: _Verdict, expected: _Verdict) -> bool:
    return len(found.metric_values) == len(expected.metric_values) and all(
        a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=METRIC_TOLERANCE))
        for a, b in zip(found.metric_values, expected.metric_values, strict=True)
    )


def _in_words(verdict: _Verdict) -> str:
    values = ", ".join("-" if value is None else f"{value:g}" for value in verdict.metric_values)
    side = "kept" if verdict.is_kept else "rejected"
    return f"{side} with {values or 'no video'}" + (
        f" ({verdict.reason})" if verdict.reason else ""
    )


def _name(paths: _Paths) -> str:
    return " + ".join(paths) or "a sample without videos"


SIDES = {"kept": True, "rejected": False}


def _dataset_rows(data: DataDirectory) -> pa.Table | None:
    """Both sides of the dataset, and on which side each row is; None where there is none."""
    paths = {side: data.dataset / f"{side}.parquet" for side in SIDES}
    if not all(path.exists() for path in paths.values()):
        return None
    tables = []
    for side, is_kept in SIDES.items():
        table = pq.read_table(paths[side], columns=[VIDEOS_KEY, *OUTPUT_COLUMNS])
        tables.append(
            table.append_column("is_kept", pa.array([is_kept] * table.num_rows, pa.bool_()))
        )
    return pa.concat_tables(tables, promote_options="permissive")


def _wrong_line_counts(data: DataDirectory) -> Iterator[str]:
    """Says which JSONL file has not as many lines as its Parquet file has rows."""
    for side in SIDES:
        row_count = pq.read_metadata(data.dataset / f"{side}.parquet").num_rows
        path = data.dataset / f"{side}.jsonl"
        line_count = 0
        if path.exists():
            with path.open("rb") as file:
                line_count = sum(1 for _ in file)
        if line_count != row_count:
            yield f"{path.name} has {line_count} lines, not {row_count}"


def _paths_gone(data: DataDirectory, files: pa.Table) -> list[str]:
    """Paths that held a video and hold nothing now."""
    is_missing = pc.field("state") == FileState.MISSING.value
    is_known = pc.field("video_id").is_valid()
    gone = _values(files.filter(is_missing & is_known & pc.field("reason").is_null()), "path")
    # A path that a manifest still names loses its content id when its file goes. So many contents
    # are at no path any more; each was at one of these, or was overwritten.
    named = _values(files.filter(is_missing & ~is_known), "path")
    contents = data.catalog.videos()
    homeless_count = contents.filter(~pc.field("video_id").isin(files["video_id"])).num_rows
    return sorted(gone) + sorted(named)[:homeless_count]


def _comparable_dataset(
    scored_at: NDArray[np.floating[Any]], dataset_times: Sequence[float]
) -> float:
    """When the newest dataset was made since which enough videos were scored, else the oldest.

    A dataset made again without new scores, with another threshold say, does not count: it would
    silence the comparison.
    """
    for made_at in dataset_times:
        if np.count_nonzero(scored_at > made_at) >= MIN_COMPARED_COUNT:
            return made_at
    return min(dataset_times, default=-math.inf)


def _in_utc(seconds: float) -> str:
    if math.isinf(seconds):
        return "that is still to be made"
    return f"of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _bring_up_to_date(data: DataDirectory) -> None:
    """Has DuckDB show what the files hold, as assembling does."""
    data.score_store.refresh_catalog(data.catalog)
    data.score_store.merge(data.score_files)


def _unknown(what_is_missing: str, asset: str) -> Finding:
    return Finding(
        is_passed=False, description=f"not checked: {what_is_missing}; materialize `{asset}` first"
    )


def _first_few(culprits: Sequence[str], separator: str = ", ") -> str:
    named = separator.join(culprits[:CULPRIT_COUNT])
    more = len(culprits) - CULPRIT_COUNT
    return f"{named} and {more} more" if more > 0 else named


def _true_count(column: Any) -> int:
    return pc.sum(column).as_py() or 0


def _values(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def _rows(table: pa.Table) -> Iterator[Any]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _result(
    data: DataDirectory,
    look: Callable[[DataDirectory], Finding],
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    quick = DataDirectory(data.path)
    quick.score_store.wait_seconds = min(STORE_WAIT_SECONDS, data.score_store.wait_seconds)
    try:
        finding = look(quick)
    except StoreBusyError as error:
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"not checked: {error}; then run this check again",
        )
    return dg.AssetCheckResult(
        passed=finding.is_passed,
        severity=severity,
        description=finding.description,
        metadata=finding.metadata,
    )


@dg.asset_check(asset=videos)
def sources_are_there(
    settings: dg.ResourceParam[Settings], data: dg.ResourceParam[DataDirectory]
) -> dg.AssetCheckResult:
    """The catalog holds videos, and not too many files have disappeared."""
    return _result(data, lambda quick: look_at_catalog(quick, settings.max_missing_share))


@dg.asset_check(asset=filtered_dataset)
def every_video_is_accounted_for(
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.AssetCheckResult:
    """Discovered videos = scored + unscored, each of these for a known reason."""
    scorer_id = Scorer(settings.sampler, gpu.spec()).scorer_id
    return _result(data, lambda quick: look_at_accounts(quick, scorer_id))


@dg.asset_check(asset=filtered_dataset)
def ratios_are_possible(
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.AssetCheckResult:
    """Every text_area_ratio is in [0, 1], every box_area_ratio is 0 or more."""
    scorer_id = Scorer(settings.sampler, gpu.spec()).scorer_id
    return _result(data, lambda quick: look_at_ratios(quick, scorer_id))


@dg.asset_check(asset=filtered_dataset)
def few_videos_are_unscored(
    settings: dg.ResourceParam[Settings], data: dg.ResourceParam[DataDirectory]
) -> dg.AssetCheckResult:
    """The share of the dataset's videos without a score is under its limit."""
    return _result(
        data,
        lambda quick: look_at_unscored(quick, settings.max_unscored_share),
        severity=dg.AssetCheckSeverity.WARN,
    )


@dg.asset_check(asset=filtered_dataset)
def scores_have_not_shifted(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.AssetCheckResult:
    """Videos scored since the previous dataset are distributed as those before."""
    made = context.instance.fetch_materializations(filtered_dataset.key, limit=DATASET_COUNT)
    return _result(
        data,
        lambda quick: look_at_shift(
            quick,
            Scorer(settings.sampler, gpu.spec()).scorer_id,
            settings.metric,
            settings.max_distribution_shift,
            [record.timestamp for record in made.records],
        ),
        severity=dg.AssetCheckSeverity.WARN,
    )


@dg.asset_check(asset=filtered_dataset)
def dataset_follows_the_rule(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    data: dg.ResourceParam[DataDirectory],
    gpu: GpuResource,
) -> dg.AssetCheckResult:
    """The dataset is what the settings' rule gives when it is applied afresh."""
    event = context.instance.get_latest_materialization_event(filtered_dataset.key)
    made = event.asset_materialization if event else None
    stated = made.metadata.get("rule") if made else None
    return _result(
        data,
        lambda quick: look_at_dataset(
            quick,
            settings.rule,
            Scorer(settings.sampler, gpu.spec()).scorer_id,
            made_by=str(stated.value) if stated else None,
        ),
    )


ALL_CHECKS = [
    sources_are_there,
    every_video_is_accounted_for,
    ratios_are_possible,
    few_videos_are_unscored,
    scores_have_not_shifted,
    dataset_follows_the_rule,
]
