"""The report's numbers: what each threshold would keep, and which clips are worth a look.

Belongs here: arithmetic on verdicts. Does not belong here: where the verdicts come from, pictures,
and how the page looks.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.selection import Metric, SelectionRule, SeveralVideos, UnscoredPolicy

GROUP_SIZE = 24
"""Clips per group of the gallery; a dataset of no more clips is shown whole, as one group."""

MAX_EXACT_STEPS = 10_000
"""Beyond so many different values the page holds the yield at the slider's stops alone: about 25
bytes each, they would outweigh the pictures."""

STOP_COUNT = 1000
"""Steps of the slider: more than a screen has pixels to put it on."""

COMMON_THRESHOLDS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Whose yield is always exact: public pipelines state 0.02 to 0.07."""

BIN_COUNT = 40

SHEET_GROUP_SIZE = 4
"""Clips per group of the contact sheet, one row of it."""

METRIC_IN_WORDS: Mapping[Metric, str] = {
    Metric.TEXT_AREA_RATIO_MEAN: "share of the picture that is text, mean over a video's frames",
    Metric.TEXT_AREA_RATIO_MAX: "share of the picture that is text, in the frame with most of it",
    Metric.TEXT_AREA_RATIO_P95: "share of the picture that is text, 95th percentile of the frames",
    Metric.TEXT_FRAME_RATIO: "share of a video's frames that show any text",
    Metric.BOX_AREA_RATIO_MEAN: "sum of box areas over the frame's area, mean over the frames",
}

REASON_IN_WORDS: Mapping[str, str] = {
    UnscoredReason.FILE_MISSING: "The path does not exist any more.",
    UnscoredReason.FILE_UNREADABLE: "The operating system would not let us read it.",
    UnscoredReason.FILE_EMPTY: "The file has no bytes.",
    UnscoredReason.FILE_CHANGED: "Its bytes are no longer those that discovery identified.",
    UnscoredReason.NOT_A_VIDEO: "No decoder recognises it, or it holds no video stream.",
    UnscoredReason.NO_FRAMES: "A video stream without one frame that could be decoded.",
    UnscoredReason.DECODE_FAILED: "Every decoder gave an error on a sampled frame.",
    UnscoredReason.DECODE_TIMED_OUT: "Decoding did not end in time and was stopped.",
    UnscoredReason.DECODER_CRASHED: "The decoder took its process down.",
    UnscoredReason.DETECTION_FAILED: "The text detector gave an error on a frame.",
    UnscoredReason.OUT_OF_MEMORY: "A frame alone did not fit the device's memory.",
    UnscoredReason.NOT_SCORED_YET: "Discovered, but its frames or scores are still to be made.",
}


@dataclass(frozen=True)
class Clip:
    """One scored video of the dataset, with what decides whether its sample is kept.

    Attributes:
        video_id: Content id.
        path: Where it lies; of copies, the first in the order of the sources.
        value: The rule's metric.
        kept_from: Of its first sample: see `kept_from`.
        sample_count: Samples that it is in.
        companion_count: Other videos in its first sample.
    """

    video_id: str
    path: str
    value: float
    kept_from: float
    sample_count: int = 1
    companion_count: int = 0


@dataclass(frozen=True)
class ClipFrame:
    """The frame that stands for a clip: the one with most text.

    Attributes:
        shard: Where it lies.
        frame_index: From 0 in presentation order.
        pts_seconds: When it is shown.
        width_px: Width as shown.
        height_px: Height as shown.
        text_area_ratio: Its own.
        boxes: Eight numbers x1, y1, … x4, y4 each, in pixels of the frame, clockwise from the
            text's top left. Corners may lie outside the frame.
    """

    shard: str
    frame_index: int
    pts_seconds: float
    width_px: int
    height_px: int
    text_area_ratio: float
    boxes: Sequence[Sequence[float]]


class GroupKind(StrEnum):
    """Why a clip is in the gallery."""

    EVERY = "every"
    HIGHEST = "highest"
    BORDERLINE = "borderline"
    RANDOM = "random"


@dataclass(frozen=True)
class ClipGroup:
    """Clips of one kind, those that matter most first."""

    kind: GroupKind
    clips: Sequence[Clip]


@dataclass(frozen=True)
class YieldSteps:
    """How many samples each `max_ratio` keeps: a step function.

    Attributes:
        edges: Where it steps, ascending.
        kept: Samples kept at each edge, and up to the next.
        is_exact: Whether every step is there; else only what is kept at the slider's stops, at
            common thresholds and at the rule's own.
    """

    edges: Sequence[float]
    kept: Sequence[int]
    is_exact: bool

    def at(self, max_ratio: float) -> int:
        """Samples kept at the last edge that is not above `max_ratio`."""
        index = bisect_right(self.edges, max_ratio) - 1
        return self.kept[index] if index >= 0 else 0


