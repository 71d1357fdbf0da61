"""Identity: what makes two files the same video, and two scores comparable."""

import hashlib
import json
from pathlib import Path

VIDEO_ID_LENGTH = 32
"""Hex digits kept of the SHA-256: 128 bits, so among 10^9 videos a collision has odds below 10^-20
(birthday bound n^2 / 2^129)."""

SCORING_VERSION = 1
"""Raised whenever code outside the detector changes what a score means: the sampling rules, the
area formulas. Scores of different versions never mix."""

SCORER_ID_LENGTH = 16
"""Hex digits kept of a scorer's SHA-256: a data directory sees tens of scorers, not billions."""


def content_id(path: Path) -> str:
    """Gives the id of a video: the first 32 hex digits of the SHA-256 of its bytes.

    `sha256sum FILE | cut -c1-32` gives the same.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:VIDEO_ID_LENGTH]


def scorer_id(*, sampler: str, detector_digest: str) -> str:
    """Gives the id under which scores of one way of scoring are filed (DESIGN decision 3).

    Args:
        sampler: The sampler's canonical text, e.g. `uniform(3)`.
        detector_digest: `DetectorSpec.digest()`: name, weights and every parameter.

    Returns:
        16 hex digits.
    """
    text = json.dumps([SCORING_VERSION, sampler, detector_digest])
    return hashlib.sha256(text.encode()).hexdigest()[:SCORER_ID_LENGTH]
