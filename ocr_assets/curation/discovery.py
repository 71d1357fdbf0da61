"""Discovery: what a look at the sources changes in the catalog. Reads file stamps, no pixels.

A file whose size and modification time are as they were is not opened. What must be opened is
given to an inspector, which hashes and probes it in a process of its own.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from ocr_assets.curation.reasons import UnscoredReason


class FileState(StrEnum):
    """Where a known file stands."""

    PRESENT = "present"  # There, identified, probed.
    MISSING = "missing"  # Not there (any more).
    UNREADABLE = "unreadable"  # There, but no score can come of it; the reason says why.
    OUTSIDE = "outside"  # There, but not in the sources of the last discovery.


@dataclass(frozen=True)
class FileRecord:
    """What is known of one path.

    Attributes:
        path: Absolute.
        size_bytes: When it was last looked at; None where it could not be.
        mtime_ns: Its modification time then.
        video_id: Content id; None where its bytes could not be read.
        state: Where it stands.
        reason: Why it is missing or unreadable, else None.
        detail: The same in the words of whoever said so.
        checked_at: When its bytes, or its absence, were last looked at.
    """

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    video_id: str | None
    state: FileState
    reason: UnscoredReason | None
    detail: str | None
    checked_at: datetime


@dataclass(frozen=True)
class VideoRecord:
    """What is known of one content, under however many paths.

    Attributes:
        video_id: Content id.
        size_bytes: Of the file.
        duration_seconds: Of its video stream.
        fps: Average frame rate; 0.0 where unknown.
        frame_count: In its video stream.
        width_px: As shown.
        height_px: As shown.
        codec: FFmpeg's name.
        segment_count: Into how many segments it was cut.
        first_seen_at: When it was discovered.
    """

    video_id: str
    size_bytes: int
    duration_seconds: float
    fps: float
    frame_count: int
    width_px: int
    height_px: int
    codec: str
    segment_count: int
    first_seen_at: datetime


@dataclass(frozen=True)
class Inspection:
    """What opening one file told: its record, and the video in it where there is one."""

    file: FileRecord
    video: VideoRecord | None


Inspector = Callable[[Sequence[str]], Iterable[Inspection]]

# These lie outside the file, so an unchanged file deserves another try.
_TRANSIENT = frozenset(
    {
        UnscoredReason.FILE_UNREADABLE,
        UnscoredReason.FILE_CHANGED,
        UnscoredReason.DECODE_TIMED_OUT,
        UnscoredReason.DECODER_CRASHED,
    }
)


@dataclass(frozen=True)
class Findings:
    """What a discovery found.

    Attributes:
        files: Every path ever known, by path.
        new_videos: Contents never seen before, one each, by content id.
        inspected_count: How many files had to be opened.
    """

    files: list[FileRecord]
    new_videos: list[VideoRecord]
    inspected_count: int


def discover(
    paths: Sequence[str],
    *,
    known_files: Mapping[str, FileRecord],
    known_video_ids: frozenset[str],
    inspect: Inspector,
) -> Findings:
    """Compares the sources' paths with what is known.

    Args:
        paths: Distinct absolute paths that the sources name.
        known_files: Every path ever known.
        known_video_ids: Every content ever probed.
        inspect: Opens files; asked only for those that are new or changed.
    """
    settled: dict[str, FileRecord] = {}
    to_inspect: list[str] = []
    for path in paths:
        known = known_files.get(path)
        stamped = _stamp(path)
        if isinstance(stamped, FileRecord):
            settled[path] = stamped
        elif known and _is_unchanged(known, stamped, known_video_ids):
            state = FileState.UNREADABLE if known.reason else FileState.PRESENT
            settled[path] = replace(known, state=state)
        else:
            to_inspect.append(path)
    new_videos: dict[str, VideoRecord] = {}
    for inspection in inspect(to_inspect):
        settled[inspection.file.path] = inspection.file
        video = inspection.video
        if video and video.video_id not in known_video_ids:
            new_videos.setdefault(video.video_id, video)
    settled.update(_left_out(known for path, known in known_files.items() if path not in settled))
    return Findings(
        files=[settled[path] for path in sorted(settled)],
        new_videos=[new_videos[video_id] for video_id in sorted(new_videos)],
        inspected_count=len(to_inspect),
    )


def unreadable(path: str, reason: UnscoredReason, detail: str) -> FileRecord:
    """The record of a file that could not be looked at."""
    is_missing = reason is UnscoredReason.FILE_MISSING
    return FileRecord(
        path=path,
        size_bytes=None,
        mtime_ns=None,
        video_id=None,
        state=FileState.MISSING if is_missing else FileState.UNREADABLE,
        reason=reason,
        detail=detail,
        checked_at=datetime.now(UTC),
    )


def _stamp(path: str) -> tuple[int, int] | FileRecord:
    """Size in bytes and modification time in ns, or the record that says why there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 a Path per file doubles the time of a quick pass
    except (FileNotFoundError, NotADirectoryError):
        return unreadable(path, UnscoredReason.FILE_MISSING, "there is no such file")
    except OSError as error:
        return unreadable(path, UnscoredReason.FILE_UNREADABLE, error.strerror or str(error))
    if not stat.S_ISREG(found.st_mode):
        return unreadable(path, UnscoredReason.NOT_A_VIDEO, "not a regular file")
    return found.st_size, found.st_mtime_ns


def _is_unchanged(
    known: FileRecord, stamp: tuple[int, int], known_video_ids: frozenset[str]
) -> bool:
    if (known.size_bytes, known.mtime_ns) != stamp or known.reason in _TRANSIENT:
        return False
    return known.reason is not None or known.video_id in known_video_ids


def _left_out(records: Iterable[FileRecord]) -> Iterator[tuple[str, FileRecord]]:
    for record in records:
        stamped = _stamp(record.path)
        if isinstance(stamped, tuple):
            yield record.path, replace(record, state=FileState.OUTSIDE)
        elif record.state is FileState.MISSING:
            yield record.path, record
        else:
            # Size, time and content stay on record: should the file come back, it is not hashed.
            yield (
                record.path,
                replace(record, state=FileState.MISSING, checked_at=stamped.checked_at),
            )
