"""Makes the demo corpus: a few seconds of real video each, whose text its author knows.

What belongs here: the list of clips, how they become files, and what is known of each. How a frame
is drawn stands in `ocr_assets.demo_drawing`.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import shapely
from numpy.typing import NDArray

from ocr_assets.demo_drawing import (
    Background,
    Blobs,
    Clouds,
    Gradient,
    Grain,
    Hills,
    Panel,
    RgbFrame,
    TextLine,
    draw_panels,
    draw_text,
    text_quadrilaterals,
)

GENERATOR_VERSION = 1
"""Raised whenever a clip or its geometry changes; clips of another version are written anew."""

MANIFEST_NAME = "known_geometry.json"

_X264_OPTIONS = {
    "preset": "ultrafast",
    "crf": "23",
    # x264's output depends on how many threads it has; one makes the bytes the same everywhere.
    "threads": "1",
}
# Without it Matroska draws random identifiers, and the same clip would never be the same bytes.
_MUXER_OPTIONS = {"fflags": "+bitexact"}
_CONTAINER_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


@dataclass(frozen=True)
class DrawnClip:
    """A clip that is drawn and encoded.

    Attributes:
        relative_path: Where it lies in the corpus, POSIX.
        size_px: Width and height.
        fps: Frames per second.
        seconds: Length.
        background: What moves behind the text.
        lines: The text.
        panels: Plain bands between background and text.
        is_intended_kept: Whether the default rule is meant to keep it.
    """

    relative_path: str
    size_px: tuple[int, int]
    fps: int
    seconds: float
    background: Background
    is_intended_kept: bool
    lines: tuple[TextLine, ...] = ()
    panels: tuple[Panel, ...] = ()

    @property
    def frame_count(self) -> int:
        """How many frames it has."""
        return round(self.seconds * self.fps)


@dataclass(frozen=True)
class CopiedClip:
    """A clip whose bytes are another's: all of them, or so few that it is damaged.

    Attributes:
        relative_path: Where it lies in the corpus, POSIX.
        source: The clip whose bytes it has.
        kept_bytes_ratio: How much of it is left. MP4 files as written here end with their index
            (`moov`), so that with less than 1.0 they cannot be opened.
    """

    relative_path: str
    source: str
    kept_bytes_ratio: float = 1.0

    @property
    def is_damaged(self) -> bool:
        """Whether bytes are missing."""
        return self.kept_bytes_ratio < 1


_DUSK = Hills(sky=(52, 48, 96), haze=(226, 150, 110), ground=(34, 30, 52), seed=11)
_STUDIO = Blobs(upper=(18, 30, 66), lower=(40, 70, 120), light=(120, 170, 220), seed=23)
_MORNING = Hills(sky=(130, 178, 216), haze=(232, 226, 200), ground=(44, 78, 52), seed=31)

DRAWN_CLIPS = (
    DrawnClip(
        "nature/drifting_clouds.mp4",
        size_px=(640, 360),
        fps=20,
        seconds=3,
        background=Clouds(dark=(84, 132, 196), bright=(226, 234, 244), seed=3),
        is_intended_kept=True,
    ),
    DrawnClip(
        "nature/wandering_lights.mp4",
        size_px=(480, 272),
        fps=25,
        seconds=4,
        background=Blobs(upper=(30, 20, 60), lower=(120, 60, 90), light=(250, 205, 130), seed=5),
        is_intended_kept=True,
    ),
    DrawnClip(
        "nature/grainy_field.mkv",
        size_px=(320, 240),
        fps=10,
        seconds=2,
        background=Grain(upper=(150, 160, 110), lower=(60, 80, 44), seed=7),
        is_intended_kept=True,
    ),
    DrawnClip(
        "films/small_subtitle.mp4",
        size_px=(640, 360),
        fps=20,
        seconds=3,
        background=_DUSK,
        lines=(TextLine("The train leaves at nine.", 22, (0.5, 0.91)),),
        is_intended_kept=True,
    ),
    DrawnClip(
        "films/heavy_subtitles.mp4",
        size_px=(640, 360),
        fps=20,
        seconds=3,
        background=_DUSK,
        lines=(
            TextLine("Nobody told me that the road", 42, (0.5, 0.74), outline_px=3),
            TextLine("would be closed until March.", 42, (0.5, 0.90), outline_px=3),
        ),
        is_intended_kept=False,
    ),
    DrawnClip(
        "films/corner_watermark.mov",
        size_px=(640, 360),
        fps=25,
        seconds=2,
        background=_MORNING,
        lines=(TextLine("Channel Nine", 20, (0.87, 0.08), outline_px=1),),
        is_intended_kept=True,
    ),
    DrawnClip(
        "films/title_at_the_start.mp4",
        size_px=(640, 360),
        fps=20,
        seconds=4,
        background=_MORNING,
        lines=(TextLine("The Long Way Home", 44, (0.5, 0.45), visible_seconds=(0, 1.5)),),
        is_intended_kept=True,
    ),
    DrawnClip(
        "films/rolling_credits.mp4",
        size_px=(480, 272),
        fps=25,
        seconds=4,
        background=Gradient(upper=(8, 8, 12), lower=(20, 20, 30)),
        lines=tuple(
            TextLine(
                text,
                22,
                (0.5, 0.16 + 0.16 * place),
                outline=None,
                velocity_px_per_second=(0, -32),
            )
            for place, text in enumerate(
                (
                    "Directed by Anna Berger",
                    "Camera: Jonas Lindt",
                    "Music: Clara Weiss",
                    "Sound: Peter Olsen",
                    "Editing: Maria Novak",
                    "Costumes: Ella Brandt",
                    "Lights: Tom Fisher",
                    "Locations: Rosa Klein",
                )
            )
        ),
        is_intended_kept=False,
    ),
    DrawnClip(
        "news/ticker.mp4",
        size_px=(854, 480),
        fps=25,
        seconds=3,
        background=_STUDIO,
        panels=(Panel((0.82, 0.96), colour=(150, 20, 28)),),
        lines=(
            TextLine(
                "Storm warning for the coast tonight - Ferries stay in port until noon",
                48,
                (0.95, 0.89),
                outline=None,
                velocity_px_per_second=(-120, 0),
            ),
        ),
        is_intended_kept=False,
    ),
    DrawnClip(
        "lectures/full_slide.mp4",
        size_px=(640, 360),
        fps=10,
        seconds=5,
        background=Gradient(upper=(250, 250, 246), lower=(232, 234, 238)),
        lines=tuple(
            TextLine(text, size, (0.5, y), colour=(24, 28, 40), outline=None)
            for text, size, y in (
                ("What we learned this year", 44, 0.14),
                ("Small batches keep the queue short", 30, 0.36),
                ("Measure before you change anything", 30, 0.52),
                ("Every failure needs a reason", 30, 0.68),
                ("Write down what you decided", 30, 0.84),
            )
        ),
        is_intended_kept=False,
    ),
    DrawnClip(
        "phone/vertical_caption.mp4",
        size_px=(360, 640),
        fps=25,
        seconds=2,
        background=Blobs(upper=(200, 120, 90), lower=(90, 50, 110), light=(255, 220, 160), seed=41),
        lines=(
            TextLine("my first attempt", 22, (0.5, 0.70)),
            TextLine("at baking bread", 22, (0.5, 0.76)),
        ),
        is_intended_kept=True,
    ),
    DrawnClip(
        "phone/slanted_stamp.mp4",
        size_px=(480, 272),
        fps=25,
        seconds=2,
        background=Clouds(dark=(60, 70, 80), bright=(150, 160, 168), seed=51),
        lines=(TextLine("SAMPLE COPY", 56, (0.5, 0.5), colour=(255, 236, 120), angle_degrees=25),),
        is_intended_kept=False,
    ),
)

COPIED_CLIPS = (
    CopiedClip("archive/small_subtitle_again.mp4", source="films/small_subtitle.mp4"),
    CopiedClip(
        "archive/broken_download.mp4", source="nature/drifting_clouds.mp4", kept_bytes_ratio=0.6
    ),
)

_OTHER_FILES = {"lectures/notes.txt": "Not a video: whoever looks for videos passes this by.\n"}


@dataclass(frozen=True, eq=False)
class KnownClip:
    """What its author knows of one clip of the corpus.

    Attributes:
        relative_path: Where it lies in the corpus, POSIX.
        width_px: Width of its frames.
        height_px: Height of its frames.
        fps: Frames per second.
        frame_count: How many frames it shows; 0 where it is damaged.
        duration_seconds: How long it shows them; 0 where it is damaged.
        is_damaged: Whether it cannot be opened.
        duplicate_of: Path of the clip with the same bytes, None where there is none before it.
        is_intended_kept: Whether the default rule (mean `text_area_ratio` over the first, middle
            and last frame at most 0.07) is meant to keep it.
        text_quadrilaterals_px: The line boxes of each frame, float64 (N, 4, 2) each, as
            `ocr_assets.demo_drawing.text_quadrilaterals` defines them; not clipped to the frame.
    """

    relative_path: str
    width_px: int
    height_px: int
    fps: int
    frame_count: int
    duration_seconds: float
    is_damaged: bool
    duplicate_of: str | None
    is_intended_kept: bool
    text_quadrilaterals_px: tuple[NDArray[np.float64], ...]

    @property
    def first_middle_last_frames(self) -> tuple[int, ...]:
        """The frames at 0, half and all of the duration; none where the clip is damaged.

        At a time stands the first frame that begins at or after it; past the end, the last one.
        """
        if self.is_damaged:
            return ()
        return 0, math.ceil(self.frame_count / 2), self.frame_count - 1

    def text_area_ratio(self, frame_index: int) -> float:
        """Area of the union of a frame's line boxes, clipped to the frame, over its area."""
        polygons = shapely.polygons(self.text_quadrilaterals_px[frame_index])
        frame = shapely.box(0, 0, self.width_px, self.height_px)
        return shapely.intersection(shapely.union_all(polygons), frame).area / frame.area

    def known_mean_text_area_ratio(self, frame_indices: Sequence[int]) -> float:
        """Mean of `text_area_ratio` over some frames.

        Raises:
            ValueError: No frame is given.
        """
        if not frame_indices:
            raise ValueError(
                f"{self.relative_path}: a mean needs at least one frame index, got none."
            )
        return sum(map(self.text_area_ratio, frame_indices)) / len(frame_indices)


