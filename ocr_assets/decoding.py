"""From one shard's segments to its frames file, without Dagster."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ocr_assets.curation.sampling import SegmentSelector
from ocr_assets.inspection import (
    FILE_ERRORS,
    ChunkRequest,
    chunk_timeout_seconds,
    decode_chunk,
    reason_of,
)
from ocr_assets.settings import Settings
from resources.data_directory import DataDirectory
from resources.frame_store import FramesProvenance, FramesWriter, StoredFrame
from resources.video_reader import FrameChunk
from resources.worker_pool import Outcome, WorkerPool

Progress = Callable[[int, int], None]


class UnknownShardError(Exception):
    """A partition key that no discovery made. The message names it."""


@dataclass(frozen=True)
class FramesSummary:
    """What became of a shard's segments.

    Attributes:
        segment_count: Segments in the shard.
        frame_count: Frames written.
        unreadable_count: Segments without frames, each with its reason in the file.
        png_bytes: Size of the images.
    """

    segment_count: int
    frame_count: int
    unreadable_count: int
    png_bytes: int


def has_current_frames(data: DataDirectory, shard: str, sampler: str) -> bool:
    """Whether a shard's frames were made, by this sampler."""
    provenance = data.frames.provenance(shard)
    return provenance is not None and provenance.sampler == sampler


def decode_shard(
    shard: str,
    settings: Settings,
    data: DataDirectory,
    *,
    pool: WorkerPool,
    on_progress: Progress,
) -> FramesSummary:
    """Decodes a shard's sampled frames into its file, which appears whole or not at all.

    Args:
        shard: Partition key.
        settings: Sampler and deadline.
        data: Where the catalog and the frames lie.
        pool: Where videos are decoded.
        on_progress: Told after each segment.

    Raises:
        UnknownShardError: If no discovery made the shard.
    """
    requests = _requests(shard, settings, data)
    told: list[dict[str, Any]] = []
    png_bytes = 0

    def limit(request: ChunkRequest) -> float:
        return chunk_timeout_seconds(request, settings.decode_timeout_seconds)

    with data.frames.writing(shard) as writer:
        for outcome in pool.map(decode_chunk, requests, limit):
            request = outcome.item
            entry: dict[str, Any] = {
                "video_id": request.video_id,
                "segment_index": request.segment_index,
                "frame_count": 0,
                "reason": None,
                "detail": None,
            }
            try:
                for chunk in _chunks(outcome, pool, limit):
                    png_bytes += _add(writer, request, chunk)
                    entry["frame_count"] += len(chunk.frames)
            except FILE_ERRORS as error:
                entry |= {"reason": reason_of(error).value, "detail": str(error)}
            told.append(entry)
            on_progress(len(told), len(requests))
        writer.finish(FramesProvenance(settings.sampler, told))
    return FramesSummary(
        segment_count=len(told),
        frame_count=sum(entry["frame_count"] for entry in told),
        unreadable_count=sum(entry["reason"] is not None for entry in told),
        png_bytes=png_bytes,
    )


def _requests(shard: str, settings: Settings, data: DataDirectory) -> list[ChunkRequest]:
    segments = data.catalog.segments(shard).to_pylist()
    if not segments:
        raise UnknownShardError(
            f"shard {shard} is not in {data.catalog.segments_path}; materialize `videos` first"
        )
    ids = pa.array(sorted({segment["video_id"] for segment in segments}))
    durations = _columns_of(data.catalog.videos(), ids, "video_id", "duration_seconds")
    duration_by_id = dict(durations)
    copies: defaultdict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for video_id, *copy in _columns_of(
        data.catalog.files(), ids, "video_id", "path", "size_bytes", "mtime_ns"
    ):
        copies[video_id].append((copy[0], copy[1], copy[2]))
    return [
        ChunkRequest(
            video_id=segment["video_id"],
            segment_index=segment["segment_index"],
            copies=tuple(copies[segment["video_id"]]),
            selector=SegmentSelector(
                settings.sampler,
                duration_by_id[segment["video_id"]],
                segment["start_seconds"],
                segment["end_seconds"],
            ),
        )
        for segment in segments
    ]


def _columns_of(table: pa.Table, ids: pa.Array, *names: str) -> Iterator[tuple[Any, ...]]:
    rows = table.filter(pc.field("video_id").isin(ids)).select(names)
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _chunks(
    first: Outcome[ChunkRequest, FrameChunk],
    pool: WorkerPool,
    limit: Callable[[ChunkRequest], float],
) -> Iterator[FrameChunk]:
    """The first chunk, which is under way, and those after it, one at a time."""
    chunk, done = first.result(), 0
    while True:
        yield chunk
        done += len(chunk.frames)
        if done >= chunk.total_count:
            return
        request = replace(first.item, first=done)
        chunk = next(pool.map(decode_chunk, [request], limit)).result()


def _add(writer: FramesWriter, request: ChunkRequest, chunk: FrameChunk) -> int:
    for frame in chunk.frames:
        writer.add(
            StoredFrame(
                **vars(frame),
                video_id=request.video_id,
                segment_index=request.segment_index,
                decoder=chunk.decoder,
            )
        )
    return sum(len(frame.png) for frame in chunk.frames)