@dataclass(frozen=True)
class Axis:
    """The axis of values: the square root, since thresholds lie where little is text.

    On a straight axis 0.02 and 0.07 are 5 % of its length apart, on this one 12 %.

    Attributes:
        top: The value at its end.
    """

    top: float

    def position(self, value: float) -> float:
        """Where a value lies, in [0, 1]; what is off the axis lies at its end."""
        return math.sqrt(min(max(value / self.top, 0.0), 1.0))

    def stops(self) -> list[float]:
        """The slider's values, ascending, to four places."""
        return [round(self.top * (i / STOP_COUNT) ** 2, 4) for i in range(STOP_COUNT + 1)]

    def ticks(self) -> list[float]:
        """Values to write on it, at least a twentieth of its length apart."""
        chosen: list[float] = []
        for tick in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, *_nice_from(1.0, self.top)):
            is_apart = not chosen or self.position(tick) - self.position(chosen[-1]) >= 1 / 20
            if tick <= self.top and is_apart:
                chosen.append(tick)
        return chosen


@dataclass(frozen=True)
class Histogram:
    """How many videos have which value.

    Attributes:
        zero_count: Those at exactly 0, where no text was found: often most of them.
        counts: The others, in bins of equal width on the axis.
    """

    zero_count: int
    counts: Sequence[int]


@dataclass(frozen=True)
class UnscoredVideo:
    """A file without a score, and what is known of the cause."""

    path: str
    detail: str | None


@dataclass(frozen=True)
class UnscoredGroup:
    """Files without a score, for one reason.

    Attributes:
        reason: One of `UnscoredReason`.
        count: How many there are.
        listed: The first of them.
    """

    reason: str
    count: int
    listed: Sequence[UnscoredVideo]


@dataclass(frozen=True)
class ScorerFacts:
    """What a scorer's id stands for, as the table `scorers` has it."""

    sampler: str
    detector: str
    weights_sha256: str
    parameters: str


@dataclass(frozen=True)
class Report:
    """All that the report shows.

    Attributes:
        made_at: When it was made.
        data_path: The data directory.
        rule: The rule that the dataset was assembled with.
        scorer_id: Whose scores counted.
        scorer: What the id stands for; None where nothing was scored.
        sample_count: Samples judged.
        kept_count: Of these, kept.
        never_kept_count: Samples that no `max_ratio` keeps: unscored ones and such as lie below
            `min_ratio`.
        rejected_by_reason: Samples that are not kept, by reason.
        video_count: Scored videos of the dataset, copies once.
        frame_count: Frames of them that were looked at.
        box_count: Text boxes found in these.
        unscored: Files without a score.
        axis: Of the histogram, the yield and the slider.
        histogram: Of the videos.
        steps: The yield, of the samples.
        groups: The gallery.
        frames: The frame that stands for a clip, by video id; clips may be without one.
        pictures: The frame as WebP, by video id; missing where frames are not on disk any more.
    """

    made_at: datetime
    data_path: str
    rule: SelectionRule
    scorer_id: str
    scorer: ScorerFacts | None
    sample_count: int
    kept_count: int
    never_kept_count: int
    rejected_by_reason: Mapping[str, int]
    video_count: int
    frame_count: int
    box_count: int
    unscored: Sequence[UnscoredGroup]
    axis: Axis
    histogram: Histogram
    steps: YieldSteps
    groups: Sequence[ClipGroup]
    frames: Mapping[str, ClipFrame]
    pictures: Mapping[str, bytes]

    def sheet_groups(self) -> list[ClipGroup]:
        """The clips of the contact sheet: the first of each group of the gallery."""
        if len(self.groups) > 1:
            return [ClipGroup(g.kind, g.clips[:SHEET_GROUP_SIZE]) for g in self.groups]
        return pick_clips(
            [clip for group in self.groups for clip in group.clips],
            self.rule.max_ratio,
            self.scorer_id,
            group_size=SHEET_GROUP_SIZE,
            every_up_to=3 * SHEET_GROUP_SIZE,
        )


def kept_from(rule: SelectionRule, values: Sequence[float | None]) -> float:
    """The smallest `max_ratio` at which a sample is kept; infinity if none keeps it.

    Raising `max_ratio` never drops a sample, so that this one number tells what becomes of it at
    any threshold.

    Args:
        rule: All of it but `max_ratio`.
        values: The metric of each of the sample's videos; None where unscored.

    Returns:
        The rule's `min_ratio`, the lowest that `max_ratio` may be, where every threshold keeps the
        sample. One that would stop the run under `unscored: fail` counts as not kept.
    """
    scored = [value for value in values if value is not None]
    is_open = len(scored) < len(values)
    is_open_kept = is_open and rule.unscored is UnscoredPolicy.KEEP
    if not values:
        return rule.min_ratio
    if rule.several_videos is SeveralVideos.ANY:
        if is_open_kept:
            return rule.min_ratio
        return min((value for value in scored if value >= rule.min_ratio), default=math.inf)
    if (is_open and not is_open_kept) or any(value < rule.min_ratio for value in scored):
        return math.inf
    return max(scored, default=rule.min_ratio)


