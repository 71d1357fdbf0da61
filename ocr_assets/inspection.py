"""What a worker process does with one file: identify and probe it, or decode frames of it.

Every function here runs in a killable worker (`resources.worker_pool`); `reason_of` turns what it
raised into the closed set of reasons.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ocr_assets.curation.discovery import FileRecord, FileState, Inspection, VideoRecord, unreadable
from ocr_assets.curation.identity import content_id
from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.sampling import SegmentSelector
from resources.video_reader import FrameChunk, VideoReadError, probe_video, read_frames
from resources.worker_pool import WorkerLoss, WorkerLostError, WorkerPool

HASH_BYTES_PER_SECOND = 20e6
"""Slowest disk or network share that a deadline allows for, 20 MB/s."""


class FileChangedError(Exception):
    """A file's bytes are not those that it was identified by."""


FILE_ERRORS = (VideoReadError, FileChangedError, OSError, WorkerLostError)
"""What reading one file may raise. Anything else is a defect of ours and is not caught."""


def reason_of(error: Exception) -> UnscoredReason:
    """Gives the reason to record for one of `FILE_ERRORS`."""
    if isinstance(error, VideoReadError):
        return UnscoredReason(error.failure.value)
    if isinstance(error, FileChangedError):
        return UnscoredReason.FILE_CHANGED
    if isinstance(error, WorkerLostError):
        is_late = error.loss is WorkerLoss.TIMED_OUT
        return UnscoredReason.DECODE_TIMED_OUT if is_late else UnscoredReason.DECODER_CRASHED
    if isinstance(error, FileNotFoundError):
        return UnscoredReason.FILE_MISSING
    return UnscoredReason.FILE_UNREADABLE


def inspect_file(path: str) -> Inspection:
    """Hashes and probes one file.

    Returns:
        Its record; an unreadable video is a record with a reason, not an exception.

    Raises:
        OSError: If the file cannot be read.
    """
    file = Path(path)
    before = file.stat()
    video_id = content_id(file)
    record = FileRecord(
        path=path,
        size_bytes=before.st_size,
        mtime_ns=before.st_mtime_ns,
        video_id=video_id,
        state=FileState.PRESENT,
        reason=None,
        detail=None,
        checked_at=datetime.now(UTC),
    )
    if before.st_size == 0:
        return _unreadable(record, UnscoredReason.FILE_EMPTY, "the file has 0 bytes")
    try:
        probe = probe_video(file)
    except VideoReadError as error:
        return _unreadable(record, reason_of(error), error.detail)
    after = file.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        return _unreadable(
            record, UnscoredReason.FILE_CHANGED, "it was written to while we read it"
        )
    video = VideoRecord(
        video_id=video_id,
        size_bytes=before.st_size,
        duration_seconds=probe.duration_seconds,
        fps=probe.fps,
        frame_count=probe.frame_count,
        width_px=probe.width_px,
        height_px=probe.height_px,
        codec=probe.codec,
        segment_count=0,
        first_seen_at=datetime.now(UTC),
    )
    return Inspection(record, video)


def inspect_files(
    pool: WorkerPool, paths: Sequence[str], timeout_seconds: float
) -> Iterator[Inspection]:
    """Inspects files in worker processes; every path gets an inspection."""

    def limit(path: str) -> float:
        try:
            return timeout_seconds + Path(path).stat().st_size / HASH_BYTES_PER_SECOND
        except OSError:
            return timeout_seconds

    for outcome in pool.map(inspect_file, paths, limit):
        try:
            yield outcome.result()
        except FILE_ERRORS as error:
            yield Inspection(unreadable(outcome.item, reason_of(error), str(error)), None)


@dataclass(frozen=True)
class ChunkRequest:
    """Some frames of one segment.

    Attributes:
        video_id: The video's content id.
        segment_index: Which of its segments.
        copies: Path, size in bytes and modification time in ns of each file with this content.
        selector: Picks the segment's frames.
        first: How many of the picked frames earlier chunks gave.
    """

    video_id: str
    segment_index: int
    copies: tuple[tuple[str, int, int], ...]
    selector: SegmentSelector
    first: int = 0


def decode_chunk(request: ChunkRequest) -> FrameChunk:
    """Decodes the requested frames from the first copy that is still what it was.

    Raises:
        VideoReadError: If no decoder can give them.
        FileChangedError: If the file is there with other bytes.
        OSError: If no copy can be opened.
    """
    return read_frames(_intact_copy(request), request.selector, request.first)


def _intact_copy(request: ChunkRequest) -> Path:
    error: Exception = FileNotFoundError("no file with this content is known any more")
    for text, size_bytes, mtime_ns in request.copies:
        path = Path(text)
        try:
            found = path.stat()
            if (found.st_size, found.st_mtime_ns) == (size_bytes, mtime_ns):
                return path
            if content_id(path) == request.video_id:
                return path
            error = FileChangedError(f"{path} has other bytes than when it was discovered")
        except OSError as os_error:
            error = os_error
    raise error


def chunk_timeout_seconds(request: ChunkRequest, timeout_seconds: float) -> float:
    """A tenth of the video's length on top: finding frames reads the whole file once."""
    duration_seconds = request.selector.duration_seconds
    return timeout_seconds + 0.1 * (duration_seconds if math.isfinite(duration_seconds) else 0.0)


def _unreadable(record: FileRecord, reason: UnscoredReason, detail: str) -> Inspection:
    fields = vars(record) | {"state": FileState.UNREADABLE, "reason": reason, "detail": detail}
    return Inspection(FileRecord(**fields), None)
