"""What every text detector answers to: the boxes it returns and the identity its scores carry.

Belongs here: the interface and its two value types. Does not belong here: anything that loads a
model, and any threshold on areas (that is the selection rule's).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TextBoxes:
    """The text found in one frame.

    Attributes:
        points: float32 (N, 4, 2), the corners of each text quadrilateral as (x, y) in pixels of
            the frame as it was given (origin top left, x in [0, width], y in [0, height]),
            clockwise from the corner that is the text's top left. Detectors pad their boxes, so a
            corner may lie outside the frame.
        confidence: float32 (N,), in [0, 1]: how sure the detector is that the box holds text
            (detection, not recognition).

    Raises:
        ValueError: If the shapes are not (N, 4, 2) and (N,).
    """

    points: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.points.shape != (len(self.points), 4, 2):
            raise ValueError(f"points must be (N, 4, 2), got {self.points.shape = }")
        if self.confidence.shape != self.points.shape[:1]:
            raise ValueError(
                f"confidence must be ({len(self.points)},), got {self.confidence.shape = }"
            )

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def none(cls) -> "TextBoxes":
        """The answer for a frame that was looked at and holds no text."""
        return cls(np.zeros((0, 4, 2), np.float32), np.zeros((0,), np.float32))


@dataclass(frozen=True)
class DetectorSpec:
    """What decides a detector's boxes, and so what its scores are filed under.

    Attributes:
        name: The detector's name in the settings, e.g. `craft`.
        weights_sha256: SHA-256 of the weights file, 64 lower-case hex digits.
        parameters: Every parameter that changes boxes, by upstream's own name.
    """

    name: str
    weights_sha256: str
    parameters: Mapping[str, float | int | str] = field(
        default_factory=dict[str, float | int | str]
    )

    def digest(self) -> str:
        """SHA-256 over all of it, 64 hex digits: equal digests give equal boxes."""
        text = json.dumps([self.name, self.weights_sha256, dict(self.parameters)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class TextDetector(Protocol):
    """A loaded model. One per process; not thread-safe (DESIGN decision 8)."""

    @property
    def spec(self) -> DetectorSpec:
        """What this detector's scores are filed under."""
        ...

    def warm_up(self, height_px: int, width_px: int) -> None:
        """Runs the network once on a black frame of that size, so that the first batch is not slow.

        Raises:
            ValueError: If the size cannot be scored.
        """
        ...

    def detect(self, frames: NDArray[np.uint8]) -> Sequence[TextBoxes]:
        """Finds the text in frames of one size.

        Args:
            frames: uint8 (N, H, W, 3) RGB, N >= 1.

        Returns:
            One `TextBoxes` per frame, in order.
        """
        ...


class WeightsError(Exception):
    """Weights are missing or are not the ones whose boxes we know. The message says what to do."""
