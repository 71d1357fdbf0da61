"""Sharding: cutting videos into segments, and dealing segments into shards of equal cost."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ocr_assets.curation.sampling import Sampler


@dataclass(frozen=True)
class Segment:
    """A stretch of one video that is decoded and scored on its own.

    Attributes:
        video_id: The video's content id.
        segment_index: From 0 in time order.
        start_seconds: Included.
        end_seconds: Not included; inf for the last segment of a video.
        cost_megapixels: Estimated cost: sampled frames x pixels / 10^6.
        shard: The partition key it was dealt to; empty until it was.
    """

    video_id: str
    segment_index: int
    start_seconds: float
    end_seconds: float
    cost_megapixels: float
    shard: str = ""


FRAME_OVERHEAD_MEGAPIXELS = 0.02
"""What a frame costs beside its pixels (seek, encode, rows), so that many tiny videos do not count
as nothing: about a tenth of a 640x360 frame."""


def cut_into_segments(
    video_id: str,
    *,
    duration_seconds: float,
    frame_count: int,
    frame_megapixels: float,
    segment_seconds: float,
    sampler: Sampler,
) -> list[Segment]:
    """Cuts a video into segments of `segment_seconds`; the last takes what remains.

    Args:
        video_id: The video's content id.
        duration_seconds: >= 0. A video without a stated duration is one segment.
        frame_count: Frames in the whole video.
        frame_megapixels: Width x height / 10^6.
        segment_seconds: > 0.
        sampler: Tells how many frames to expect.

    Returns:
        At least one segment; together they cover [0, inf).
    """
    # A container may state any duration; more segments than frames there cannot be.
    count = math.ceil(min(duration_seconds / segment_seconds, max(1, frame_count)))
    count = max(1, count)
    frames = max(1.0, sampler.expected_count(duration_seconds, frame_count)) / count
    cost = frames * (frame_megapixels + FRAME_OVERHEAD_MEGAPIXELS)
    return [
        Segment(
            video_id=video_id,
            segment_index=index,
            start_seconds=index * segment_seconds,
            end_seconds=math.inf if index == count - 1 else (index + 1) * segment_seconds,
            cost_megapixels=cost,
        )
        for index in range(count)
    ]


def shard_key(number: int) -> str:
    """The partition key of the n-th shard: `s000001` for 1."""
    return f"s{number:06d}"


def deal_into_shards(
    segments: Sequence[Segment],
    *,
    first_number: int,
    target_megapixels: float,
    min_shard_count: int,
) -> list[Segment]:
    """Deals segments into shards of about equal cost.

    The costliest segment goes first, each to the cheapest shard so far (longest processing time
    first, Graham 1969: within 4/3 of the best possible balance). The deal is deterministic.

    Args:
        segments: Undealt segments.
        first_number: The number of the first new shard, so that no old key is used again.
        target_megapixels: What a shard should cost, > 0. A segment dearer than that gets a shard
            to itself.
        min_shard_count: At least so many shards while there are segments for them, so that every
            slot has work.

    Returns:
        The segments with their `shard` set, ordered by shard, then video, then segment.
    """
    if not segments:
        return []
    total = sum(segment.cost_megapixels for segment in segments)
    count = max(math.ceil(total / target_megapixels), min_shard_count, 1)
    count = min(count, len(segments))
    loads = [(0.0, number) for number in range(first_number, first_number + count)]
    heapq.heapify(loads)
    dealt: list[Segment] = []
    order = sorted(segments, key=lambda s: (-s.cost_megapixels, s.video_id, s.segment_index))
    for segment in order:
        load, number = heapq.heappop(loads)
        dealt.append(replace(segment, shard=shard_key(number)))
        heapq.heappush(loads, (load + segment.cost_megapixels, number))
    return sorted(dealt, key=lambda s: (s.shard, s.video_id, s.segment_index))