def generate_demo_corpus(
    directory: Path, on_clip: Callable[[str], None] | None = None
) -> list[KnownClip]:
    """Writes the demo corpus, or what is missing of it, and its manifest.

    Files that an earlier call of the same `GENERATOR_VERSION` finished stay untouched, so that
    whatever was computed from them stays valid.

    Args:
        directory: The corpus's folder; made where it is missing.
        on_clip: Told the relative path of each clip that had to be written, once it lies there.

    Returns:
        What is known of each clip, also of the damaged one and the duplicate.
    """
    writers_by_clip: dict[str, Callable[[Path], None]] = {
        **{clip.relative_path: partial(_encode_clip, clip) for clip in DRAWN_CLIPS},
        **{clip.relative_path: partial(_copy_clip, clip, directory) for clip in COPIED_CLIPS},
    }
    # The manifest comes last: an interrupted generation must not be taken for a finished one.
    writers_by_file = writers_by_clip | {
        **{path: partial(_write_text, text) for path, text in _OTHER_FILES.items()},
        MANIFEST_NAME: _write_manifest,
    }
    is_current = _recorded_version(directory) == GENERATOR_VERSION
    for relative_path, write in writers_by_file.items():
        path = directory / relative_path
        if is_current and path.is_file():
            continue
        _write_atomically(path, write)
        if on_clip is not None and relative_path in writers_by_clip:
            on_clip(relative_path)
    return load_known_geometry(directory)


