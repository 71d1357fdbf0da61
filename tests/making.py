"""What tests are made of: small videos whose frames tell their number, and rows of scores.

Belongs here: factories that several test modules share. Nothing here asserts anything.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from resources.catalog_store import FILES_SCHEMA, SEGMENTS_SCHEMA, VIDEOS_SCHEMA, CatalogStore
from resources.frame_store import StoredFrame, encode_png
from resources.score_files import SCORES_SCHEMA

if TYPE_CHECKING:
    from av.video.stream import VideoStream

GREY_LEVELS_PER_FRAME = 6
"""A frame's grey level is six times its number, so a lossy codec's error of a level or two never
makes it look like its neighbour."""

MAX_FRAME_COUNT = 255 // GREY_LEVELS_PER_FRAME

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def numbered_image(index: int, size_px: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """One plain grey image (H, W, 3) that tells its number."""
    width_px, height_px = size_px
    return np.full((height_px, width_px, 3), GREY_LEVELS_PER_FRAME * index, np.uint8)


def number_of(image: NDArray[np.uint8]) -> int:
    """The number that a frame of `encode_video` tells."""
    return round(float(image.mean()) / GREY_LEVELS_PER_FRAME)


def four_colours(size_px: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """An image whose corners are, clockwise from the top left: red, green, white, blue."""
    width_px, height_px = size_px
    image = np.zeros((height_px, width_px, 3), np.uint8)
    image[: height_px // 2, : width_px // 2] = (255, 0, 0)
    image[: height_px // 2, width_px // 2 :] = (0, 255, 0)
    image[height_px // 2 :, width_px // 2 :] = 255
    image[height_px // 2 :, : width_px // 2] = (0, 0, 255)
    return image


def x264(*, keyframe_interval: int = 8, b_frame_count: int = 3) -> dict[str, str]:
    """Options for H.264 with keyframes at known places and B-frames that refer to B-frames."""
    return {
        "preset": "ultrafast",
        # x264 logs to the process's own stderr; its output must not depend on its threads.
        "x264-params": f"bframes={b_frame_count}:b-adapt=0:b-pyramid=normal:scenecut=0"
        f":keyint={keyframe_interval}:min-keyint={keyframe_interval}:threads=1:log-level=none",
    }


def x265_open_gop(*, keyframe_interval: int = 8) -> dict[str, str]:
    """Options for HEVC where frames that are shown before a keyframe follow it in the file."""
    return {
        "preset": "ultrafast",
        "x265-params": f"bframes=3:b-adapt=0:open-gop=1:scenecut=0:keyint={keyframe_interval}"
        f":min-keyint={keyframe_interval}:pools=none:frame-threads=1:log-level=none",
    }


def encode_video(
    path: Path,
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    frame_count: int = 24,
    fps: int = 10,
    size_px: tuple[int, int] = (64, 48),
    first_pts: int = 0,
    images: Iterable[NDArray[np.uint8]] | None = None,
) -> Path:
    """Encodes a video; the container follows the path's suffix.

    Args:
        path: Where to write it.
        codec: FFmpeg's name of the encoder.
        options: The encoder's; by default `x264()`.
        frame_count: At most `MAX_FRAME_COUNT`, unless `images` are given.
        fps: Frames per second.
        size_px: Width and height.
        first_pts: Time of the first frame, in frames.
        images: uint8 (H, W, 3) RGB; by default numbered ones.
    """
    images = images or (numbered_image(index, size_px) for index in range(frame_count))
    with av.open(str(path), "w") as container:
        chosen = dict(x264() if options is None else options)
        stream = cast("VideoStream", container.add_stream(codec, rate=fps, options=chosen))
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv420p"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = first_pts + index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def encode_sound(path: Path) -> Path:
    """Encodes a file that holds sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 44_100, 0
        container.mux(stream.encode(frame))  # type: ignore[attr-defined]
        container.mux(stream.encode())  # type: ignore[attr-defined]
    return path


def turn_clockwise(path: Path, degrees: int) -> Path:
    """Makes an MP4's track header ask players to turn the picture: 90, 180 or 270 degrees.

    The header's 3x3 matrix is in 16.16 fixed point, its last column in 2.30 (ISO/IEC 14496-12,
    8.3.2); it ends 8 bytes before the box does, in front of width and height.
    """
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    box_start = data.index(b"tkhd") - 4
    box_end = box_start + struct.unpack_from(">I", data, box_start)[0]
    one = 1 << 16
    matrix = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, box_end - 8 - 36, *matrix)
    path.write_bytes(data)
    return path


