import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocr_assets.curation.sampling import (
    Every,
    Keyframes,
    SamplerError,
    SegmentSelector,
    Timeline,
    Uniform,
    parse_sampler,
)


def timeline(
    frame_count: int, *, fps: float = 10.0, keyframe_interval: int = 4, start_seconds: float = 0.0
) -> Timeline:
    return Timeline(
        pts_seconds=start_seconds + np.arange(frame_count) / fps,
        is_keyframe=np.arange(frame_count) % keyframe_interval == 0,
        duration_seconds=frame_count / fps,
    )


def data_juicers_frames(
    pts_seconds: NDArray[np.float64], duration_seconds: float, n: int
) -> set[int]:
    """Data-Juicer's `extract_video_frames_uniformly`, one time after another."""
    count = min(n, len(pts_seconds))
    step = duration_seconds / 2 if count == 1 else duration_seconds / (count - 1)
    times = [step] if count == 1 else [step * i for i in range(count)]
    return {
        # Half a tick of the finest usual time base, 1/90000 s: where rounding errors decide.
        next((i for i, pts in enumerate(pts_seconds) if pts >= time - 0.5 / 90_000), count_last)
        for count_last in [len(pts_seconds) - 1]
        for time in times
    }


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any ascending timestamps: recordings begin late, frame rates vary."""
    start = draw(st.floats(0, 1e5))
    gaps = draw(st.lists(st.floats(0.001, 5), max_size=60))
    pts = start + np.cumsum([0.0, *gaps]) if draw(st.booleans()) or gaps else np.zeros(0)
    flags = draw(st.lists(st.booleans(), min_size=len(pts), max_size=len(pts)))
    duration = draw(st.floats(0, 200))
    return Timeline(pts, np.array(flags, np.bool_), duration)


samplers = st.one_of(
    st.builds(Uniform, st.integers(1, 40)),
    st.builds(Every, st.floats(0.05, 100)),
    st.just(Keyframes()),
)


def test_uniform_1_takes_the_middle():
    assert Uniform(1).select(timeline(41)).tolist() == [21]


def test_uniform_3_takes_first_middle_and_last():
    assert Uniform(3).select(timeline(40)).tolist() == [0, 20, 39]


def test_uniform_takes_the_last_frame_where_the_end_is_passed():
    late = Timeline(np.array([0.0, 0.5]), np.array([True, False]), duration_seconds=30.0)
    assert Uniform(2).select(late).tolist() == [0, 1]


def test_uniform_takes_the_first_frame_at_or_after_each_time():
    uneven = Timeline(np.array([0.0, 0.9, 2.1, 2.2, 4.0]), np.ones(5, np.bool_), 4.0)
    assert Uniform(3).select(uneven).tolist() == [0, 2, 4]


def test_uniform_with_more_than_there_are_asks_for_as_many_as_there_are():
    assert Uniform(100).select(timeline(6)).tolist() == Uniform(6).select(timeline(6)).tolist()


def test_uniform_gives_a_video_of_one_frame_whole():
    assert Uniform(3).select(timeline(1)).tolist() == [0]


def test_uniform_is_not_thrown_off_by_a_timestamp_rounded_to_ticks():
    fps = 30_000 / 1001
    pts = np.round(np.arange(301) / fps * 90_000) / 90_000
    rounded = Timeline(pts, np.ones(301, np.bool_), duration_seconds=300 / fps)
    assert Uniform(4).select(rounded).tolist() == [0, 100, 200, 300]


@given(
    frame_count=st.integers(1, 60),
    fps=st.sampled_from([10.0, 24.0, 30_000 / 1001]),
    n=st.integers(1, 70),
)
def test_uniform_is_data_juicers_rule(frame_count: int, fps: float, n: int):
    frames = timeline(frame_count, fps=fps)
    expected = data_juicers_frames(frames.pts_seconds, frames.duration_seconds, n)
    assert set(Uniform(n).select(frames).tolist()) == expected


def test_every_takes_a_frame_per_interval_and_none_at_the_end():
    assert Every(1.0).select(timeline(40)).tolist() == [0, 10, 20, 30]


def test_every_takes_no_frame_at_the_end_where_the_division_rounds_up():
    # 2.1 / 0.3 is 7.000000000000001 in doubles.
    assert Every(0.3).select(timeline(21)).tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_every_longer_than_the_video_takes_the_first_frame():
    assert Every(60.0).select(timeline(40)).tolist() == [0]


def test_every_takes_one_frame_where_no_duration_is_stated():
    unstated = Timeline(np.arange(5) / 10, np.ones(5, np.bool_), duration_seconds=0.0)
    assert Every(0.1).select(unstated).tolist() == [0]


def test_keyframes_takes_what_decodes_on_its_own():
    assert Keyframes().select(timeline(10)).tolist() == [0, 4, 8]


@pytest.mark.parametrize("sampler", [Uniform(3), Every(1.0), Keyframes()])
def test_a_video_without_frames_gives_none(sampler: Uniform | Every | Keyframes):
    empty = Timeline(np.zeros(0), np.zeros(0, np.bool_), duration_seconds=4.0)
    assert sampler.select(empty).tolist() == []


@given(sampler=samplers, frames=timelines())
def test_picked_frames_exist_and_ascend(sampler: Uniform | Every | Keyframes, frames: Timeline):
    picked = sampler.select(frames).tolist()
    assert picked == sorted(set(picked))
    assert all(0 <= index < len(frames.pts_seconds) for index in picked)


@given(sampler=samplers, frame_count=st.integers(1, 200))
def test_the_expected_count_is_never_more_than_there_are_frames(
    sampler: Uniform | Every | Keyframes, frame_count: int
):
    assert 0 < sampler.expected_count(frame_count / 10, frame_count) <= frame_count


@pytest.mark.parametrize(
    ("sampler", "count"), [(Uniform(3), 3), (Every(2.0), 300), (Keyframes(), 120)]
)
def test_the_expected_count_of_ten_minutes(sampler: Uniform | Every | Keyframes, count: float):
    assert sampler.expected_count(600.0, 15_000) == count


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("uniform(3)", "uniform(3)"),
        ("  uniform ( 3 ) ", "uniform(3)"),
        ("uniform(03)", "uniform(3)"),
        ("every(2.0)", "every(2)"),
        ("every(0.5)", "every(0.5)"),
        ("keyframes", "keyframes"),
        ("keyframes()", "keyframes"),
    ],
)
def test_a_samplers_text_is_made_canonical(text: str, canonical: str):
    assert str(parse_sampler(text)) == canonical


@given(samplers)
def test_a_samplers_text_reads_back_as_the_same_sampler(sampler: Uniform | Every | Keyframes):
    assert parse_sampler(str(sampler)) == sampler


@pytest.mark.parametrize(
    "text",
    [
        "",
        "uniform",
        "uniform()",
        "uniform(0)",
        "uniform(-1)",
        "uniform(2.5)",
        "uniform(three)",
        "uniform(3",
        "uniform(3)(3)",
        "every(0)",
        "every(-1)",
        "every(nan)",
        "every(inf)",
        "every",
        "keyframes(2)",
        "Uniform(3)",
        "all",
    ],
)
def test_rejects_a_sampler_that_there_is_not(text: str):
    with pytest.raises(SamplerError, match="use one of: uniform") as raised:
        parse_sampler(text)
    assert repr(text) in str(raised.value)


def segments_of(cuts: Sequence[float]) -> list[tuple[float, float]]:
    """Segments as `cut_into_segments` makes them: from zero, the last one open-ended."""
    edges = [0.0, *cuts, math.inf]
    return list(itertools.pairwise(edges))


@given(
    sampler=samplers,
    frames=timelines(),
    cuts=st.lists(st.floats(0.1, 300), max_size=6, unique=True).map(sorted),
)
def test_segments_share_out_the_whole_videos_selection(
    sampler: Uniform | Every | Keyframes, frames: Timeline, cuts: list[float]
):
    text = str(sampler)
    shares = [
        SegmentSelector(text, frames.duration_seconds, start, end)(
            frames.pts_seconds, frames.is_keyframe
        ).tolist()
        for start, end in segments_of(cuts)
    ]
    together = [index for share in shares for index in share]
    # Equality of lists, not of sets: a frame in two segments would stand in it twice.
    assert together == parse_sampler(text).select(frames).tolist()


def test_a_frame_timed_before_zero_belongs_to_the_first_segment():
    frames = timeline(40, start_seconds=-0.2)
    shares = [
        SegmentSelector("keyframes", 4.0, start, end)(frames.pts_seconds, frames.is_keyframe)
        for start, end in segments_of([2.0])
    ]
    assert np.concatenate(shares).tolist() == Keyframes().select(frames).tolist()


def test_a_frame_on_a_cut_belongs_to_the_later_segment():
    frames = timeline(40)
    before = SegmentSelector("every(1)", 4.0, 0.0, 2.0)(frames.pts_seconds, frames.is_keyframe)
    after = SegmentSelector("every(1)", 4.0, 2.0, math.inf)(frames.pts_seconds, frames.is_keyframe)
    assert (before.tolist(), after.tolist()) == ([0, 10], [20, 30])