def load_known_geometry(directory: Path) -> list[KnownClip]:
    """What is known of each clip of a corpus that `generate_demo_corpus` wrote.

    Raises:
        FileNotFoundError: There is no manifest in the folder.
    """
    manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    return [
        KnownClip(
            **clip
            | {
                "text_quadrilaterals_px": tuple(
                    np.array(frame, dtype=np.float64).reshape(-1, 4, 2)
                    for frame in clip["text_quadrilaterals_px"]
                )
            }
        )
        for clip in manifest["clips"]
    ]


def _write_manifest(path: Path) -> None:
    known = {clip.relative_path: _known_drawn_clip(clip) for clip in DRAWN_CLIPS}
    for copied in COPIED_CLIPS:
        known[copied.relative_path] = _known_copied_clip(copied, known[copied.source])
    manifest = {"generator_version": GENERATOR_VERSION, "clips": list(known.values())}
    _write_text(json.dumps(manifest, separators=(",", ":")) + "\n", path)


def _known_drawn_clip(clip: DrawnClip) -> dict[str, Any]:
    """A drawn clip's entry in the manifest: the fields of its `KnownClip`, boxes as plain lists."""
    width_px, height_px = clip.size_px
    boxes_by_frame = [
        text_quadrilaterals(clip.lines, width_px, height_px, frame / clip.fps)
        for frame in range(clip.frame_count)
    ]
    return {
        "relative_path": clip.relative_path,
        "width_px": width_px,
        "height_px": height_px,
        "fps": clip.fps,
        "frame_count": clip.frame_count,
        "duration_seconds": clip.frame_count / clip.fps,
        "is_damaged": False,
        "duplicate_of": None,
        "is_intended_kept": clip.is_intended_kept,
        "text_quadrilaterals_px": [boxes.round(2).tolist() for boxes in boxes_by_frame],
    }


