"""From sources to catalog: one discovery, start to end, without Dagster."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ocr_assets.curation.discovery import FileRecord, FileState, Inspection, VideoRecord, discover
from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.sampling import parse_sampler
from ocr_assets.curation.sharding import Segment, cut_into_segments, deal_into_shards
from ocr_assets.curation.sources import list_sources, video_paths
from ocr_assets.inspection import inspect_files
from ocr_assets.settings import Settings
from resources.catalog_store import FILES_SCHEMA, SEGMENTS_SCHEMA, VIDEOS_SCHEMA
from resources.data_directory import DataDirectory
from resources.worker_pool import worker_pool

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True)
class DiscoverySummary:
    """What a discovery found, in numbers.

    Attributes:
        sample_count: Samples that the sources name.
        file_count: Distinct paths that the samples name.
        count_by_state: Known paths by state.
        video_count: Distinct contents ever seen.
        new_video_count: Of these, seen for the first time.
        inspected_count: Files that had to be opened.
        new_shards: Partition keys that were made.
        shards: All partition keys.
    """

    sample_count: int
    file_count: int
    count_by_state: Mapping[str, int]
    video_count: int
    new_video_count: int
    inspected_count: int
    new_shards: Sequence[str]
    shards: Sequence[str]


def run_discovery(
    settings: Settings,
    data: DataDirectory,
    *,
    sources: Sequence[str],
    min_shard_count: int,
    process_count: int,
    on_progress: Progress,
) -> DiscoverySummary:
    """Looks at the sources and brings the catalog up to date.

    Args:
        settings: Sampler, segment and shard sizes, deadline.
        data: Where the catalog lies.
        sources: What to look at.
        min_shard_count: Spread new segments over at least so many shards.
        process_count: Worker processes that open files.
        on_progress: Told after each opened file.

    Raises:
        SourceError: If a source is not there or names no video.
        ManifestError: If a manifest cannot be read.
    """
    samples = list_sources(sources)
    paths = video_paths(samples)
    known_videos = data.catalog.videos()
    known_segments = data.catalog.segments()
    found = discover(
        paths,
        known_files=_file_records(data.catalog.files()),
        known_video_ids=frozenset(_strings(known_videos, "video_id")),
        inspect=_inspector(process_count, settings.decode_timeout_seconds, on_progress),
    )
    cut = {video.video_id: _cut(video, settings) for video in found.new_videos}
    videos = [replace(v, segment_count=len(cut[v.video_id])) for v in found.new_videos]
    dealt = deal_into_shards(
        [segment for segments in cut.values() for segment in segments],
        first_number=_last_number(known_segments) + 1,
        target_megapixels=settings.shard_target_megapixels,
        min_shard_count=min_shard_count,
    )
    all_videos = pa.concat_tables([known_videos, _to_table(videos, VIDEOS_SCHEMA)])
    all_segments = pa.concat_tables([known_segments, _to_table(dealt, SEGMENTS_SCHEMA)])
    data.catalog.write(
        files=_to_table(found.files, FILES_SCHEMA),
        videos=all_videos,
        segments=all_segments,
        samples=samples,
    )
    return DiscoverySummary(
        sample_count=sum(table.num_rows for table in samples),
        file_count=len(paths),
        count_by_state={
            state.value: sum(file.state is state for file in found.files) for state in FileState
        },
        video_count=all_videos.num_rows,
        new_video_count=len(videos),
        inspected_count=found.inspected_count,
        new_shards=sorted({segment.shard for segment in dealt}),
        shards=sorted(set(_strings(all_segments, "shard"))),
    )


def _inspector(
    process_count: int, timeout_seconds: float, on_progress: Progress
) -> Callable[[Sequence[str]], Iterable[Inspection]]:
    def inspect(paths: Sequence[str]) -> Iterator[Inspection]:
        if not paths:
            return
        with worker_pool(min(process_count, len(paths))) as pool:
            for done, inspection in enumerate(inspect_files(pool, paths, timeout_seconds), 1):
                on_progress(done, len(paths))
                yield inspection

    return inspect


def _cut(video: VideoRecord, settings: Settings) -> list[Segment]:
    return cut_into_segments(
        video.video_id,
        duration_seconds=video.duration_seconds if math.isfinite(video.duration_seconds) else 0.0,
        frame_count=video.frame_count,
        frame_megapixels=video.width_px * video.height_px / 1e6,
        segment_seconds=settings.segment_seconds,
        sampler=parse_sampler(settings.sampler),
    )


def _strings(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def _last_number(segments: pa.Table) -> int:
    last = pc.max(segments.column("shard")).as_py()
    return int(last[1:]) if last else 0


def _file_records(table: pa.Table) -> dict[str, FileRecord]:
    return {row["path"]: _file_record(row) for row in table.to_pylist()}


def _file_record(row: dict[str, Any]) -> FileRecord:
    reason = row["reason"]
    return FileRecord(
        **{
            **row,
            "state": FileState(row["state"]),
            "reason": UnscoredReason(reason) if reason else None,
        }
    )


def _to_table(records: Sequence[Any], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([vars(record) for record in records], schema=schema)