def axis_for(values: Iterable[float], rule: SelectionRule) -> Axis:
    """An axis that holds all values, and the threshold unless that is above every ratio."""
    highest = max([*values, min(rule.max_ratio, 1.0), 0.1])
    return Axis(next(nice for nice in _nice_from(0.1, math.inf) if nice >= highest))


def yield_steps(thresholds: Iterable[float], rule: SelectionRule, axis: Axis) -> YieldSteps:
    """What each threshold keeps.

    Args:
        thresholds: `kept_from` of every sample.
        rule: Its `max_ratio` is always an edge, so that there the count is exact.
        axis: Whose stops are the edges where there are too many steps.
    """
    finite = sorted(value for value in thresholds if value < math.inf)
    edges = sorted({*finite, rule.max_ratio})
    is_exact = len(edges) <= MAX_EXACT_STEPS
    if not is_exact:
        edges = sorted({*axis.stops(), *COMMON_THRESHOLDS, rule.max_ratio})
    return YieldSteps(edges, [bisect_right(finite, edge) for edge in edges], is_exact)


def histogram(values: Iterable[float], axis: Axis) -> Histogram:
    """Counts values into bins that are half-open at their lower end."""
    counts = [0] * BIN_COUNT
    zero_count = 0
    for value in values:
        if value <= 0:
            zero_count += 1
        else:
            counts[math.ceil(axis.position(value) * BIN_COUNT) - 1] += 1
    return Histogram(zero_count, counts)


def pick_clips(
    clips: Sequence[Clip],
    max_ratio: float,
    seed: str,
    *,
    group_size: int = GROUP_SIZE,
    every_up_to: int = GROUP_SIZE,
) -> list[ClipGroup]:
    """Chooses the clips worth a look: each at most once.

    Args:
        clips: All scored clips.
        max_ratio: The threshold that some are to be near.
        seed: Chooses the random ones; equal seeds choose equal clips in any order of `clips`.
        group_size: At most so many clips per group.
        every_up_to: No more clips than this are one group.

    Returns:
        Everything as one group, most text first; or the highest, the borderline (nearest first,
        from both sides of the threshold) and random ones of the rest. Groups may be empty.
    """
    ranked = sorted(clips, key=lambda clip: (-clip.value, clip.path))
    if len(ranked) <= every_up_to:
        return [ClipGroup(GroupKind.EVERY, ranked)]
    # Few clips are dealt out evenly, so that the highest leave something for the others.
    size = min(group_size, math.ceil(len(ranked) / 3))
    highest = [clip for clip in ranked[:size] if clip.value > 0]
    rest = ranked[len(highest) :]
    borderline = _nearest(rest, max_ratio, size)
    taken = {clip.video_id for clip in borderline}
    rest = [clip for clip in rest if clip.video_id not in taken]
    random = sorted(rest, key=lambda clip: _lot(seed, clip.video_id))[:size]
    return [
        ClipGroup(GroupKind.HIGHEST, highest),
        ClipGroup(GroupKind.BORDERLINE, borderline),
        ClipGroup(GroupKind.RANDOM, random),
    ]


def _nearest(clips: Sequence[Clip], max_ratio: float, size: int) -> list[Clip]:
    """Half from either side of the threshold, or more from one where the other has too few."""

    def distance(clip: Clip) -> tuple[float, str]:
        return abs(clip.value - max_ratio), clip.path

    below = sorted((clip for clip in clips if clip.value <= max_ratio), key=distance)
    above = sorted((clip for clip in clips if clip.value > max_ratio), key=distance)
    below_count = max(size // 2, size - len(above))
    chosen = below[:below_count]
    return sorted(chosen + above[: size - len(chosen)], key=distance)


def _lot(seed: str, video_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {video_id}".encode()).digest()


def _nice_from(first: float, limit: float) -> Iterable[float]:
    """1, 2, 3, 5 and 7 times each power of ten, from `first` to `limit`, both included."""
    power = math.floor(math.log10(first))
    while 10.0**power <= limit:
        for digit in (1, 2, 3, 5, 7):
            # From text, as people write it: 3 * 10.0**-1 is 0.30000000000000004.
            nice = float(f"{digit}e{power}")
            if first <= nice <= limit:
                yield nice
        power += 1
