"""The demo corpus is what its manifest says, and a second call leaves it alone."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import shapely
from av.error import InvalidDataError
from numpy.typing import NDArray

from ocr_assets import demo_corpus
from ocr_assets.demo_corpus import (
    DRAWN_CLIPS,
    MANIFEST_NAME,
    DrawnClip,
    KnownClip,
    generate_demo_corpus,
    load_known_geometry,
)
from ocr_assets.demo_drawing import TextLine, draw_text, text_quadrilaterals

MAX_KEPT_RATIO = 0.07

# CRAFT's boxes are not the author's: what the author intends has to hold with room to spare.
MAX_KNOWN_RATIO_WHERE_KEPT = 0.045
MIN_KNOWN_RATIO_WHERE_DROPPED = 0.10


def make_known_clip(
    *boxes_by_frame: list[tuple[float, float, float, float]], is_damaged: bool = False
) -> KnownClip:
    """A clip of 100 x 50 pixels from upright boxes (left, upper, right, lower), frame by frame."""
    return KnownClip(
        relative_path="made/up.mp4",
        width_px=100,
        height_px=50,
        fps=10,
        frame_count=len(boxes_by_frame),
        duration_seconds=len(boxes_by_frame) / 10,
        is_damaged=is_damaged,
        duplicate_of=None,
        is_intended_kept=True,
        text_quadrilaterals_px=tuple(
            np.array(
                [
                    [(left, upper), (right, upper), (right, lower), (left, lower)]
                    for left, upper, right, lower in boxes
                ],
                dtype=np.float64,
            ).reshape(-1, 4, 2)
            for boxes in boxes_by_frame
        ),
    )


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


def is_inside(
    quadrilaterals: NDArray[np.float64], height_px: int, width_px: int
) -> NDArray[np.bool]:
    """Which pixels touch one of the quadrilaterals, bool (height_px, width_px)."""
    # A pixel's centre lies at most half its diagonal from any point of the pixel.
    area = shapely.union_all(shapely.polygons(quadrilaterals)).buffer(math.sqrt(0.5))
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    return shapely.contains_xy(area, columns + 0.5, rows + 0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    generate_demo_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def known_clips(corpus: Path) -> dict[str, KnownClip]:
    return {clip.relative_path: clip for clip in load_known_geometry(corpus)}


@pytest.mark.parametrize("drawn", DRAWN_CLIPS, ids=lambda clip: clip.relative_path)
def test_a_clip_decodes_to_the_size_and_frames_that_are_known(
    drawn: DrawnClip, corpus: Path, known_clips: dict[str, KnownClip]
):
    known = known_clips[drawn.relative_path]
    frames = decode(corpus / drawn.relative_path)
    assert {(frame.width, frame.height) for frame in frames} == {(known.width_px, known.height_px)}
    assert len(frames) == known.frame_count == len(known.text_quadrilaterals_px)
    times = [frame.time for frame in frames]
    assert times == pytest.approx([index / known.fps for index in range(known.frame_count)])


@pytest.mark.parametrize("drawn", DRAWN_CLIPS, ids=lambda clip: clip.relative_path)
def test_the_container_states_the_known_duration_and_codec(
    drawn: DrawnClip, corpus: Path, known_clips: dict[str, KnownClip]
):
    with av.open(corpus / drawn.relative_path) as container:
        assert container.duration is not None
        seconds = container.duration / av.time_base
        assert seconds == pytest.approx(known_clips[drawn.relative_path].duration_seconds)
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.parametrize("drawn", DRAWN_CLIPS, ids=lambda clip: clip.relative_path)
def test_the_middle_frame_is_the_first_at_or_after_half_of_the_duration(
    drawn: DrawnClip, corpus: Path, known_clips: dict[str, KnownClip]
):
    known = known_clips[drawn.relative_path]
    times = [frame.time for frame in decode(corpus / drawn.relative_path) if frame.time is not None]
    middle = next(index for index, time in enumerate(times) if time >= known.duration_seconds / 2)
    assert known.first_middle_last_frames == (0, middle, len(times) - 1)


def test_the_corpus_covers_three_containers(known_clips: dict[str, KnownClip]):
    assert {Path(path).suffix for path in known_clips} == {".mp4", ".mkv", ".mov"}


def test_some_clips_share_a_size_and_some_do_not(known_clips: dict[str, KnownClip]):
    sizes = [(clip.width_px, clip.height_px) for clip in known_clips.values()]
    assert len(set(sizes)) >= 4
    assert max(sizes.count(size) for size in sizes) >= 4


def test_a_second_generation_changes_neither_bytes_nor_times(corpus: Path):
    before = snapshot(corpus)
    told: list[str] = []
    generate_demo_corpus(corpus, told.append)
    assert snapshot(corpus) == before
    assert told == []


def test_a_missing_clip_alone_is_written_again_with_the_same_bytes(corpus: Path):
    before = snapshot(corpus)
    missing = "nature/grainy_field.mkv"
    (corpus / missing).unlink()
    told: list[str] = []
    generate_demo_corpus(corpus, told.append)
    after = snapshot(corpus)
    assert told == [missing]
    assert after[missing][1] == before[missing][1]
    del after[missing], before[missing]
    assert after == before


def test_clips_of_another_version_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stale = "nature/grainy_field.mkv"
    only = tuple(clip for clip in DRAWN_CLIPS if clip.relative_path == stale)
    monkeypatch.setattr(demo_corpus, "DRAWN_CLIPS", only)
    monkeypatch.setattr(demo_corpus, "COPIED_CLIPS", ())
    (tmp_path / "nature").mkdir()
    (tmp_path / stale).write_bytes(b"an older clip")
    (tmp_path / MANIFEST_NAME).write_text('{"generator_version": 0, "clips": []}')
    told: list[str] = []
    generate_demo_corpus(tmp_path, told.append)
    assert told == [stale]
    assert len(decode(tmp_path / stale)) == only[0].frame_count


def test_an_interrupted_encoding_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_clip: DrawnClip, path: Path) -> None:
        path.write_bytes(b"half a clip")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_corpus, "_encode_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_demo_corpus(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_every_file_that_is_no_clip_is_no_video(corpus: Path, known_clips: dict[str, KnownClip]):
    assert {path for path in snapshot(corpus) if path not in known_clips} == {
        MANIFEST_NAME,
        "lectures/notes.txt",
    }


def test_a_duplicate_has_the_bytes_of_its_original(corpus: Path, known_clips: dict[str, KnownClip]):
    duplicates = [clip for clip in known_clips.values() if clip.duplicate_of is not None]
    assert len(duplicates) == 1
    for clip in duplicates:
        assert clip.duplicate_of is not None
        original = corpus / clip.duplicate_of
        assert (corpus / clip.relative_path).read_bytes() == original.read_bytes()
        assert (corpus / clip.relative_path).parent != original.parent


def test_a_damaged_clip_cannot_be_opened(corpus: Path, known_clips: dict[str, KnownClip]):
    damaged = [clip for clip in known_clips.values() if clip.is_damaged]
    assert len(damaged) == 1
    for clip in damaged:
        assert not clip.is_intended_kept
        with pytest.raises(InvalidDataError):
            av.open(corpus / clip.relative_path)


def test_intentions_hold_for_the_known_ratios_with_room_to_spare(
    known_clips: dict[str, KnownClip],
):
    for clip in known_clips.values():
        if clip.is_damaged:
            continue
        ratio = clip.known_mean_text_area_ratio(clip.first_middle_last_frames)
        if clip.is_intended_kept:
            assert ratio <= MAX_KNOWN_RATIO_WHERE_KEPT, clip.relative_path
        else:
            assert ratio >= MIN_KNOWN_RATIO_WHERE_DROPPED, clip.relative_path


def test_one_kept_clip_would_be_dropped_by_its_maximum(known_clips: dict[str, KnownClip]):
    clip = known_clips["films/title_at_the_start.mp4"]
    ratios = [clip.text_area_ratio(index) for index in clip.first_middle_last_frames]
    assert clip.is_intended_kept
    assert max(ratios) > MAX_KEPT_RATIO
    assert ratios[1:] == [0, 0]


@pytest.mark.parametrize("drawn", DRAWN_CLIPS, ids=lambda clip: clip.relative_path)
def test_text_is_drawn_inside_its_known_boxes_and_nowhere_else(
    drawn: DrawnClip, known_clips: dict[str, KnownClip]
):
    known = known_clips[drawn.relative_path]
    for index in known.first_middle_last_frames:
        textless = demo_corpus._textless_frame(drawn, index)
        drawn_frame = draw_text(textless, drawn.lines, index / drawn.fps)
        has_ink = (drawn_frame != textless).any(axis=2)
        boxes = known.text_quadrilaterals_px[index]
        assert has_ink.any() == (len(boxes) > 0)
        assert not (has_ink & ~is_inside(boxes, known.height_px, known.width_px)).any()


def test_ink_reaches_across_the_whole_width_of_a_line_box():
    line = TextLine("HHHH", 40, (0.5, 0.5), outline=None)
    textless = np.zeros((100, 300, 3), dtype=np.uint8)
    columns = np.flatnonzero(draw_text(textless, (line,), 0).any(axis=(0, 2)))
    left, right = text_quadrilaterals((line,), 300, 100, 0)[0][[0, 1], 0]
    # An H of this size stands about 4 pixels inside its advance on either side.
    assert columns[0] - left <= 5
    assert right - columns[-1] <= 6


def test_a_turned_line_box_keeps_its_area_and_centre():
    upright = TextLine("turn me", 30, (0.5, 0.5))
    turned = TextLine("turn me", 30, (0.5, 0.5), angle_degrees=30)
    before, after = (
        shapely.Polygon(text_quadrilaterals((line,), 400, 400, 0)[0]) for line in (upright, turned)
    )
    assert after.area == pytest.approx(before.area)
    # Layers are placed on whole pixels, so each centre may be half a pixel off on each axis.
    assert after.centroid.distance(before.centroid) <= math.sqrt(2)


def test_a_line_turned_counter_clockwise_rises_to_the_right():
    line = TextLine("turn me", 30, (0.5, 0.5), angle_degrees=30)
    upper_left, upper_right = text_quadrilaterals((line,), 400, 400, 0)[0][:2]
    assert upper_right[1] < upper_left[1]


def test_a_line_is_visible_from_its_start_to_before_its_end():
    line = TextLine("now", 20, (0.5, 0.5), visible_seconds=(1.0, 2.0))
    visible = [len(text_quadrilaterals((line,), 100, 100, time)) for time in (0.9, 1.0, 1.9, 2.0)]
    assert visible == [0, 1, 1, 0]


def test_a_moving_line_moves_by_its_velocity():
    line = TextLine("on", 20, (0.5, 0.5), velocity_px_per_second=(-30, 10))
    start, later = (text_quadrilaterals((line,), 200, 100, time) for time in (0.0, 2.0))
    np.testing.assert_array_equal(later - start, np.broadcast_to((-60, 20), (1, 4, 2)))


def test_the_area_ratio_of_one_box_is_its_area_over_the_frames():
    assert make_known_clip([(10, 10, 60, 20)]).text_area_ratio(0) == pytest.approx(500 / 5000)


def test_overlapping_boxes_count_once():
    clip = make_known_clip([(0, 0, 20, 10), (10, 0, 30, 10)])
    assert clip.text_area_ratio(0) == pytest.approx(300 / 5000)


def test_what_lies_beyond_the_frame_does_not_count():
    clip = make_known_clip([(-50, 40, 50, 60)])
    assert clip.text_area_ratio(0) == pytest.approx(500 / 5000)


def test_a_frame_without_text_has_ratio_zero():
    assert make_known_clip([]).text_area_ratio(0) == 0


def test_the_mean_is_taken_over_the_frames_that_are_asked_for():
    clip = make_known_clip([], [(0, 0, 100, 10)], [(0, 0, 100, 50)])
    assert clip.known_mean_text_area_ratio([0, 1]) == pytest.approx(0.1)
    assert clip.known_mean_text_area_ratio([1, 1, 2]) == pytest.approx(1.4 / 3)


def test_rejects_a_mean_over_no_frames():
    clip = make_known_clip(is_damaged=True)
    with pytest.raises(ValueError, match="needs at least one frame index"):
        clip.known_mean_text_area_ratio(clip.first_middle_last_frames)


def test_rejects_a_folder_without_manifest(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_known_geometry(tmp_path)
