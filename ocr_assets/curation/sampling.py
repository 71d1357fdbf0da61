"""Sampling: which frames stand for a video. Pure arithmetic on timestamps; decodes nothing."""

import math
import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class SamplerError(ValueError):
    """A sampler that is not one of those we have. The message lists them."""


@dataclass(frozen=True)
class Timeline:
    """The frames of one video in presentation order.

    Attributes:
        pts_seconds: float64 (N,), when each frame is shown, ascending.
        is_keyframe: bool (N,), whether a frame decodes without the ones before it.
        duration_seconds: The video stream's duration as its container states it.
    """

    pts_seconds: NDArray[np.float64]
    is_keyframe: NDArray[np.bool_]
    duration_seconds: float


class Sampler(Protocol):
    """A rule that picks frames. Its `str()` is canonical: equal texts pick equal frames."""

    def select(self, timeline: Timeline) -> NDArray[np.int64]:
        """Gives the picked frames' indices, ascending and distinct."""
        ...

    def expected_count(self, duration_seconds: float, frame_count: int) -> float:
        """Estimates how many frames `select` will pick, for sharding by cost."""
        ...


def _first_at_or_after(timeline: Timeline, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first frame at or after each time; the last frame where the end is passed."""
    # Containers store time in ticks of down to 1/90000 s; half a tick absorbs the rounding of
    # duration * i / (n - 1) without ever reaching a neighbouring frame.
    at = np.searchsorted(timeline.pts_seconds, seconds - 0.5 / 90_000, side="left")
    return np.unique(np.minimum(at, len(timeline.pts_seconds) - 1)).astype(np.int64)


@dataclass(frozen=True)
class Uniform:
    """Data-Juicer's rule (`extract_video_frames_uniformly` in data_juicer/utils/mm_utils.py).

    n = 1 takes the middle; n >= 2 takes the times duration * i / (n - 1): first, evenly spaced,
    last. With fewer frames than n, n is their number. A frame that is taken for two of the times
    counts once here, twice there.
    """

    n: int

    def __str__(self) -> str:
        return f"uniform({self.n})"

    def select(self, timeline: Timeline) -> NDArray[np.int64]:
        """Gives the frames at the rule's times."""
        count = min(self.n, len(timeline.pts_seconds))
        if count == 0:
            return np.zeros(0, np.int64)
        share = np.array([0.5]) if count == 1 else np.arange(count) / (count - 1)
        return _first_at_or_after(timeline, share * timeline.duration_seconds)

    def expected_count(self, duration_seconds: float, frame_count: int) -> float:  # noqa: ARG002
        """n, or all frames where there are fewer."""
        return min(self.n, frame_count)


@dataclass(frozen=True)
class Every:
    """One frame at 0, s, 2s, … seconds, up to but not including the duration."""

    seconds: float

    def __str__(self) -> str:
        return f"every({repr(self.seconds).removesuffix('.0')})"

    def select(self, timeline: Timeline) -> NDArray[np.int64]:
        """Gives the frames at the rule's times."""
        if len(timeline.pts_seconds) == 0:
            return np.zeros(0, np.int64)
        # Less a hair: 2.1 / 0.3 is 7.000000000000001 in binary.
        count = max(1, math.ceil(timeline.duration_seconds / self.seconds - 1e-9))
        return _first_at_or_after(timeline, np.arange(count, dtype=np.float64) * self.seconds)

    def expected_count(self, duration_seconds: float, frame_count: int) -> float:
        """One per interval."""
        return min(max(1.0, duration_seconds / self.seconds), frame_count)


@dataclass(frozen=True)
class Keyframes:
    """Every frame that decodes on its own: cheap to reach, and where an encoder saw a new scene."""

    def __str__(self) -> str:
        return "keyframes"

    def select(self, timeline: Timeline) -> NDArray[np.int64]:
        """Gives the keyframes."""
        return np.flatnonzero(timeline.is_keyframe).astype(np.int64)

    def expected_count(self, duration_seconds: float, frame_count: int) -> float:
        """One per five seconds."""
        # x264 and x265 place a keyframe at least every 250 frames by default (their `keyint`) and
        # about every 2 to 10 s in practice; only sharding rests on this.
        return min(max(1.0, duration_seconds / 5.0), frame_count)


_FORMS = "uniform(n) with n >= 1, every(seconds) with seconds > 0, keyframes"


def parse_sampler(text: str) -> Sampler:
    """Reads a sampler from the settings' text.

    Raises:
        SamplerError: If the text is none of `uniform(n)`, `every(seconds)`, `keyframes`.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", text)
    name, argument = match.groups() if match else (None, None)
    try:
        if name == "uniform" and argument and int(argument) >= 1:
            return Uniform(int(argument))
        if name == "every" and argument and 0 < float(argument) < math.inf:
            return Every(float(argument))
    except ValueError:
        pass  # Not a number: told below, with the allowed forms.
    if name == "keyframes" and not argument:
        return Keyframes()
    raise SamplerError(f"sampler {text!r} is not known; use one of: {_FORMS}")


@dataclass(frozen=True)
class SegmentSelector:
    """Picks one segment's share of the frames that a sampler picks for the whole video.

    A segment is the half-open interval [start_seconds, end_seconds); the last one is open-ended
    (`end_seconds` = inf), so a frame that a container times past its stated end is not lost.
    Sampling runs over the whole video first, so cutting a video into segments changes no score.

    Attributes:
        sampler: The sampler's text.
        duration_seconds: The whole video's.
        start_seconds: Included.
        end_seconds: Not included.
    """

    sampler: str
    duration_seconds: float
    start_seconds: float
    end_seconds: float

    def __call__(
        self, pts_seconds: NDArray[np.float64], is_keyframe: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Gives the indices of the segment's sampled frames, ascending."""
        picked = parse_sampler(self.sampler).select(
            Timeline(pts_seconds, is_keyframe, self.duration_seconds)
        )
        times = pts_seconds[picked]
        # The first segment takes what is timed before zero, as some containers do.
        start_seconds = self.start_seconds if self.start_seconds > 0 else -math.inf
        return picked[(times >= start_seconds) & (times < self.end_seconds)]
