"""Draws the frames of the demo corpus: moving backgrounds without text, and lines of text.

Everything here is a pure function of its arguments, in pixels of one frame; nothing knows of clips
or files. Which clips there are and how they are encoded stands in `ocr_assets.demo_corpus`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]
"""A colour, each channel in [0, 255]."""

RgbFrame = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""

_COARSE_STEP_PX = 4  # Soft shapes lose nothing at a quarter of the size, and cost a sixteenth.
_CREST_SOFTNESS_PX = 3
_MAX_DRIFT_PX = 256


class Background(Protocol):
    """A moving picture without text."""

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The picture `seconds` after its start, uint8 (height_px, width_px, 3) RGB."""
        ...


@dataclass(frozen=True)
class Gradient:
    """A still fade from one colour at the upper edge to another at the lower."""

    upper: Rgb
    lower: Rgb

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The same picture at any time, uint8 (height_px, width_px, 3) RGB."""
        del seconds
        share = np.linspace(0, 1, height_px, dtype=np.float32)[:, None]
        return np.repeat(_blend(self.upper, self.lower, share), width_px, axis=1)


@dataclass(frozen=True)
class Clouds:
    """Two sheets of soft noise that drift over each other at different speeds.

    Attributes:
        dark: Colour of the sky.
        bright: Colour of the thickest cloud.
        seed: Chooses the noise.
    """

    dark: Rgb
    bright: Rgb
    seed: int

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The clouds at a time, uint8 (height_px, width_px, 3) RGB."""
        near = _drifting_noise(width_px, height_px, self.seed, cell_px=90, drift_px=seconds * 36)
        far = _drifting_noise(width_px, height_px, self.seed + 1, cell_px=48, drift_px=seconds * 14)
        return _blend(self.dark, self.bright, np.clip(0.7 * near + 0.3 * far, 0, 1))


