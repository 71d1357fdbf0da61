"""The closed sets of reasons: why a video has no score, and why a sample was dropped.

A reason is data that people group by, so each stands here once, in the words that the tables show.
"""

from enum import StrEnum


class UnscoredReason(StrEnum):
    """Why a video, or one segment or frame of it, has no score."""

    FILE_MISSING = "file_missing"  # The path does not exist (any more).
    FILE_UNREADABLE = "file_unreadable"  # The operating system would not let us read it.
    FILE_EMPTY = "file_empty"  # Zero bytes.
    FILE_CHANGED = "file_changed"  # Its bytes are no longer those that discovery identified.
    NOT_A_VIDEO = "not_a_video"  # No decoder recognises it, or it holds no video stream.
    NO_FRAMES = "no_frames"  # A video stream without one decodable frame.
    DECODE_FAILED = "decode_failed"  # Every decoder gave an error on a sampled frame.
    DECODE_TIMED_OUT = "decode_timed_out"  # The decoder's process was stopped at its deadline.
    DECODER_CRASHED = "decoder_crashed"  # The decoder took its process down.
    DETECTION_FAILED = "detection_failed"  # The text detector gave an error on a frame.
    OUT_OF_MEMORY = "out_of_memory"  # A frame alone did not fit the device's memory.
    NOT_SCORED_YET = "not_scored_yet"  # Discovered; frames or scores are still to be made.


class RejectReason(StrEnum):
    """Why a sample is not in the filtered dataset."""

    TEXT_AREA_ABOVE_MAX = "text_area_above_max"
    TEXT_AREA_BELOW_MIN = "text_area_below_min"
    UNSCORED = "unscored"
