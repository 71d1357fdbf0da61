"""The report's pictures: frames read back from their shards, and what the UI shows as PNG.

Belongs here: pixels. Does not belong here: which clips (curation/report.py), and the page, which
lays boxes over its pictures; in the contact sheet they are drawn. Matplotlib and Pillow are
imported when the first picture is drawn.
"""

import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from ocr_assets.curation.report import SHEET_GROUP_SIZE, Clip, ClipFrame, GroupKind, Report
from ocr_assets.plots import HEIGHT_PX, WIDTH_PX
from resources.frame_store import FrameStore, decode_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType
    from PIL import Image, ImageDraw, ImageFont

MAX_SIDE_PX = 480
"""A card is 240 px wide at most and screens have up to two pixels for one."""

MAX_PICTURE_BYTES = 20_000
"""72 of them are 1.9 MB as base64, which leaves the page below 3 MB."""

MAX_SHEET_BYTES = 140_000
"""As base64 below 200 kB, which the UI's events still show quickly."""

_WEBP_QUALITIES = (75, 60, 45, 30, 15)
_SHEET_COLOURS = (256, 128, 64, 32)

_CELL_PX = (152, 86)
_COLUMN_COUNT = SHEET_GROUP_SIZE
_GAP_PX = 8
_CAPTION_PX = 30
_TITLE_PX = 24
_FONT_PX = 10
_PAPER, _INK, _FAINT, _GROUND = "#ffffff", "#222222", "#666666", "#15171a"
_BOX = "#ffd21f"
_KEPT, _DROPPED = "#2a6597", "#b4531a"

_SHEET_TITLES: Mapping[GroupKind, str] = {
    GroupKind.EVERY: "Every scored clip",
    GroupKind.HIGHEST: "Highest",
    GroupKind.BORDERLINE: "Nearest to max_ratio {max_ratio:g}",
    GroupKind.RANDOM: "Random of the rest",
}

_DPI = 100
_CHART_COLOURS = 64
_NEAR_THE_END = 0.93
"""A label further right than this share of the axis would run out of the picture."""

# Said in full, as in plots.py, so that nobody's matplotlibrc changes the picture.
_STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.edgecolor": "#999999",
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": _FAINT,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "figure.facecolor": "white",
    "text.color": _INK,
    "text.usetex": False,
    "xtick.color": _FAINT,
    "xtick.labelsize": 8,
    "ytick.color": _FAINT,
    "ytick.labelsize": 8,
}

FrameKey = tuple[str, str, int]
"""Shard, video id, frame index."""


def read_frames(
    store: FrameStore, wanted: Collection[FrameKey]
) -> Iterator[tuple[FrameKey, bytes]]:
    """Reads frames out of their shards, and of a shard only the row groups that hold one.

    Yields:
        Each frame's key and its PNG. A frame that is not there (any more) is left out: a shard may
        have been sampled anew, or its frames deleted to save space.
    """
    by_shard: dict[str, dict[tuple[str, int], FrameKey]] = defaultdict(dict)
    for key in wanted:
        by_shard[key[0]][key[1], key[2]] = key
    for shard, keys in sorted(by_shard.items()):
        path = store.path(shard)
        if path.exists():
            yield from _read_shard(path, keys)


def _read_shard(
    path: Path, keys: dict[tuple[str, int], FrameKey]
) -> Iterator[tuple[FrameKey, bytes]]:
    with pq.ParquetFile(path, memory_map=True) as file:
        for group in range(file.num_row_groups):
            places = file.read_row_group(group, columns=["video_id", "frame_index"]).to_pylist()
            found = [
                (i, keys[place])
                for i, row in enumerate(places)
                if (place := (row["video_id"], row["frame_index"])) in keys
            ]
            if not found:
                continue
            images = file.read_row_group(group, columns=["image.bytes"])["image"]
            for i, key in found:
                yield key, images[i].as_py()["bytes"]


def thumbnail(png: bytes) -> bytes:
    """A frame as a small WebP of at most `MAX_PICTURE_BYTES`, unless it is nothing but noise."""
    pixels = decode_png(png)
    height_px, width_px = pixels.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
    size_px = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    small = cv2.cvtColor(
        cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR
    )
    webp = b""
    for quality in _WEBP_QUALITIES:
        is_encoded, data = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, quality])
        if not is_encoded:
            raise ValueError(f"a frame of {pixels.shape = } could not be encoded as WebP")
        webp = data.tobytes()
        if len(webp) <= MAX_PICTURE_BYTES:
            break
    return webp


