"""Which frames come out of a video, against decoding it from its start to its end."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from making import (
    encode_sound,
    encode_video,
    four_colours,
    frames_in_sequence,
    number_of,
    turn_clockwise,
    wipe_coded_pictures,
    x264,
    x265_open_gop,
)
from numpy.typing import NDArray

from ocr_assets.curation.sampling import SegmentSelector
from resources import video_reader
from resources.frame_store import decode_png
from resources.video_reader import (
    DecodedFrame,
    FrameChunk,
    FrameSelector,
    ReadFailure,
    VideoReadError,
    probe_video,
    read_frames,
)

FRAME_COUNT = 24

# Two builds of FFmpeg may round YUV to RGB differently by a level.
MAX_LEVELS_OFF = 2


def pick(*indices: int) -> FrameSelector:
    return lambda _pts, _keyframes: np.array(indices, np.int64)


def every_frame(
    pts_seconds: NDArray[np.float64], _keyframes: NDArray[np.bool_]
) -> NDArray[np.int64]:
    return np.arange(len(pts_seconds))


def read(path: Path, select: FrameSelector = every_frame, first: int = 0) -> FrameChunk:
    return read_frames(path, select, first)


def numbers(frames: Sequence[DecodedFrame]) -> list[int]:
    """The numbers that the images tell."""
    return [number_of(decode_png(frame.png)) for frame in frames]


def indices(frames: Sequence[DecodedFrame]) -> list[int]:
    """The numbers that the reader says they have."""
    return [frame.frame_index for frame in frames]


@pytest.fixture
def _without_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a platform for which there is no wheel."""
    monkeypatch.setitem(sys.modules, "decord", None)


def test_decord_gives_h264_with_b_frames_as_decoding_in_sequence_does(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    chunk = read(path)
    assert chunk.decoder.startswith("decord ")
    assert indices(chunk.frames) == numbers(chunk.frames) == list(range(FRAME_COUNT))
    for frame, image in zip(chunk.frames, frames_in_sequence(path), strict=True):
        np.testing.assert_allclose(decode_png(frame.png).astype(int), image, atol=MAX_LEVELS_OFF)


@pytest.mark.usefixtures("_without_decord")
def test_pyav_gives_h264_with_b_frames_as_decoding_in_sequence_does(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    chunk = read(path)
    assert chunk.decoder.startswith("PyAV ")
    assert numbers(chunk.frames) == list(range(FRAME_COUNT))
    for frame, image in zip(chunk.frames, frames_in_sequence(path), strict=True):
        np.testing.assert_array_equal(decode_png(frame.png), image)


def test_decord_and_pyav_agree_on_every_frame_asked_for_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = encode_video(tmp_path / "clip.mp4")
    by_decord = [numbers(read(path, pick(index)).frames) for index in range(FRAME_COUNT)]
    monkeypatch.setitem(sys.modules, "decord", None)
    by_pyav = [numbers(read(path, pick(index)).frames) for index in range(FRAME_COUNT)]
    assert by_decord == by_pyav == [[index] for index in range(FRAME_COUNT)]


def test_decords_index_of_an_open_group_of_pictures_is_off(tmp_path: Path):
    """What the reader guards against: should this fail, decord learned it and the guard can go."""
    decord = pytest.importorskip("decord")
    path = encode_video(tmp_path / "clip.mp4", codec="libx265", options=x265_open_gop())
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    assert reader.get_key_indices() != [0, 8, 16]
    wanted = [7, 9, 15, 17, 22]
    assert [number_of(image) for image in reader.get_batch(wanted).asnumpy()] != wanted


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_open_groups_of_pictures_give_the_right_frames(tmp_path: Path, suffix: str, stride: int):
    path = encode_video(tmp_path / f"clip{suffix}", codec="libx265", options=x265_open_gop())
    wanted = list(range(1, FRAME_COUNT, stride))
    chunk = read(path, pick(*wanted))
    assert chunk.decoder.startswith("PyAV ")
    assert numbers(chunk.frames) == wanted


HARD_TO_SEEK = [
    pytest.param(".ts", "libx264", x264(), 10, id="H.264 in a transport stream"),
    pytest.param(".ts", "libx265", x265_open_gop(), 10, id="HEVC in a transport stream"),
    pytest.param(".ts", "mpeg2video", {"bf": "2", "g": "8"}, 25, id="MPEG-2 in a transport stream"),
    pytest.param(".mpg", "mpeg2video", {"bf": "2", "g": "8"}, 25, id="MPEG-2 in a program stream"),
    pytest.param(".avi", "mpeg4", {"bf": "2", "g": "8"}, 10, id="MPEG-4 in AVI"),
    pytest.param(".flv", "libx264", x264(), 10, id="H.264 in Flash video"),
    pytest.param(".mp4", "libx264", x264(keyframe_interval=2), 10, id="keyframes side by side"),
]


@pytest.mark.parametrize(("suffix", "codec", "options", "fps"), HARD_TO_SEEK)
def test_containers_that_are_hard_to_seek_in_give_the_right_frames(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], fps: int
):
    path = encode_video(tmp_path / f"clip{suffix}", codec=codec, options=options, fps=fps)
    expected = [number_of(image) for image in frames_in_sequence(path)]
    assert numbers(read(path).frames) == expected
    for index in (0, 1, 9, 12, FRAME_COUNT - 1):
        assert numbers(read(path, pick(index)).frames) == [expected[index]]


@pytest.mark.usefixtures("_without_decord")
@pytest.mark.parametrize(("suffix", "codec", "options", "fps"), HARD_TO_SEEK)
def test_pyav_alone_gives_the_right_frames_where_seeking_is_hard(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], fps: int
):
    path = encode_video(tmp_path / f"clip{suffix}", codec=codec, options=options, fps=fps)
    expected = [number_of(image) for image in frames_in_sequence(path)]
    for wanted in ([0], [1, 12], [9, 10, 20], [FRAME_COUNT - 1]):
        assert numbers(read(path, pick(*wanted)).frames) == [expected[i] for i in wanted]


