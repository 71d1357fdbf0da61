import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_assets.curation.reasons import RejectReason
from ocr_assets.curation.selection import (
    KEPT,
    Decision,
    RuleError,
    SelectionRule,
    SeveralVideos,
    UnscoredPolicy,
    UnscoredSamplesError,
    decide,
)

ABOVE = Decision(is_kept=False, reason=RejectReason.TEXT_AREA_ABOVE_MAX)
BELOW = Decision(is_kept=False, reason=RejectReason.TEXT_AREA_BELOW_MIN)
UNSCORED = Decision(is_kept=False, reason=RejectReason.UNSCORED)

METRICS = {"clean": 0.05, "also clean": 0.02, "full": 0.5, "bare": 0.0}


def rule(
    several_videos: SeveralVideos = SeveralVideos.ANY,
    unscored: UnscoredPolicy = UnscoredPolicy.DROP,
    *,
    min_ratio: float = 0.01,
    max_ratio: float = 0.07,
) -> SelectionRule:
    return SelectionRule(
        min_ratio=min_ratio, max_ratio=max_ratio, several_videos=several_videos, unscored=unscored
    )


ANY, ALL = rule(SeveralVideos.ANY), rule(SeveralVideos.ALL)


@pytest.mark.parametrize(
    ("video_ids", "by_any", "by_all"),
    [
        ([], KEPT, KEPT),
        (["clean"], KEPT, KEPT),
        (["full"], ABOVE, ABOVE),
        (["bare"], BELOW, BELOW),
        (["unknown"], UNSCORED, UNSCORED),
        (["clean", "also clean"], KEPT, KEPT),
        (["clean", "full"], KEPT, ABOVE),
        (["clean", "bare"], KEPT, BELOW),
        (["full", "bare"], ABOVE, ABOVE),
        (["clean", "unknown"], KEPT, UNSCORED),
        (["full", "unknown"], UNSCORED, ABOVE),
        (["bare", "unknown"], UNSCORED, BELOW),
        (["unknown", "clean", "full"], KEPT, ABOVE),
        (["unknown", "unknown"], UNSCORED, UNSCORED),
    ],
    ids=lambda value: "+".join(value) or "no video" if isinstance(value, list) else "",
)
def test_a_sample_is_settled_by_its_scored_videos_where_they_settle_it(
    video_ids: list[str], by_any: Decision, by_all: Decision
):
    assert decide(ANY, video_ids, METRICS) == by_any
    assert decide(ALL, video_ids, METRICS) == by_all


@pytest.mark.parametrize("value", [0.01, 0.07])
def test_both_bounds_are_included(value: float):
    assert decide(ANY, ["video"], {"video": value}) == KEPT


@pytest.mark.parametrize(
    ("value", "decision"), [(math.nextafter(0.07, 1), ABOVE), (math.nextafter(0.01, 0), BELOW)]
)
def test_what_is_just_out_of_bounds_is_dropped(value: float, decision: Decision):
    assert decide(ANY, ["video"], {"video": value}) == decision


@pytest.mark.parametrize("several_videos", SeveralVideos)
def test_keeps_what_cannot_be_judged_where_the_rule_says_so(several_videos: SeveralVideos):
    kind = rule(several_videos, UnscoredPolicy.KEEP)
    assert decide(kind, ["unknown"], METRICS).is_kept


@pytest.mark.parametrize("several_videos", SeveralVideos)
def test_fails_on_what_cannot_be_judged_where_the_rule_says_so(several_videos: SeveralVideos):
    strict = rule(several_videos, UnscoredPolicy.FAIL)
    with pytest.raises(UnscoredSamplesError, match="set unscored to drop or keep"):
        decide(strict, ["unknown"], METRICS)


def test_the_error_names_the_sample_that_cannot_be_judged():
    strict = rule(unscored=UnscoredPolicy.FAIL)
    with pytest.raises(UnscoredSamplesError, match="unknown-4711"):
        decide(strict, ["full", "unknown-4711"], METRICS)


def test_does_not_fail_on_a_sample_that_its_scored_videos_settle():
    strict = rule(SeveralVideos.ALL, UnscoredPolicy.FAIL)
    assert decide(strict, ["full", "unknown"], METRICS) == ABOVE


@pytest.mark.parametrize("policy", UnscoredPolicy)
def test_the_policy_for_the_unscored_does_not_touch_the_scored(policy: UnscoredPolicy):
    assert decide(rule(unscored=policy), ["clean"], METRICS) == KEPT
    assert decide(rule(unscored=policy), ["full"], METRICS) == ABOVE


def test_rejects_a_rule_that_nothing_could_satisfy():
    with pytest.raises(RuleError, match=r"min_ratio 0\.5 is above max_ratio 0\.07"):
        rule(min_ratio=0.5)


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_rejects_bounds_that_are_no_numbers(bound: float):
    with pytest.raises(RuleError, match="must be finite"):
        rule(max_ratio=bound)
    with pytest.raises(RuleError, match="must be finite"):
        rule(min_ratio=bound)


def test_a_rule_of_one_value_is_a_rule():
    assert decide(rule(min_ratio=0.05, max_ratio=0.05), ["clean"], METRICS) == KEPT


metrics = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), max_size=6)
samples = st.lists(st.sampled_from("abcdef"), max_size=4)


@given(samples, metrics, st.floats(0, 1), st.sampled_from(SeveralVideos))
def test_a_score_for_the_unscored_never_overturns_a_settled_sample(
    video_ids: list[str],
    metric_by_video: dict[str, float],
    late_score: float,
    several_videos: SeveralVideos,
):
    before = decide(rule(several_videos), video_ids, metric_by_video)
    late = dict.fromkeys(video_ids, late_score) | metric_by_video
    after = decide(rule(several_videos), video_ids, late)
    if before != UNSCORED:
        assert after.is_kept is before.is_kept


@given(samples, metrics)
def test_what_all_keeps_any_keeps(video_ids: list[str], metric_by_video: dict[str, float]):
    if decide(ALL, video_ids, metric_by_video).is_kept:
        assert decide(ANY, video_ids, metric_by_video).is_kept