def wipe_coded_pictures(path: Path, *, from_share: float = 0.0) -> Path:
    """Overwrites an MP4's coded pictures with zeros, from a share of them on, and leaves its index.

    Args:
        path: An MP4 file.
        from_share: In [0, 1).
    """
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    length = struct.unpack_from(">I", data, start - 8)[0] - 8
    first = start + int(from_share * length)
    data[first : start + length] = bytes(start + length - first)
    path.write_bytes(data)
    return path


def frames_in_sequence(path: Path) -> list[NDArray[np.uint8]]:
    """Every shown frame, decoded one after the other without a seek: what a reader must give."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in frames]


def stored_frame(index: int = 0, video_id: str = "video", **changes: Any) -> StoredFrame:
    """A stored frame of 8 x 6 pixels of noise; noise does not compress away."""
    image = np.random.default_rng(index).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    fields: dict[str, Any] = {
        "png": encode_png(image),
        "video_id": video_id,
        "segment_index": 0,
        "frame_index": index,
        "pts_seconds": index / 10,
        "width_px": 8,
        "height_px": 6,
        "decoder": "decord 0.6.0",
    }
    return StoredFrame(**{**fields, **changes})


def frame_row(
    index: int = 0,
    text_area_ratio: float | None = 0.1,
    *,
    box_count: int = 1,
    reason: str | None = None,
) -> dict[str, Any]:
    """One frame as a score row nests it; with a reason it has no score."""
    is_scored = reason is None
    points = [1.0, 1.0, 5.0, 1.0, 5.0, 3.0, 1.0, 3.0]
    return {
        "frame_index": index,
        "pts_seconds": index / 10,
        "width_px": 64,
        "height_px": 48,
        "text_area_ratio": text_area_ratio if is_scored else None,
        "box_area_ratio": text_area_ratio if is_scored else None,
        "boxes": [{"points": points, "confidence": 0.5}] * (box_count if is_scored else 0),
        "reason": reason,
        "detail": None if is_scored else "in words",
    }


def segment_row(
    video_id: str = "video",
    segment_index: int = 0,
    *,
    frames: Sequence[Mapping[str, Any]] | None = None,
    shard: str = "s000001",
    scorer_id: str = "scorer",
    reason: str | None = None,
) -> dict[str, Any]:
    """One score row; by default of one scored frame."""
    given = [frame_row()] if frames is None else frames
    return {
        "scorer_id": scorer_id,
        "sampler": "uniform(3)",
        "detector": "craft",
        "weights_sha256": "0" * 64,
        "parameters": "{}",
        "shard": shard,
        "video_id": video_id,
        "segment_index": segment_index,
        "frames": list(given) if reason is None else [],
        "reason": reason,
        "detail": None if reason is None else "in words",
    }


def score_rows(*rows: Mapping[str, Any]) -> pa.Table:
    """Score rows as a table."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCORES_SCHEMA)


def write_catalog(
    catalog: CatalogStore,
    segment_counts: Mapping[str, int],
    *,
    file_rows: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes a catalog of present videos, each with so many segments, all in one shard.

    Args:
        catalog: Where to.
        segment_counts: By video id.
        file_rows: Further rows of the table of files.
    """
    present = [
        _file_row(path=f"/videos/{video_id}.mp4", video_id=video_id) for video_id in segment_counts
    ]
    catalog.write(
        files=pa.Table.from_pylist([*present, *map(dict, file_rows)], schema=FILES_SCHEMA),
        videos=pa.Table.from_pylist(
            [_video_row(video_id, count) for video_id, count in segment_counts.items()],
            schema=VIDEOS_SCHEMA,
        ),
        segments=pa.Table.from_pylist(list(_segments(segment_counts)), schema=SEGMENTS_SCHEMA),
        samples=[],
    )


def missing_file_row(path: str) -> dict[str, Any]:
    """The catalog's row of a file that is not there."""
    return _file_row(
        path=path, video_id=None, state="missing", reason="file_missing", detail="no such file"
    )


def _file_row(**changes: Any) -> dict[str, Any]:
    return {
        "path": "/videos/clip.mp4",
        "size_bytes": 1,
        "mtime_ns": 1,
        "video_id": "video",
        "state": "present",
        "reason": None,
        "detail": None,
        "checked_at": NOW,
        **changes,
    }


def _video_row(video_id: str, segment_count: int) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "size_bytes": 1,
        "duration_seconds": 4.0,
        "fps": 10.0,
        "frame_count": 40,
        "width_px": 64,
        "height_px": 48,
        "codec": "h264",
        "segment_count": segment_count,
        "first_seen_at": NOW,
    }


def _segments(segment_counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for video_id, count in segment_counts.items():
        for index in range(count):
            yield {
                "shard": "s000001",
                "video_id": video_id,
                "segment_index": index,
                "start_seconds": float(index),
                "end_seconds": float(index + 1),
                "cost_megapixels": 1.0,
            }
