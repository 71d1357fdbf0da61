import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_assets.curation.sampling import Every, Uniform
from ocr_assets.curation.sharding import (
    FRAME_OVERHEAD_MEGAPIXELS,
    Segment,
    cut_into_segments,
    deal_into_shards,
    shard_key,
)


def segments(*costs: float) -> list[Segment]:
    return [
        Segment(f"video{index}", 0, 0.0, math.inf, cost_megapixels=cost)
        for index, cost in enumerate(costs)
    ]


def deal(
    undealt: Sequence[Segment], *, target: float = 10.0, at_least: int = 1, first: int = 1
) -> list[Segment]:
    return deal_into_shards(
        undealt, first_number=first, target_megapixels=target, min_shard_count=at_least
    )


def cut(duration_seconds: float, segment_seconds: float = 60.0) -> list[Segment]:
    return cut_into_segments(
        "video",
        duration_seconds=duration_seconds,
        frame_count=round(duration_seconds * 25),
        frame_megapixels=0.5,
        segment_seconds=segment_seconds,
        sampler=Every(1.0),
    )


def loads(dealt: Sequence[Segment]) -> dict[str, float]:
    by_shard: defaultdict[str, float] = defaultdict(float)
    for segment in dealt:
        by_shard[segment.shard] += segment.cost_megapixels
    return dict(by_shard)


costs = st.lists(st.floats(0.01, 100), max_size=60)


@given(costs, st.floats(0.5, 200), st.integers(0, 20))
def test_every_segment_is_dealt_exactly_once(
    given_costs: list[float], target: float, at_least: int
):
    undealt = segments(*given_costs)
    dealt = deal(undealt, target=target, at_least=at_least)
    assert Counter(s.video_id for s in dealt) == Counter(s.video_id for s in undealt)


@given(costs, st.floats(0.5, 200), st.integers(0, 20))
def test_no_shard_is_empty_and_there_are_as_many_as_asked_for(
    given_costs: list[float], target: float, at_least: int
):
    shards = loads(deal(segments(*given_costs), target=target, at_least=at_least))
    needed = max(math.ceil(sum(given_costs) / target), at_least, 1)
    assert len(shards) == min(needed, len(given_costs))


@given(costs.filter(bool), st.floats(0.5, 200), st.integers(0, 20))
def test_no_shard_is_heavier_than_greedy_dealing_allows(
    given_costs: list[float], target: float, at_least: int
):
    shards = loads(deal(segments(*given_costs), target=target, at_least=at_least))
    # Graham 1966: a segment goes where the load is at most the mean of what was dealt before it.
    mean, dearest = sum(given_costs) / len(shards), max(given_costs)
    bound = mean + dearest * (1 - 1 / len(shards))
    assert max(shards.values()) <= bound * (1 + 1e-9)  # Sums of doubles in another order.


@given(costs, st.floats(0.5, 200))
def test_a_segment_dearer_than_the_target_has_a_shard_to_itself(
    given_costs: list[float], target: float
):
    dealt = deal(segments(*given_costs), target=target)
    members = Counter(segment.shard for segment in dealt)
    # Just above the target, rounding of the sum may decide; a thousandth more, nothing does.
    dear = [segment for segment in dealt if segment.cost_megapixels > 1.001 * target]
    assert all(members[segment.shard] == 1 for segment in dear)


@given(costs, st.randoms(use_true_random=False))
def test_the_deal_does_not_depend_on_the_order_of_the_segments(
    given_costs: list[float], shuffler: random.Random
):
    undealt = segments(*given_costs)
    shuffled = shuffler.sample(undealt, len(undealt))
    assert deal(shuffled) == deal(undealt)


def test_equal_segments_are_spread_evenly():
    assert set(loads(deal(segments(*[1.0] * 40))).values()) == {10.0}


def test_nothing_is_dealt_into_no_shard():
    assert deal([], at_least=8) == []


def test_keys_go_on_where_they_ended():
    keys = [segment.shard for segment in deal(segments(9.0, 9.0, 9.0), first=42)]
    assert keys == ["s000042", "s000043", "s000044"]


def test_a_small_corpus_is_spread_over_the_slots():
    assert len(loads(deal(segments(1.0, 1.0, 1.0, 1.0), at_least=3))) == 3


def test_dealt_segments_stand_in_the_order_of_shard_video_and_segment():
    dealt = deal([*cut(600.0), *segments(5.0, 7.0, 80.0)])
    assert dealt == sorted(dealt, key=lambda s: (s.shard, s.video_id, s.segment_index))


def test_shard_keys_sort_as_their_numbers_do():
    keys = [shard_key(number) for number in (1, 9, 10, 99_999, 999_999)]
    assert keys == sorted(keys)


def test_a_short_video_is_one_segment():
    (only,) = cut(59.9)
    assert (only.segment_index, only.start_seconds, only.end_seconds) == (0, 0.0, math.inf)


def test_a_video_without_a_stated_duration_is_one_segment():
    assert len(cut(0.0)) == 1


def test_a_video_as_long_as_a_segment_is_one_segment():
    assert len(cut(60.0)) == 1


@given(st.floats(0, 4000), st.floats(10, 3600))
def test_segments_cover_all_time_without_overlap(duration_seconds: float, segment_seconds: float):
    pieces = cut(duration_seconds, segment_seconds)
    assert pieces[0].start_seconds == 0.0
    assert pieces[-1].end_seconds == math.inf
    assert [p.end_seconds for p in pieces[:-1]] == [p.start_seconds for p in pieces[1:]]
    assert [p.segment_index for p in pieces] == list(range(len(pieces)))
    assert all(p.start_seconds < duration_seconds for p in pieces[1:])


def test_a_wild_stated_duration_makes_no_more_segments_than_there_are_frames():
    pieces = cut_into_segments(
        "video",
        duration_seconds=1e7,  # Four months, says the container of a clip of 25 frames.
        frame_count=25,
        frame_megapixels=0.5,
        segment_seconds=60.0,
        sampler=Uniform(3),
    )
    assert len(pieces) <= 25


def test_the_cost_is_the_sampled_frames_times_their_pixels():
    pieces = cut(600.0)
    assert len(pieces) == 10
    expected = 600 * (0.5 + FRAME_OVERHEAD_MEGAPIXELS)
    assert sum(p.cost_megapixels for p in pieces) == pytest.approx(expected)