def histogram_png(report: Report) -> bytes:
    """Draws how many videos have which value, with the rule's bounds.

    Returns:
        A PNG of 640 x 240 pixels, of 3 to 6 kB.
    """
    from matplotlib.ticker import MaxNLocator

    counts, zero_count = report.histogram.counts, report.histogram.zero_count
    highest = max(counts)
    # A dataset is mostly free of text: its bar would press all others flat, so it is cut, and says
    # its number.
    top = min(max(highest, zero_count), max(3 * highest, 1))
    with _chart(report, "videos") as axes:
        width = 1 / len(counts)
        axes.bar(
            [(i + 0.5) * width for i in range(len(counts))],
            counts,
            width=width * 0.84,
            color=[
                _KEPT if _is_within(report, (i + 0.5) * width) else _DROPPED
                for i in range(len(counts))
            ],
        )
        is_zero_kept = report.rule.min_ratio <= 0
        axes.bar(-1.5 * width, zero_count, width=width, color=_KEPT if is_zero_kept else _DROPPED)
        axes.text(-1.5 * width, min(zero_count, top) * 1.02, f"{zero_count:,}", ha="center")
        axes.set_ylim(0, 1.15 * max(top, 1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        return _chart_png(axes)


def yield_curve_png(report: Report) -> bytes:
    """Draws the share of samples that each `max_ratio` keeps, with the rule's own.

    Returns:
        A PNG of 640 x 240 pixels, of 3 to 6 kB.
    """
    stops = report.axis.stops()
    total = max(report.sample_count, 1)
    shares = [100 * report.steps.at(stop) / total for stop in stops]
    places = [report.axis.position(stop) for stop in stops]
    with _chart(report, "samples kept (%)") as axes:
        axes.fill_between(places, shares, step="post", color=_KEPT, alpha=0.12, linewidth=0)
        axes.step(places, shares, where="post", color=_KEPT, linewidth=1.4)
        axes.set_ylim(0, 108)
        axes.set_yticks([0, 25, 50, 75, 100])
        at = report.axis.position(report.rule.max_ratio)
        share = 100 * report.kept_count / total
        axes.plot([at], [share], "o", color=_INK, markersize=5, clip_on=False)
        return _chart_png(axes)


def contact_sheet_png(report: Report) -> bytes:
    """Draws the highest, borderline and random clips with boxes, name, value and verdict.

    Returns:
        A PNG of at most 640 pixels' width and `MAX_SHEET_BYTES`.

    Raises:
        ValueError: If the dataset has no scored clip.
    """
    groups = [group for group in report.sheet_groups() if group.clips]
    if not groups:
        raise ValueError("a contact sheet needs at least one scored clip, got none")
    from PIL import Image, ImageDraw

    line_px = _CELL_PX[1] + _CAPTION_PX + _GAP_PX
    line_counts = [math.ceil(len(group.clips) / _COLUMN_COUNT) for group in groups]
    height_px = _GAP_PX + sum(_TITLE_PX + line_px * count for count in line_counts)
    sheet = Image.new("RGB", (_COLUMN_COUNT * (_CELL_PX[0] + _GAP_PX), height_px), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP_PX
    for group, line_count in zip(groups, line_counts, strict=True):
        title = _SHEET_TITLES[group.kind].format(max_ratio=report.rule.max_ratio)
        draw.text((_GAP_PX // 2, top), title, fill=_INK, font=_font(_FONT_PX + 2, is_bold=True))
        top += _TITLE_PX
        for i, clip in enumerate(group.clips):
            line, column = divmod(i, _COLUMN_COUNT)
            place = _GAP_PX // 2 + column * (_CELL_PX[0] + _GAP_PX), top + line * line_px
            frame, webp = report.frames.get(clip.video_id), report.pictures.get(clip.video_id)
            sheet.paste(_cell_picture(frame, webp), place)
            is_kept = clip.kept_from <= report.rule.max_ratio
            _draw_caption(draw, clip, place, is_kept=is_kept)
        top += line_px * line_count
    return _small_png(sheet)


def _draw_caption(
    draw: "ImageDraw.ImageDraw", clip: Clip, place: tuple[int, int], *, is_kept: bool
) -> None:
    left, top = place[0], place[1] + _CELL_PX[1] + 3
    name = _shortened(Path(clip.path).name, _CELL_PX[0])
    draw.text((left, top), name, fill=_INK, font=_font(_FONT_PX))
    draw.text((left, top + 13), f"{clip.value:.4f}", fill=_FAINT, font=_font(_FONT_PX))
    draw.text(
        (left + _CELL_PX[0], top + 13),
        "kept" if is_kept else "dropped",
        fill=_KEPT if is_kept else _DROPPED,
        font=_font(_FONT_PX, is_bold=True),
        anchor="ra",
    )


def _cell_picture(frame: ClipFrame | None, webp: bytes | None) -> "Image.Image":
    from PIL import Image, ImageDraw

    # Drawn at twice the size and halved, since Pillow's own lines are jagged.
    width_px, height_px = 2 * _CELL_PX[0], 2 * _CELL_PX[1]
    picture = Image.new("RGB", (width_px, height_px), _GROUND)
    if frame is None:
        return picture.resize(_CELL_PX)
    scale = min(width_px / frame.width_px, height_px / frame.height_px)
    shown_px = max(1, round(frame.width_px * scale)), max(1, round(frame.height_px * scale))
    left, top = (width_px - shown_px[0]) // 2, (height_px - shown_px[1]) // 2
    if webp is not None:
        image = Image.open(io.BytesIO(webp)).convert("RGB")
        picture.paste(image.resize(shown_px, Image.Resampling.LANCZOS), (left, top))
    draw = ImageDraw.Draw(picture)
    for box in frame.boxes:
        corners = [
            (left + x * scale, top + y * scale) for x, y in zip(box[::2], box[1::2], strict=True)
        ]
        draw.line([*corners, corners[0]], fill=_BOX, width=3, joint="curve")
    return picture.resize(_CELL_PX, Image.Resampling.LANCZOS)


def _small_png(sheet: "Image.Image") -> bytes:
    """As many colours as fit the limit; a sheet that fits with none of them is made smaller."""
    from PIL import Image

    while True:
        for colours in _SHEET_COLOURS:
            file = io.BytesIO()
            sheet.quantize(colours, dither=Image.Dither.NONE).save(file, "png", optimize=True)
            if file.tell() <= MAX_SHEET_BYTES:
                return file.getvalue()
        sheet = sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4))


def _shortened(name: str, width_px: int) -> str:
    """Cut in the middle: names differ at their ends as often as at their beginnings."""
    font = _font(_FONT_PX)
    text = name
    for kept in range(len(name) - 1, 1, -1):
        if font.getlength(text) <= width_px:
            break
        text = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
    return text


@lru_cache(maxsize=8)
def _font(size_px: int, *, is_bold: bool = False) -> "ImageFont.FreeTypeFont":
    """Matplotlib's DejaVu Sans: Pillow's own font has Latin letters only."""
    import matplotlib as mpl
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size_px)


def _is_within(report: Report, position: float) -> bool:
    low, high = (
        report.axis.position(bound) for bound in (report.rule.min_ratio, report.rule.max_ratio)
    )
    return low <= position <= high


@contextmanager
def _chart(report: Report, label: str) -> "Iterator[Axes]":
    """Axes over the report's axis, the rule's bounds on them."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure((WIDTH_PX / _DPI, HEIGHT_PX / _DPI), dpi=_DPI)
        axes = figure.add_axes((0.09, 0.18, 0.89, 0.70))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2)
        axes.set_ylabel(label)
        axes.set_xlabel(f"{report.rule.metric.value} (square-root axis)", labelpad=1)
        ticks = report.axis.ticks()
        axes.set_xticks(
            [report.axis.position(tick) for tick in ticks], [f"{tick:g}" for tick in ticks]
        )
        axes.set_xlim(-0.06, 1.005)
        bounds = [("max_ratio", report.rule.max_ratio)]
        if report.rule.min_ratio > 0:
            bounds.append(("min_ratio", report.rule.min_ratio))
        for name, value in bounds:
            at = report.axis.position(value)
            axes.axvline(at, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{name} {value:g}",
                (at, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center" if at < _NEAR_THE_END else "right",
            )
        yield axes


def _chart_png(axes: "Axes") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = axes.figure.get_figure(root=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    picture.quantize(_CHART_COLOURS, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()
