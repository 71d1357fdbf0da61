"""Discovery: what is opened and what is not; and what opening a file tells."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest
from making import encode_video, number_of, wipe_coded_pictures, write_catalog

from ocr_assets.curation.discovery import (
    FileRecord,
    FileState,
    Findings,
    Inspection,
    VideoRecord,
    discover,
    unreadable,
)
from ocr_assets.curation.identity import content_id
from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.sampling import SegmentSelector
from ocr_assets.inspection import (
    ChunkRequest,
    FileChangedError,
    chunk_timeout_seconds,
    decode_chunk,
    inspect_file,
    inspect_files,
    reason_of,
)
from resources.catalog_store import CatalogStore
from resources.frame_store import decode_png
from resources.video_reader import ReadFailure, VideoReadError
from resources.worker_pool import WorkerLoss, WorkerLostError, worker_pool

TRANSIENT = {
    UnscoredReason.FILE_UNREADABLE,
    UnscoredReason.FILE_CHANGED,
    UnscoredReason.DECODE_TIMED_OUT,
    UnscoredReason.DECODER_CRASHED,
}
LASTING = {
    UnscoredReason.FILE_EMPTY,
    UnscoredReason.NOT_A_VIDEO,
    UnscoredReason.NO_FRAMES,
    UnscoredReason.DECODE_FAILED,
}


def video(video_id: str, path: str) -> VideoRecord:
    return VideoRecord(
        video_id=video_id,
        size_bytes=Path(path).stat().st_size,
        duration_seconds=4.0,
        fps=10.0,
        frame_count=40,
        width_px=64,
        height_px=48,
        codec="h264",
        segment_count=0,
        first_seen_at=unreadable(path, UnscoredReason.FILE_EMPTY, "").checked_at,
    )


@dataclass
class Catalog:
    """What is known from one discovery to the next, and which files were opened."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    video_ids: frozenset[str] = frozenset()
    reasons: Mapping[str, UnscoredReason] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def look(self, *paths: Path) -> Findings:
        self.opened.clear()
        found = discover(
            sorted(map(str, paths)),
            known_files=self.files,
            known_video_ids=self.video_ids,
            inspect=self._inspect,
        )
        self.files = {record.path: record for record in found.files}
        self.video_ids |= {record.video_id for record in found.new_videos}
        assert found.inspected_count == len(self.opened)
        return found

    def state(self, path: Path) -> FileState:
        return self.files[str(path)].state

    def _inspect(self, paths: Sequence[str]) -> Iterator[Inspection]:
        """Tells contents apart by their bytes, as the real one does, without decoding them."""
        for path in paths:
            self.opened.append(path)
            stamp = Path(path).stat()
            reason = self.reasons.get(path)
            record = FileRecord(
                path=path,
                size_bytes=stamp.st_size,
                mtime_ns=stamp.st_mtime_ns,
                video_id=content_id(Path(path)),
                state=FileState.UNREADABLE if reason else FileState.PRESENT,
                reason=reason,
                detail=None,
                checked_at=unreadable(path, UnscoredReason.FILE_EMPTY, "").checked_at,
            )
            assert record.video_id is not None
            yield Inspection(record, None if reason else video(record.video_id, path))


def clip(directory: Path, name: str = "clip.mp4", content: str = "a") -> Path:
    path = directory / name
    path.write_text(content)
    return path


def test_a_new_file_is_opened_and_its_video_reported(tmp_path: Path):
    catalog, path = Catalog(), clip(tmp_path)
    found = catalog.look(path)
    assert catalog.opened == [str(path)]
    assert [record.video_id for record in found.new_videos] == [content_id(path)]
    assert catalog.state(path) is FileState.PRESENT


def test_an_unchanged_file_is_not_opened_again(tmp_path: Path):
    catalog, path = Catalog(), clip(tmp_path)
    before = catalog.look(path)
    after = catalog.look(path)
    assert catalog.opened == []
    assert after.files == before.files
    assert after.new_videos == []