def test_a_recording_whose_clock_began_long_ago_is_sampled_from_its_own_beginning(tmp_path: Path):
    path = encode_video(tmp_path / "clip.ts", first_pts=36_000)
    selector = SegmentSelector("uniform(3)", probe_video(path).duration_seconds, 0.0, math.inf)
    chunk = read(path, selector)
    assert indices(chunk.frames) == [0, 12, 23]
    assert numbers(chunk.frames) == [0, 12, 23]


def test_frames_that_an_edit_list_hides_are_not_frames_of_the_video(tmp_path: Path):
    # A clip that was cut without encoding it anew: it begins at a keyframe, its edit list says
    # that playing begins five frames later.
    path = encode_video(tmp_path / "clip.mp4", first_pts=-5)
    shown = [number_of(image) for image in frames_in_sequence(path)]
    assert shown == list(range(5, FRAME_COUNT))
    chunk = read(path)
    assert numbers(chunk.frames) == shown
    assert chunk.frames[0].pts_seconds == 0.0
    assert probe_video(path).frame_count == len(shown)


@pytest.mark.parametrize("decoder", ["decord", "PyAV"])
def test_few_frames_at_a_time_are_all_frames_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
):
    path = encode_video(tmp_path / "clip.mp4")
    whole = read(path)
    if decoder == "PyAV":
        monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setattr(video_reader, "CHUNK_PX", 5 * 64 * 48)
    frames: list[DecodedFrame] = []
    sizes: list[int] = []
    while len(frames) < FRAME_COUNT:
        chunk = read(path, first=len(frames))
        assert chunk.decoder.startswith(decoder)
        assert chunk.total_count == FRAME_COUNT
        sizes.append(len(chunk.frames))
        frames += chunk.frames
    assert sizes == [5, 5, 5, 5, 4]
    assert numbers(frames) == list(range(FRAME_COUNT))
    assert [frame.pts_seconds for frame in frames] == [f.pts_seconds for f in whole.frames]


def test_a_chunk_holds_at_least_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = encode_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(video_reader, "CHUNK_PX", 1)
    assert numbers(read(path, pick(3, 7), first=1).frames) == [7]


def test_a_selector_that_picks_nothing_gets_nothing(tmp_path: Path):
    chunk = read(encode_video(tmp_path / "clip.mp4"), pick())
    assert (list(chunk.frames), chunk.total_count) == ([], 0)