@dataclass(frozen=True)
class Hills:
    """Ridges one behind another that pass by, the nearer the faster.

    Attributes:
        sky: Colour of the upper edge.
        haze: Colour of the horizon.
        ground: Colour of the nearest ridge.
        seed: Chooses the ridges' outlines.
    """

    sky: Rgb
    haze: Rgb
    ground: Rgb
    seed: int

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The ridges at a time, uint8 (height_px, width_px, 3) RGB."""
        rng = np.random.default_rng(self.seed)
        x = np.arange(width_px, dtype=np.float32)
        y = np.arange(height_px, dtype=np.float32)[:, None]
        sky_share = np.ones((height_px, width_px), dtype=np.float32)
        for nearness in (0.25, 0.5, 0.75, 1.0):
            travelled = (x + 40 * nearness * seconds) / height_px
            ridge = np.zeros_like(x)
            for wave in (1, 2, 5):
                strength, phase = rng.uniform((0.3, 0), (1, math.tau))
                ridge += strength / wave * np.sin(wave * 2.2 * travelled + phase)
            crest_px = height_px * (0.35 + 0.4 * nearness + 0.06 * ridge)
            sky_share *= 1 - nearness * np.clip((y - crest_px) / _CREST_SOFTNESS_PX, 0, 1)
        backdrop = Gradient(self.sky, self.haze).paint(width_px, height_px, seconds)
        return _blend(backdrop, self.ground, 1 - sky_share)


@dataclass(frozen=True)
class Blobs:
    """Blurred balls of light that wander before a gradient.

    Attributes:
        upper: Colour of the gradient's upper edge.
        lower: Colour of the gradient's lower edge.
        light: Colour of the balls.
        seed: Chooses the balls' places, sizes and ways.
        count: How many balls there are.
    """

    upper: Rgb
    lower: Rgb
    light: Rgb
    seed: int
    count: int = 6

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The balls at a time, uint8 (height_px, width_px, 3) RGB."""
        rng = np.random.default_rng(self.seed)
        y, x = np.mgrid[0:height_px:_COARSE_STEP_PX, 0:width_px:_COARSE_STEP_PX].astype(np.float32)
        glow = np.zeros_like(x)
        for _ in range(self.count):
            home_x, home_y, radius, speed, phase = rng.uniform(
                (0.1, 0.1, 0.10, 0.4, 0), (0.9, 0.9, 0.20, 1.2, math.tau)
            )
            angle = phase + speed * seconds
            centre_x = (home_x + 0.15 * math.cos(angle)) * width_px
            centre_y = (home_y + 0.15 * math.sin(angle)) * height_px
            distance_px = np.hypot(x - centre_x, y - centre_y)
            glow += np.exp(-((distance_px / (radius * width_px)) ** 2))
        share = cv2.resize(glow, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
        backdrop = Gradient(self.upper, self.lower).paint(width_px, height_px, seconds)
        # Clipping would leave flat shapes with an edge where balls meet; CRAFT took one for text.
        return _blend(backdrop, self.light, 0.6 * (1 - np.exp(-share)))


@dataclass(frozen=True)
class Grain:
    """A gradient under flickering film grain.

    Attributes:
        upper: Colour of the gradient's upper edge.
        lower: Colour of the gradient's lower edge.
        seed: Chooses the grain.
        strength: Standard deviation of the grain before it is blurred, in levels of 255.
    """

    upper: Rgb
    lower: Rgb
    seed: int
    strength: float = 40.0

    def paint(self, width_px: int, height_px: int, seconds: float) -> RgbFrame:
        """The grain at a time, uint8 (height_px, width_px, 3) RGB."""
        rng = np.random.default_rng((self.seed, round(seconds * 1000)))
        noise = rng.normal(0, self.strength, (height_px, width_px)).astype(np.float32)
        levels = cv2.GaussianBlur(noise, (0, 0), sigmaX=1.2)[..., None]
        backdrop = Gradient(self.upper, self.lower).paint(width_px, height_px, seconds)
        return np.clip(backdrop + levels, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """A plain band over the background's whole width, behind the text; no text itself.

    Attributes:
        y_ratios: Upper and lower edge as shares of the frame's height.
        colour: Its colour.
    """

    y_ratios: tuple[float, float]
    colour: Rgb


@dataclass(frozen=True)
class TextLine:
    """One line of text: what it says, how it looks, where it is and when.

    Attributes:
        text: What it says.
        font_size_px: Size of Pillow's bundled font.
        centre: Centre of the line at time 0 as shares (x, y) of the frame's width and height.
        colour: Colour of the letters.
        outline: Colour of the letters' outline; None draws no outline.
        outline_px: Width of the outline on each side of a stroke.
        angle_degrees: Turn around the centre, counter-clockwise as one sees it.
        velocity_px_per_second: Motion of the centre (x, y); y grows downwards.
        visible_seconds: Half-open interval in which the line is on screen.
    """

    text: str
    font_size_px: int
    centre: tuple[float, float]
    colour: Rgb = (255, 255, 255)
    outline: Rgb | None = (0, 0, 0)
    outline_px: int = 2
    angle_degrees: float = 0.0
    velocity_px_per_second: tuple[float, float] = (0.0, 0.0)
    visible_seconds: tuple[float, float] = (0.0, math.inf)

    def is_visible(self, seconds: float) -> bool:
        """Whether the line is on screen at a time."""
        start, end = self.visible_seconds
        return start <= seconds < end

    def placed_at(self, width_px: int, height_px: int, seconds: float) -> tuple[int, int]:
        """Upper left corner, in whole pixels, of the line's layer in a frame at a time."""
        layer = _text_layer(self)
        velocity_x, velocity_y = self.velocity_px_per_second
        x = self.centre[0] * width_px + velocity_x * seconds - layer.width / 2
        y = self.centre[1] * height_px + velocity_y * seconds - layer.height / 2
        return round(x), round(y)


def draw_text(frame: RgbFrame, lines: tuple[TextLine, ...], seconds: float) -> RgbFrame:
    """A copy of a frame with those lines over it that are visible at a time.

    Args:
        frame: uint8 (H, W, 3) RGB; not changed.
        lines: What to draw, the last uppermost.
        seconds: Time since the clip's start.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height_px, width_px, _ = frame.shape
    picture = Image.fromarray(frame)
    for line in lines:
        if line.is_visible(seconds):
            layer = _text_layer(line)
            picture.paste(layer, line.placed_at(width_px, height_px, seconds), mask=layer)
    return np.asarray(picture)


def draw_panels(frame: RgbFrame, panels: tuple[Panel, ...]) -> RgbFrame:
    """A copy of a frame (uint8 (H, W, 3) RGB) with the panels over it."""
    drawn = frame.copy()
    for panel in panels:
        upper, lower = (round(ratio * frame.shape[0]) for ratio in panel.y_ratios)
        drawn[upper:lower] = panel.colour
    return drawn


def text_quadrilaterals(
    lines: tuple[TextLine, ...], width_px: int, height_px: int, seconds: float
) -> NDArray[np.float64]:
    """The line boxes of those lines that are visible at a time, not clipped to the frame.

    A line box is what a text detector is asked for: one box per line of text, gaps between words
    included. It is as wide as the letters' advances and their outline, and as high as the font's
    ascent and descent: the room the typeface reserves for a line, whichever letters stand in it.
    That is about a quarter more than the ink from the tallest letter to the deepest, and stands for
    the margin that EasyOCR adds to what CRAFT finds: over the demo corpus, mean ratios of these
    boxes and of EasyOCR 1.7.2's differ by at most 0.005 + 0.15 x known.

    Returns:
        float64 (N, 4, 2), (x, y) in pixels, corners clockwise from the text's own upper left; pixel
        (column c, row r) covers [c, c + 1) x [r, r + 1).
    """
    boxes = []
    for line in lines:
        if not line.is_visible(seconds):
            continue
        layer = _text_layer(line)
        left, top = line.placed_at(width_px, height_px, seconds)
        half = np.array(_line_box_size_px(line)) / 2
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
        # In image coordinates y grows downwards, so a turn that looks counter-clockwise has the
        # sign of its sine swapped.
        cosine = math.cos(math.radians(line.angle_degrees))
        sine = math.sin(math.radians(line.angle_degrees))
        turned = corners @ np.array([(cosine, -sine), (sine, cosine)])
        centre = np.array((left + layer.width / 2, top + layer.height / 2))
        boxes.append(centre + turned)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4, 2)


@lru_cache(maxsize=64)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's bundled font, laid out without Raqm, whose presence differs between wheels."""
    font = ImageFont.load_default(size=size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError(
            "The demo corpus needs Pillow with FreeType, and this one has only bitmap fonts: "
            "reinstall Pillow from its own wheels."
        )
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _outline_px(line: TextLine) -> int:
    return 0 if line.outline is None else line.outline_px


def _line_box_size_px(line: TextLine) -> tuple[int, int]:
    font = _font(line.font_size_px)
    ascent_px, descent_px = font.getmetrics()
    return math.ceil(font.getlength(line.text)) + 2 * _outline_px(line), ascent_px + descent_px


@lru_cache(maxsize=64)
def _text_layer(line: TextLine) -> Image.Image:
    """The line's letters on a transparent layer (RGBA) with its line box in the centre, turned."""
    layer = Image.new("RGBA", _line_box_size_px(line), (0, 0, 0, 0))
    ImageDraw.Draw(layer).text(
        (_outline_px(line), 0),
        line.text,
        font=_font(line.font_size_px),
        fill=line.colour,
        stroke_width=_outline_px(line),
        stroke_fill=line.outline,
        anchor="la",
    )
    return layer.rotate(line.angle_degrees, resample=Image.Resampling.BICUBIC, expand=True)


def _blend(under: Rgb | RgbFrame, over: Rgb, share: NDArray[np.floating]) -> RgbFrame:
    """Mixes two colours per pixel; `share` float (H, W) in [0, 1] is how much of `over` shows."""
    shape = (*share.shape, 3)
    low, high = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    low[:], high[:] = under, over
    weight = share.astype(np.float32)
    return cv2.blendLinear(low, high, 1 - weight, weight).astype(np.uint8, copy=False)


@lru_cache(maxsize=8)
def _noise_sheet(width_px: int, height_px: int, seed: int, cell_px: int) -> NDArray[np.float32]:
    """Soft noise in about [0, 1], float32 (height_px, width_px); bumps lie: twice as wide as high.

    Rounder ones are taken for text by CRAFT now and then.
    """
    shape = height_px // cell_px + 2, width_px // (2 * cell_px) + 2
    cells = np.random.default_rng(seed).random(shape)
    sheet = cv2.resize(
        cells.astype(np.float32), (width_px, height_px), interpolation=cv2.INTER_CUBIC
    )
    return sheet.astype(np.float32)


def _drifting_noise(
    width_px: int, height_px: int, seed: int, cell_px: int, drift_px: float
) -> NDArray[np.float32]:
    """A window on a wider sheet of noise, float32 (height_px, width_px), moved by `drift_px`."""
    sheet = _noise_sheet(width_px + _MAX_DRIFT_PX, height_px, seed, cell_px)
    left = round(drift_px) % _MAX_DRIFT_PX
    return sheet[:, left : left + width_px]
