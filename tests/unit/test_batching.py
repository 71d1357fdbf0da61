from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ocr_assets.curation.batching import batches_of_equal_size


@dataclass(frozen=True)
class Frame:
    name: int
    height_px: int
    width_px: int

    @property
    def px(self) -> int:
        return self.height_px * self.width_px


def frames_of(*sizes: tuple[int, int]) -> list[Frame]:
    return [Frame(name, height, width) for name, (height, width) in enumerate(sizes)]


def names(batches: Iterable[list[Frame]]) -> list[list[int]]:
    return [[frame.name for frame in batch] for batch in batches]


some_frames = st.lists(
    st.sampled_from([(2, 3), (3, 2), (4, 4), (1, 1), (10, 10)]), max_size=80
).map(lambda sizes: frames_of(*sizes))
batch_sizes = st.integers(1, 200)


@given(some_frames, batch_sizes, st.integers(0, 500))
def test_every_frame_comes_out_exactly_once(frames: list[Frame], batch_px: int, buffer_px: int):
    batches = list(batches_of_equal_size(frames, batch_px=batch_px, buffer_px=buffer_px))
    assert Counter(frame for batch in batches for frame in batch) == Counter(frames)
    assert all(batches)


@given(some_frames, batch_sizes, st.integers(0, 500))
def test_the_frames_of_a_batch_are_of_one_size_and_in_order(
    frames: list[Frame], batch_px: int, buffer_px: int
):
    for batch in batches_of_equal_size(frames, batch_px=batch_px, buffer_px=buffer_px):
        assert len({(frame.height_px, frame.width_px) for frame in batch}) == 1
        assert [frame.name for frame in batch] == sorted(frame.name for frame in batch)


@given(some_frames, batch_sizes, st.integers(0, 500))
def test_no_batch_is_larger_than_asked_for_unless_it_is_one_frame(
    frames: list[Frame], batch_px: int, buffer_px: int
):
    for batch in batches_of_equal_size(frames, batch_px=batch_px, buffer_px=buffer_px):
        assert len(batch) == 1 or sum(frame.px for frame in batch) <= batch_px


@given(some_frames, batch_sizes, st.integers(0, 500))
def test_no_more_pixels_wait_than_the_buffer_holds(
    frames: list[Frame], batch_px: int, buffer_px: int
):
    waiting_px = 0
    seen_px: list[int] = []

    def watched() -> Iterator[Frame]:
        nonlocal waiting_px
        for frame in frames:
            seen_px.append(waiting_px)
            waiting_px += frame.px
            yield frame

    for batch in batches_of_equal_size(watched(), batch_px=batch_px, buffer_px=buffer_px):
        waiting_px -= sum(frame.px for frame in batch)
    assert waiting_px == 0
    assert all(px <= buffer_px for px in seen_px)


@given(some_frames, batch_sizes)
def test_the_same_frames_are_batched_in_the_same_way(frames: list[Frame], batch_px: int):
    once = list(batches_of_equal_size(frames, batch_px=batch_px, buffer_px=100))
    assert once == list(batches_of_equal_size(iter(frames), batch_px=batch_px, buffer_px=100))


def test_frames_of_equal_size_fill_batches():
    frames = frames_of(*[(10, 10)] * 5)
    batches = batches_of_equal_size(frames, batch_px=200, buffer_px=10_000)
    assert names(batches) == [[0, 1], [2, 3], [4]]


def test_sizes_that_take_turns_fill_batches_all_the_same():
    frames = frames_of(*[(10, 10), (5, 20)] * 2)
    batches = batches_of_equal_size(frames, batch_px=200, buffer_px=10_000)
    assert names(batches) == [[0, 2], [1, 3]]


def test_a_frame_larger_than_a_batch_goes_alone():
    frames = frames_of((100, 100), (100, 100))
    assert names(batches_of_equal_size(frames, batch_px=1, buffer_px=10_000)) == [[0], [1]]


def test_the_size_with_most_pixels_goes_first_when_the_buffer_is_full():
    frames = frames_of((1, 1), (10, 10), (1, 1), (10, 11))
    batches = batches_of_equal_size(frames, batch_px=1000, buffer_px=150)
    assert names(batches) == [[3], [0, 2], [1]]


def test_no_frames_make_no_batch():
    assert list(batches_of_equal_size([], batch_px=1, buffer_px=1)) == []
