"""Batching: grouping frames of equal size, across videos, into what one forward pass takes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import mul
from typing import Protocol, TypeVar


class Sized2D(Protocol):
    """Anything with a height and a width."""

    @property
    def height_px(self) -> int:
        """Height in pixels."""
        ...

    @property
    def width_px(self) -> int:
        """Width in pixels."""
        ...


FrameT = TypeVar("FrameT", bound=Sized2D)


def batches_of_equal_size(
    frames: Iterable[FrameT],
    *,
    batch_px: int,
    buffer_px: int,
    input_px: Callable[[int, int], int] = mul,
) -> Iterator[list[FrameT]]:
    """Groups frames of equal size, holding back no more than `buffer_px` pixels.

    The grouping depends on the frames and their order alone, so a shard that is scored again is
    scored in the same batches.

    Args:
        frames: In any order of sizes.
        batch_px: A batch is full when one more frame would pass so many pixels; at least one frame.
        buffer_px: When so many pixels wait, the size with most of them goes out unfilled.
        input_px: What a frame of some height and width counts, in pixels: networks shrink frames,
            enlarge and pad them.

    Yields:
        Lists of frames of one size; every frame exactly once.
    """
    waiting: defaultdict[tuple[int, int], list[FrameT]] = defaultdict(list)
    waiting_px = 0
    for frame in frames:
        size = (frame.height_px, frame.width_px)
        frame_px = input_px(*size)
        waiting[size].append(frame)
        waiting_px += frame_px
        if (len(waiting[size]) + 1) * frame_px > batch_px:
            waiting_px -= len(waiting[size]) * frame_px
            yield waiting.pop(size)
        while waiting_px > buffer_px:
            fullest = max(waiting, key=lambda hw: (input_px(*hw) * len(waiting[hw]), hw))
            waiting_px -= input_px(*fullest) * len(waiting[fullest])
            yield waiting.pop(fullest)
    for size in sorted(waiting):
        yield waiting[size]