def test_a_touched_file_is_opened_but_is_no_new_video(tmp_path: Path):
    catalog, path = Catalog(), clip(tmp_path)
    catalog.look(path)
    os.utime(path, ns=(1, 1))
    found = catalog.look(path)
    assert catalog.opened == [str(path)]
    assert found.new_videos == []


def test_a_changed_file_is_a_new_video(tmp_path: Path):
    catalog, path = Catalog(), clip(tmp_path)
    catalog.look(path)
    clip(tmp_path, content="other bytes")
    found = catalog.look(path)
    assert [record.video_id for record in found.new_videos] == [content_id(path)]


def test_copies_share_one_video(tmp_path: Path):
    catalog = Catalog()
    paths = [clip(tmp_path, name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    found = catalog.look(*paths)
    assert len(found.new_videos) == 1
    assert len({record.video_id for record in found.files}) == 1


def test_a_copy_that_comes_later_is_no_new_video(tmp_path: Path):
    catalog, first = Catalog(), clip(tmp_path)
    catalog.look(first)
    assert catalog.look(first, clip(tmp_path, "copy.mp4")).new_videos == []


def test_a_file_whose_video_the_catalog_lost_is_opened_again(tmp_path: Path):
    catalog, path = Catalog(), clip(tmp_path)
    catalog.look(path)
    catalog.video_ids = frozenset()
    assert len(catalog.look(path).new_videos) == 1


@pytest.mark.parametrize("reason", sorted(TRANSIENT))
def test_a_file_that_failed_for_a_passing_reason_is_tried_again(
    tmp_path: Path, reason: UnscoredReason
):
    path = clip(tmp_path)
    catalog = Catalog(reasons={str(path): reason})
    catalog.look(path)
    assert catalog.state(path) is FileState.UNREADABLE
    catalog.reasons = {}
    catalog.look(path)
    assert catalog.opened == [str(path)]
    assert catalog.state(path) is FileState.PRESENT


@pytest.mark.parametrize("reason", sorted(LASTING))
def test_a_file_that_failed_for_a_lasting_reason_is_not_tried_until_it_changes(
    tmp_path: Path, reason: UnscoredReason
):
    path = clip(tmp_path)
    catalog = Catalog(reasons={str(path): reason})
    catalog.look(path)
    catalog.look(path)
    assert catalog.opened == []
    assert (catalog.state(path), catalog.files[str(path)].reason) == (FileState.UNREADABLE, reason)
    clip(tmp_path, content="repaired")
    catalog.reasons = {}
    catalog.look(path)
    assert catalog.state(path) is FileState.PRESENT


def test_a_path_that_is_not_there_is_missing_and_not_opened(tmp_path: Path):
    catalog, nowhere = Catalog(), tmp_path / "nowhere.mp4"
    catalog.look(nowhere)
    assert catalog.opened == []
    assert catalog.state(nowhere) is FileState.MISSING
    assert catalog.files[str(nowhere)].reason is UnscoredReason.FILE_MISSING


def test_a_path_below_a_file_is_missing(tmp_path: Path):
    catalog, below = Catalog(), clip(tmp_path) / "clip.mp4"
    catalog.look(below)
    assert catalog.state(below) is FileState.MISSING


def test_a_folder_or_a_pipe_is_no_video(tmp_path: Path):
    catalog, folder, pipe = Catalog(), tmp_path / "folder.mp4", tmp_path / "pipe.mp4"
    folder.mkdir()
    os.mkfifo(pipe)
    found = catalog.look(folder, pipe)
    assert catalog.opened == []  # Opening the pipe would hang.
    assert {record.reason for record in found.files} == {UnscoredReason.NOT_A_VIDEO}


def test_a_path_that_the_system_cannot_look_up_is_unreadable(tmp_path: Path):
    catalog, endless = Catalog(), tmp_path / ("x" * 300 + ".mp4")
    catalog.look(endless)
    record = catalog.files[str(endless)]
    assert (record.state, record.reason) == (FileState.UNREADABLE, UnscoredReason.FILE_UNREADABLE)
    assert record.detail == "File name too long"


def test_a_file_that_left_the_sources_is_outside_and_comes_back_unopened(tmp_path: Path):
    catalog, stays, leaves = Catalog(), clip(tmp_path, "a.mp4"), clip(tmp_path, "b.mp4", "b")
    catalog.look(stays, leaves)
    catalog.look(stays)
    assert catalog.state(leaves) is FileState.OUTSIDE
    catalog.look(stays, leaves)
    assert catalog.opened == []
    assert catalog.state(leaves) is FileState.PRESENT


def test_a_deleted_file_is_missing_and_comes_back_unopened(tmp_path: Path):
    catalog, stays, leaves = Catalog(), clip(tmp_path, "a.mp4"), clip(tmp_path, "b.mp4", "b")
    catalog.look(stays, leaves)
    leaves.rename(tmp_path / "aside")
    catalog.look(stays)
    catalog.look(stays)
    assert catalog.state(leaves) is FileState.MISSING
    (tmp_path / "aside").rename(leaves)
    found = catalog.look(stays, leaves)
    assert catalog.opened == []
    assert catalog.state(leaves) is FileState.PRESENT
    assert found.new_videos == []


def test_an_unreadable_file_keeps_its_reason_while_it_is_outside(tmp_path: Path):
    path = clip(tmp_path)
    catalog = Catalog(reasons={str(path): UnscoredReason.NOT_A_VIDEO})
    catalog.look(path)
    catalog.look()
    assert catalog.state(path) is FileState.OUTSIDE
    catalog.look(path)
    assert (catalog.state(path), catalog.opened) == (FileState.UNREADABLE, [])


def test_nothing_ever_known_is_forgotten(tmp_path: Path):
    catalog = Catalog()
    paths = [clip(tmp_path, f"{name}.mp4", name) for name in "cab"]
    catalog.look(*paths)
    found = catalog.look()
    assert [record.path for record in found.files] == sorted(map(str, paths))


def test_inspecting_a_video_identifies_and_probes_it(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4", frame_count=24)
    inspection = inspect_file(str(path))
    assert inspection.file.state is FileState.PRESENT
    assert inspection.file.mtime_ns == path.stat().st_mtime_ns
    assert inspection.video is not None
    assert inspection.video.video_id == inspection.file.video_id == content_id(path)
    found = inspection.video
    assert (found.frame_count, found.fps, found.duration_seconds) == (24, 10.0, 2.4)
    assert (found.width_px, found.height_px, found.codec) == (64, 48, "h264")


def test_an_empty_file_is_empty_and_not_called_no_video(tmp_path: Path):
    path = clip(tmp_path, content="")
    inspection = inspect_file(str(path))
    assert inspection.video is None
    assert inspection.file.reason is UnscoredReason.FILE_EMPTY
    assert inspection.file.size_bytes == 0


def test_a_text_file_is_no_video_but_has_an_identity(tmp_path: Path):
    inspection = inspect_file(str(clip(tmp_path, content="text " * 100)))
    assert inspection.file.reason is UnscoredReason.NOT_A_VIDEO
    assert inspection.file.state is FileState.UNREADABLE
    assert inspection.file.video_id is not None


def test_every_path_gets_an_inspection_in_the_order_given(tmp_path: Path):
    good = encode_video(tmp_path / "good.mp4", frame_count=2)
    paths = [str(p) for p in (tmp_path / "gone.mp4", good, clip(tmp_path, "text.mp4", "text"))]
    with worker_pool(1) as pool:
        inspections = list(inspect_files(pool, paths, timeout_seconds=60))
    assert [inspection.file.path for inspection in inspections] == paths
    assert [inspection.file.state for inspection in inspections] == [
        FileState.MISSING,
        FileState.PRESENT,
        FileState.UNREADABLE,
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((VideoReadError(kind, "x"), UnscoredReason(kind.value)) for kind in ReadFailure),
        (FileChangedError("x"), UnscoredReason.FILE_CHANGED),
        (WorkerLostError(WorkerLoss.TIMED_OUT, "x"), UnscoredReason.DECODE_TIMED_OUT),
        (WorkerLostError(WorkerLoss.CRASHED, "x"), UnscoredReason.DECODER_CRASHED),
        (FileNotFoundError("x"), UnscoredReason.FILE_MISSING),
        (PermissionError("x"), UnscoredReason.FILE_UNREADABLE),
    ],
    ids=lambda value: value.value if isinstance(value, UnscoredReason) else "",
)
def test_each_error_has_its_reason(error: Exception, reason: UnscoredReason):
    assert reason_of(error) is reason


def request_for(*paths: Path, sampler: str = "uniform(3)") -> ChunkRequest:
    """Asks for frames of the first path's content, as it is now."""
    return ChunkRequest(
        video_id=content_id(paths[0]),
        segment_index=0,
        copies=tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths),
        selector=SegmentSelector(sampler, 2.4, 0.0, math.inf),
    )


def test_a_chunk_holds_the_sampled_frames(tmp_path: Path):
    chunk = decode_chunk(request_for(encode_video(tmp_path / "clip.mp4")))
    assert [number_of(decode_png(frame.png)) for frame in chunk.frames] == [0, 12, 23]


def test_a_chunk_comes_from_a_copy_where_the_first_file_is_gone(tmp_path: Path):
    first = encode_video(tmp_path / "a.mp4")
    copy = tmp_path / "b.mp4"
    copy.write_bytes(first.read_bytes())
    request = request_for(first, copy)
    first.unlink()
    assert decode_chunk(request).total_count == 3


def test_a_file_that_was_only_touched_is_still_what_it_was(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    request = request_for(path)
    os.utime(path, ns=(1, 1))
    assert decode_chunk(request).total_count == 3


def test_rejects_a_file_with_other_bytes_than_it_was_identified_by(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    request = request_for(path)
    encode_video(path, frame_count=8)
    with pytest.raises(FileChangedError, match=r"clip\.mp4 has other bytes"):
        decode_chunk(request)


def test_rejects_a_content_that_no_file_has_any_more(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    request = request_for(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        decode_chunk(request)
    with pytest.raises(FileNotFoundError, match="no file with this content"):
        decode_chunk(replace(request, copies=()))


def test_a_damaged_video_says_why_it_cannot_be_decoded(tmp_path: Path):
    path = wipe_coded_pictures(encode_video(tmp_path / "clip.mp4"), from_share=0.5)
    with pytest.raises(VideoReadError) as raised:
        decode_chunk(request_for(path))
    assert reason_of(raised.value) is UnscoredReason.DECODE_FAILED


@pytest.mark.parametrize(
    ("duration", "limit"), [(600.0, 120.0), (math.inf, 60.0), (math.nan, 60.0)]
)
def test_a_longer_video_has_more_time(tmp_path: Path, duration: float, limit: float):
    request = request_for(clip(tmp_path))
    longer = replace(request, selector=replace(request.selector, duration_seconds=duration))
    assert chunk_timeout_seconds(longer, 60.0) == limit


def test_an_empty_catalog_has_its_columns(tmp_path: Path):
    catalog = CatalogStore(tmp_path)
    assert not catalog.has_catalog()
    assert (catalog.files().num_rows, catalog.videos().num_rows) == (0, 0)
    assert catalog.segments("s000001").num_rows == 0
    assert list(catalog.samples()) == []


def test_a_catalog_gives_back_what_was_written(tmp_path: Path):
    catalog = CatalogStore(tmp_path)
    write_catalog(catalog, {"a": 2, "b": 1})
    assert catalog.has_catalog()
    assert catalog.videos().column("video_id").to_pylist() == ["a", "b"]
    assert catalog.segments("s000001").num_rows == 3
    assert catalog.segments("s000002").num_rows == 0


def test_samples_of_an_earlier_discovery_do_not_stay(tmp_path: Path):
    catalog = CatalogStore(tmp_path)
    write_catalog(catalog, {"a": 1})
    tables = [pa.table({"n": [number]}) for number in range(12)]
    for kept in (12, 2):
        catalog.write(
            files=catalog.files(),
            videos=catalog.videos(),
            segments=catalog.segments(),
            samples=tables[:kept],
        )
        read = [table.column("n").to_pylist() for table in catalog.samples()]
        assert read == [[number] for number in range(kept)]
