"""Selection: the rule that keeps or drops a sample, and the reason it gives.

Computing a score is not selecting: a rule reads what is in the tables and costs no frame and no
model. A video without a score is neither in nor out of bounds; three-valued logic carries that
through `any` and `all`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ocr_assets.curation.reasons import RejectReason


class Metric(StrEnum):
    """What the rule looks at: a column of the view `video_scores`."""

    TEXT_AREA_RATIO_MEAN = "text_area_ratio_mean"
    TEXT_AREA_RATIO_MAX = "text_area_ratio_max"
    TEXT_AREA_RATIO_P95 = "text_area_ratio_p95"
    TEXT_FRAME_RATIO = "text_frame_ratio"
    BOX_AREA_RATIO_MEAN = "box_area_ratio_mean"


class SeveralVideos(StrEnum):
    """When a sample with several videos is kept."""

    ANY = "any"
    ALL = "all"


class UnscoredPolicy(StrEnum):
    """What happens to a sample that cannot be judged because a video of it has no score."""

    DROP = "drop"
    KEEP = "keep"
    FAIL = "fail"


class RuleError(ValueError):
    """A rule that nothing could satisfy. The message names the values."""


@dataclass(frozen=True)
class SelectionRule:
    """Keeps a sample whose videos have min_ratio <= metric <= max_ratio (both ends included).

    Raises:
        RuleError: If a bound is not a number or min_ratio > max_ratio.
    """

    metric: Metric = Metric.TEXT_AREA_RATIO_MEAN
    min_ratio: float = 0.0
    max_ratio: float = 0.07
    several_videos: SeveralVideos = SeveralVideos.ANY
    unscored: UnscoredPolicy = UnscoredPolicy.DROP

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_ratio) and math.isfinite(self.max_ratio)):
            raise RuleError(
                f"min_ratio and max_ratio must be finite numbers, got {self.min_ratio} and"
                f" {self.max_ratio}"
            )
        if self.min_ratio > self.max_ratio:
            raise RuleError(
                f"min_ratio {self.min_ratio:g} is above max_ratio {self.max_ratio:g}, so nothing"
                " could be kept; lower min_ratio or raise max_ratio"
            )

    def __str__(self) -> str:
        return (
            f"{self.min_ratio:g} <= {self.metric.value} <= {self.max_ratio:g} for"
            f" {self.several_videos.value} of a sample's videos; unscored: {self.unscored.value}"
        )


@dataclass(frozen=True)
class Decision:
    """What became of one sample.

    Attributes:
        is_kept: Whether it is in the filtered dataset.
        reason: Why not, or that it was kept unjudged; None where it passed.
    """

    is_kept: bool
    reason: RejectReason | None


KEPT = Decision(is_kept=True, reason=None)


class UnscoredSamplesError(Exception):
    """The rule says `unscored: fail` and a sample cannot be judged. The message names it."""


def decide(
    rule: SelectionRule, video_ids: Sequence[str], metric_by_video: Mapping[str, float]
) -> Decision:
    """Applies the rule to one sample.

    Args:
        rule: The rule.
        video_ids: The content ids of the sample's videos. A sample without videos is kept, as
            Data-Juicer keeps it: there is no text on screen.
        metric_by_video: The rule's metric for every scored video; a video that is not in it is
            unscored.

    Returns:
        The decision. A sample whose fate its scored videos already settle is settled; only one
        that an unscored video could still turn is `unscored`.

    Raises:
        UnscoredSamplesError: If the rule's policy is `fail` and the sample cannot be judged.
    """
    values = [metric_by_video.get(video_id) for video_id in video_ids]
    scored = [value for value in values if value is not None]
    passes = [rule.min_ratio <= value <= rule.max_ratio for value in scored]
    is_open = len(scored) < len(values)
    if rule.several_videos is SeveralVideos.ANY:
        is_settled, is_kept = (any(passes) or not is_open), (any(passes) or not values)
    else:
        is_settled, is_kept = (not all(passes) or not is_open), all(passes)
    if not is_settled:
        unscored = [v for v, value in zip(video_ids, values, strict=True) if value is None]
        return _unjudged(rule.unscored, unscored)
    if is_kept:
        return KEPT
    is_above = any(value > rule.max_ratio for value in scored)
    return Decision(
        is_kept=False,
        reason=RejectReason.TEXT_AREA_ABOVE_MAX if is_above else RejectReason.TEXT_AREA_BELOW_MIN,
    )


def _unjudged(policy: UnscoredPolicy, unscored: Sequence[str]) -> Decision:
    if policy is UnscoredPolicy.FAIL:
        raise UnscoredSamplesError(
            f"a sample cannot be judged without {', '.join(unscored)}, and the rule says unscored:"
            " fail; see the table `unscored` for the reason, or set unscored to drop or keep"
        )
    return Decision(is_kept=policy is UnscoredPolicy.KEEP, reason=RejectReason.UNSCORED)