def test_the_selector_sees_timestamps_and_keyframes_in_the_order_of_showing(tmp_path: Path):
    seen: list[NDArray[np.float64] | NDArray[np.bool_]] = []

    def look(pts_seconds: NDArray[np.float64], is_keyframe: NDArray[np.bool_]) -> NDArray[np.int64]:
        seen.extend([pts_seconds, is_keyframe])
        return np.array([2], np.int64)

    (frame,) = read(encode_video(tmp_path / "clip.mp4"), look).frames
    np.testing.assert_allclose(seen[0], np.arange(FRAME_COUNT) / 10)
    assert np.flatnonzero(seen[1]).tolist() == [0, 8, 16]
    assert (frame.frame_index, frame.pts_seconds) == (2, pytest.approx(0.2))


CORNERS = {  # Clockwise from the top left, after turning the picture clockwise.
    0: ["red", "green", "white", "blue"],
    90: ["blue", "red", "green", "white"],
    180: ["white", "blue", "red", "green"],
    270: ["green", "white", "blue", "red"],
}


def corner_colours(image: NDArray[np.uint8]) -> list[str]:
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    corners = [image[4, 4], image[4, -5], image[-5, -5], image[-5, 4]]
    return [names[tuple((corner > 128).astype(int).tolist())] for corner in corners]


@pytest.mark.parametrize("degrees", CORNERS)
@pytest.mark.parametrize("decoder", ["whichever comes first", "PyAV"])
def test_a_picture_is_turned_as_players_turn_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degrees: int, decoder: str
):
    path = encode_video(tmp_path / "clip.mp4", images=[four_colours()] * 4)
    if degrees:
        turn_clockwise(path, degrees)
    if decoder == "PyAV":
        monkeypatch.setitem(sys.modules, "decord", None)
    (frame,) = read(path, pick(1)).frames
    image = decode_png(frame.png)
    assert corner_colours(image) == CORNERS[degrees]
    size = (64, 48) if degrees in {0, 180} else (48, 64)
    assert (frame.width_px, frame.height_px) == size
    assert image.shape == (size[1], size[0], 3)
    probe = probe_video(path)
    assert (probe.width_px, probe.height_px) == size


def test_a_probe_tells_what_the_container_says(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mkv", codec="libx265", options=x265_open_gop(), fps=25)
    probe = probe_video(path)
    assert (probe.codec, probe.fps, probe.frame_count) == ("hevc", 25.0, FRAME_COUNT)
    assert probe.duration_seconds == pytest.approx(FRAME_COUNT / 25, abs=1e-3)  # Matroska: 1 ms.


def test_frames_are_counted_where_the_container_does_not_say(tmp_path: Path):
    path = encode_video(tmp_path / "clip.ts")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(path).frame_count == FRAME_COUNT


def failure(path: Path) -> ReadFailure:
    with pytest.raises(VideoReadError) as raised:
        probe_video(path)
    assert raised.value.detail
    assert "\n" not in raised.value.detail
    return raised.value.failure


@pytest.mark.parametrize("content", [b"", b"some text, no video\n" * 50, b"\x00" * 5000])
def test_a_file_without_a_video_is_not_a_video(tmp_path: Path, content: bytes):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert failure(path) is ReadFailure.NOT_A_VIDEO


def test_sound_alone_is_not_a_video(tmp_path: Path):
    assert failure(encode_sound(tmp_path / "sound.mp4")) is ReadFailure.NOT_A_VIDEO


def test_a_broken_download_is_not_a_video(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:1500])  # MP4's index is its end.
    assert failure(path) is ReadFailure.NOT_A_VIDEO


def test_a_file_that_is_not_there_is_the_operating_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        probe_video(tmp_path / "nowhere.mp4")


def test_pictures_that_are_lost_fail_to_decode(tmp_path: Path):
    path = wipe_coded_pictures(encode_video(tmp_path / "clip.mp4"), from_share=0.5)
    with pytest.raises(VideoReadError) as raised:
        read(path)
    assert raised.value.failure is ReadFailure.DECODE_FAILED
    assert "\n" not in raised.value.detail


def test_pictures_before_those_that_are_lost_can_be_read(tmp_path: Path):
    path = wipe_coded_pictures(encode_video(tmp_path / "clip.mp4"), from_share=0.9)
    assert numbers(read(path, pick(0, 3)).frames) == [0, 3]


def test_a_video_that_ends_early_gives_what_there_is(tmp_path: Path):
    path = encode_video(tmp_path / "clip.mkv", options=x264(keyframe_interval=4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    chunk = read(path)
    assert 0 < len(chunk.frames) < FRAME_COUNT
    assert numbers(chunk.frames) == list(range(len(chunk.frames)))