def _known_copied_clip(clip: CopiedClip, source: dict[str, Any]) -> dict[str, Any]:
    """A copied clip's entry in the manifest."""
    if clip.is_damaged:
        return source | {
            "relative_path": clip.relative_path,
            "frame_count": 0,
            "duration_seconds": 0.0,
            "is_damaged": True,
            "is_intended_kept": False,
            "text_quadrilaterals_px": [],
        }
    return source | {"relative_path": clip.relative_path, "duplicate_of": clip.source}


def _recorded_version(directory: Path) -> int | None:
    """The version that finished the corpus in a folder, None where none did."""
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("generator_version")


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file beside `path` and then puts it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is not a video's, so that nobody who looks for videos meanwhile takes it for one.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encode_clip(clip: DrawnClip, path: Path) -> None:
    """Encodes a clip as H.264 in the container that its name asks for, wherever `path` is."""
    container_format = _CONTAINER_FORMATS[Path(clip.relative_path).suffix]
    with av.open(path, "w", format=container_format, options=_MUXER_OPTIONS) as container:
        stream = container.add_stream("libx264", rate=clip.fps, options=_X264_OPTIONS)
        stream.width, stream.height = clip.size_px
        stream.pix_fmt = "yuv420p"
        for pixels in _frames(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _frames(clip: DrawnClip) -> Iterator[RgbFrame]:
    """A clip's frames in order, uint8 (H, W, 3) RGB."""
    for index in range(clip.frame_count):
        yield draw_text(_textless_frame(clip, index), clip.lines, index / clip.fps)


def _textless_frame(clip: DrawnClip, index: int) -> RgbFrame:
    """A clip's frame before its text is drawn, uint8 (H, W, 3) RGB."""
    return draw_panels(clip.background.paint(*clip.size_px, index / clip.fps), clip.panels)


def _copy_clip(clip: CopiedClip, directory: Path, path: Path) -> None:
    content = (directory / clip.source).read_bytes()
    path.write_bytes(content[: round(len(content) * clip.kept_bytes_ratio)])


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
