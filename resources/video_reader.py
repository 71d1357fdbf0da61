"""Reading videos: probing them, and decoding the frames that a selector picks.

decord first, PyAV behind it for what decord cannot open or would get wrong. Everything here may
hang or crash on a hostile file, so it is called in worker processes (`worker_pool`). Which frames
are wanted is the caller's business: a selector gets timestamps and answers with indices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from resources.frame_store import encode_png

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

FrameSelector = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.int64]]
"""From the frames' timestamps in seconds (ascending) and keyframe flags to the wanted indices."""

CHUNK_PX = 32_000_000
"""Pixels decoded before frames are handed on: about 100 MB of RGB, whatever the frames' size."""


class ReadFailure(StrEnum):
    """Why a video cannot be read."""

    NOT_A_VIDEO = "not_a_video"
    NO_FRAMES = "no_frames"
    DECODE_FAILED = "decode_failed"


class VideoReadError(Exception):
    """A video that cannot be read.

    Attributes:
        failure: Which kind.
        detail: What the decoders said, on one line.
    """

    def __init__(self, failure: ReadFailure, detail: str) -> None:
        super().__init__(failure, detail)
        self.failure = failure
        self.detail = " ".join(detail.split())

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class VideoProbe:
    """What a container says of its first video stream, checked by decoding one frame.

    Attributes:
        duration_seconds: Of the stream, or of the container where the stream states none.
        fps: Average frame rate; 0.0 where unknown.
        frame_count: Stated by the container, or counted.
        width_px: As shown: rotation applied.
        height_px: As shown.
        codec: FFmpeg's name, e.g. `h264`.
    """

    duration_seconds: float
    fps: float
    frame_count: int
    width_px: int
    height_px: int
    codec: str


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One frame, encoded losslessly so that it is cheap to hand between processes.

    Attributes:
        png: The image as shown.
        frame_index: From 0 in presentation order.
        pts_seconds: When it is shown.
        width_px: Width as shown.
        height_px: Height as shown.
    """

    png: bytes
    frame_index: int
    pts_seconds: float
    width_px: int
    height_px: int


@dataclass(frozen=True, eq=False)
class FrameChunk:
    """A stretch of the frames that were asked for.

    Attributes:
        frames: The frames from `first` on.
        total_count: How many the selector picked in all.
        decoder: Who decoded them, e.g. `decord 0.6.0`.
    """

    frames: Sequence[DecodedFrame]
    total_count: int
    decoder: str


def probe_video(path: Path) -> VideoProbe:
    """Probes a video.

    Raises:
        VideoReadError: If it is not a video, or has no frame that decodes.
        OSError: If the file cannot be read.
    """
    import av
    from av.error import FFmpegError

    path.stat()  # The operating system's own error, before FFmpeg's words for it.
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            first = next(container.decode(stream), None)
            if first is None:
                raise VideoReadError(ReadFailure.NO_FRAMES, "the video stream has no frames")
            is_turned = first.rotation % 180 != 0
            width_px, height_px = (first.height, first.width)[:: 1 if is_turned else -1]
            return VideoProbe(
                duration_seconds=_duration_seconds(container, stream),
                fps=float(stream.average_rate or 0),
                frame_count=_count_frames(path, stream.frames),
                width_px=width_px,
                height_px=height_px,
                codec=stream.codec_context.name,
            )
    except FFmpegError as error:
        raise VideoReadError(ReadFailure.NOT_A_VIDEO, f"FFmpeg: {error}") from None


def read_frames(path: Path, select: FrameSelector, first: int) -> FrameChunk:
    """Decodes the frames that a selector picks, from the `first`-th on, up to `CHUNK_PX` pixels.

    Args:
        path: The video.
        select: Picks frame indices from timestamps.
        first: How many of the picked frames to skip: those that earlier chunks gave.

    Raises:
        VideoReadError: If no decoder can give the frames; the detail says what each one said.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            timeline = _timeline(container, stream)
            picked = select(timeline.pts_seconds, timeline.is_keyframe)
            frame_px = stream.codec_context.width * stream.codec_context.height
            wanted = picked[first : first + max(1, CHUNK_PX // max(1, frame_px))]
            try:
                images, decoder = _decode_with_decord(path, timeline, wanted)
            except VideoReadError as decord_error:
                try:
                    images, decoder = _decode_with_pyav(path, timeline, wanted)
                except (VideoReadError, FFmpegError) as error:
                    raise VideoReadError(
                        ReadFailure.DECODE_FAILED, f"PyAV: {error}; decord: {decord_error}"
                    ) from None
    except FFmpegError as error:
        raise VideoReadError(ReadFailure.DECODE_FAILED, f"FFmpeg: {error}") from None
    frames = [
        DecodedFrame(
            png=encode_png(image),
            frame_index=index,
            pts_seconds=float(timeline.pts_seconds[index]),
            width_px=image.shape[1],
            height_px=image.shape[0],
        )
        for image, index in zip(images, wanted.tolist(), strict=True)
    ]
    return FrameChunk(frames, len(picked), decoder)


@dataclass(frozen=True, eq=False)
class _Timeline:
    """The stream's frames in presentation order.

    Attributes:
        ticks: int64 (N,), timestamps in units of the stream's time base.
        pts_seconds: float64 (N,), the same in seconds from the first frame on: a recording's clock
            may have begun hours before it.
        is_keyframe: bool (N,).
        is_exact: Whether a player finds frames by an index, and shows all that are stored. Not so
            in MPEG transport and program streams, where a seek lands somewhere after the keyframe,
            and where an edit list hides frames.
    """

    ticks: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    is_keyframe: NDArray[np.bool_]
    is_exact: bool


_TIMESTAMPS_MAY_JUMP = 0x0200
"""FFmpeg's AVFMT_TS_DISCONT (libavformat/avformat.h): MPEG transport and program streams."""


def _timeline(container: "InputContainer", stream: "VideoStream") -> _Timeline:
    stored = sorted(
        (packet.pts, packet.is_keyframe, packet.is_discard)
        for packet in container.demux(stream)
        if packet.pts is not None
    )
    shown = [(pts, is_key) for pts, is_key, is_hidden in stored if not is_hidden]
    if not shown:
        raise VideoReadError(ReadFailure.NO_FRAMES, "the video stream has no frames")
    ticks = np.array([pts for pts, _ in shown], np.int64)
    is_keyframe = np.array([is_key for _, is_key in shown], np.bool_)
    pts_seconds = np.asarray((ticks - ticks[0]) * float(stream.time_base or 0), np.float64)
    is_indexed = not container.format.flags & _TIMESTAMPS_MAY_JUMP
    return _Timeline(ticks, pts_seconds, is_keyframe, is_indexed and len(shown) == len(stored))


def _decode_with_decord(
    path: Path, timeline: _Timeline, wanted: NDArray[np.int64]
) -> tuple[Sequence[NDArray[np.uint8]], str]:
    """Decodes with decord, where its seeks can be trusted.

    decord 0.6.0 numbers keyframes in decoding order. Where frames are shown before the keyframe
    that they follow in the file (open groups of pictures: x265's default), its index is off and
    `get_batch` silently gives neighbouring frames. So its index is compared with ours first. In
    containers without an index it silently gives frames of a later group of pictures.
    """
    if not timeline.is_exact:
        raise VideoReadError(ReadFailure.DECODE_FAILED, "its seeks are not exact in this container")
    try:
        import decord
    except ImportError as error:  # No wheel for this platform.
        raise VideoReadError(ReadFailure.DECODE_FAILED, str(error)) from None

    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if reader.get_key_indices() != np.flatnonzero(timeline.is_keyframe).tolist():
            raise VideoReadError(ReadFailure.DECODE_FAILED, "its index of keyframes is off")
        images = reader.get_batch(wanted.tolist()).asnumpy() if len(wanted) else []
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoReadError(ReadFailure.DECODE_FAILED, str(error).splitlines()[0]) from None
    return images, f"decord {version('decord')}"


def _decode_with_pyav(
    path: Path, timeline: _Timeline, wanted: NDArray[np.int64]
) -> tuple[Sequence[NDArray[np.uint8]], str]:
    """Decodes the wanted frames in order, with seeks, and where these fail from the start.

    Raises:
        VideoReadError: If one of them does not come out; another never takes its place.
        av.FFmpegError: If a frame cannot be decoded.
    """
    with ExitStack() as stack:
        try:
            images = _decode_in_order(stack, path, timeline, wanted, seek_count=_SEEKS)
        except VideoReadError:
            images = _decode_in_order(stack, path, timeline, wanted, seek_count=0)
    return images, f"PyAV {version('av')}"


_SEEKS = 3
"""Keyframes that a seek may aim at, backwards, before the file is decoded from its start."""


def _decode_in_order(
    stack: ExitStack,
    path: Path,
    timeline: _Timeline,
    wanted: NDArray[np.int64],
    *,
    seek_count: int,
) -> list[NDArray[np.uint8]]:
    keyframes = np.flatnonzero(timeline.is_keyframe)
    images: list[NDArray[np.uint8]] = []
    frames: Iterator[VideoFrame] = iter(())
    position = -1
    for index in wanted.tolist():
        before = keyframes[keyframes <= index]
        if position < 0 or (seek_count and len(before) and before[-1] > position):
            frames = _frames_from(stack, path, timeline, before[max(0, len(before) - seek_count) :])
        ticks = int(timeline.ticks[index])
        frame = next((f for f in frames if f.pts is not None and f.pts >= ticks), None)
        if frame is None or frame.pts != ticks:
            raise VideoReadError(
                ReadFailure.DECODE_FAILED,
                f"frame {index} at {timeline.pts_seconds[index]:.3f} s does not come out",
            )
        images.append(_upright(frame))
        position = index
    return images


def _frames_from(
    stack: ExitStack, path: Path, timeline: _Timeline, keyframes: NDArray[np.int64]
) -> Iterator["VideoFrame"]:
    """Decodes from the last of some keyframes on, or from one before it, never from one after it.

    Containers seek by decoding time (AVI) or by position (MPEG), so a seek to a keyframe's
    presentation time can land on the next one; then the one before is aimed at.
    """
    import av
    from av.error import FFmpegError

    for start in reversed(keyframes.tolist()):
        stack.close()  # One open file, not one for every seek.
        container = stack.enter_context(av.open(str(path)))
        stream = _video_stream(container, path)
        container.seek(int(timeline.ticks[start]), stream=stream, backward=True)
        frames = container.decode(stream)
        with suppress(FFmpegError):  # Not a place to begin at; an earlier one may be.
            first = next(frames, None)
            if first and first.pts is not None and first.pts <= timeline.ticks[keyframes[-1]]:
                return chain([first], frames)
    stack.close()
    container = stack.enter_context(av.open(str(path)))
    return container.decode(_video_stream(container, path))


def _video_stream(container: "InputContainer", path: Path) -> "VideoStream":
    # FFmpeg's choice, as players and decord choose; the first stream can be a thumbnail.
    stream = container.streams.best("video")
    if stream is None:
        raise VideoReadError(ReadFailure.NOT_A_VIDEO, f"{path.name} holds no video stream")
    return cast("VideoStream", stream)


def _duration_seconds(container: "InputContainer", stream: "VideoStream") -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    microseconds_per_second = 1_000_000  # FFmpeg's AV_TIME_BASE
    return (container.duration or 0) / microseconds_per_second


def _count_frames(path: Path, stated_count: int) -> int:
    """Counts the frames that are shown; what a container states counts hidden ones too."""
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        packets = (packet for packet in container.demux(stream) if packet.pts is not None)
        return sum(not packet.is_discard for packet in packets) or stated_count


def _upright(frame: "VideoFrame") -> NDArray[np.uint8]:
    """Applies the rotation that the container asks players for; decord does so by itself."""
    pixels = frame.to_ndarray(format="rgb24")
    # FFmpeg states counter-clockwise degrees, as numpy's rot90 turns.
    upright = np.rot90(pixels, k=round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(upright, dtype=np.uint8)
