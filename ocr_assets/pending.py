"""What is still to be done: shards without scores of a scorer, or frames of its sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ocr_assets.decoding import has_current_frames
from ocr_assets.scoring import Scorer
from resources.data_directory import DataDirectory


@dataclass(frozen=True)
class Shard:
    """A partition with what it costs.

    Attributes:
        key: Partition key.
        segment_count: Video segments in it.
        cost_megapixels: Sampled frames times their size.
    """

    key: str
    segment_count: int
    cost_megapixels: float


@dataclass(frozen=True)
class PendingWork:
    """Shards that lack something, costliest first: the slowest must not be begun last.

    Attributes:
        shards: Every shard of the catalog, by key.
        to_score: Without scores.
        to_decode: Of these, without frames.
    """

    shards: Mapping[str, Shard]
    to_score: Sequence[str]
    to_decode: Sequence[str]


def pending_work(data: DataDirectory, scorer: Scorer) -> PendingWork:
    """Compares catalog, frames and scores."""
    shards = _shards_by_cost(data)
    to_score = [key for key in shards if not data.score_files.has_scores(key, scorer.scorer_id)]
    to_decode = [key for key in to_score if not has_current_frames(data, key, scorer.sampler)]
    return PendingWork(shards, to_score, to_decode)


def _shards_by_cost(data: DataDirectory) -> dict[str, Shard]:
    totals = (
        pa.TableGroupBy(data.catalog.segments(), "shard")
        .aggregate([("cost_megapixels", "sum"), ("video_id", "count")])
        .sort_by([("cost_megapixels_sum", "descending"), ("shard", "ascending")])
    )
    return {
        row["shard"]: Shard(row["shard"], row["video_id_count"], row["cost_megapixels_sum"])
        for row in totals.to_pylist()
    }
