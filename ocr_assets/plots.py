"""Small pictures for the UI, as PNG.

Belongs here: how they look. Does not belong here: taking the figures, and Dagster. Matplotlib is
imported when the first picture is drawn, which takes it a second. It keeps a list of fonts in the
home directory; where that cannot be written it says so and makes the list again in each process.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from resources.usage_sampler import UsageSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

WIDTH_PX = 640
HEIGHT_PX = 240

_DPI = 100
_COLOUR_COUNT = 64
_MIB_PER_GIB = 2**10
_MAX_UNITS = 300
"""A time axis counts up to so many seconds, or minutes, before it takes the next larger unit."""

_MIN_SHARE_FOR_TOTAL = 0.4
"""Where the device never fills to this share, a line at its total would press the rest flat."""

_MAX_UTILIZATION_POINTS = 100
"""Utilization jumps from sample to sample. More of them than this are drawn as means of a few: a
trend in the background, where every jump would be a grey wall."""

_DEVICE = "#3d7fb5"
_DEVICE_FILL_ALPHA = 0.22
_PROCESS = "#d1590d"
_UTILIZATION = "#c4c4c4"
_TEXT = "#444444"

# Said in full, so that nobody's matplotlibrc changes the picture.
_STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.edgecolor": "#999999",
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": _TEXT,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "figure.facecolor": "white",
    "legend.fontsize": 8,
    "text.color": _TEXT,
    "text.usetex": False,
    "xtick.color": _TEXT,
    "xtick.labelsize": 8,
    "ytick.color": _TEXT,
    "ytick.labelsize": 8,
}


def usage_plot(samples: Sequence[UsageSample]) -> bytes:
    """Draws what a worker and its device took over time.

    The device's memory is an area, with its total as a broken line unless that is far above; this
    process's memory is a line; utilization is a grey line on an axis of its own.

    Args:
        samples: In order of time, at least one.

    Returns:
        A PNG of `WIDTH_PX` x `HEIGHT_PX` pixels, of 4 to 10 kB; of 26 where memory jumps.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("a plot of usage needs at least one sample, got none")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    time_unit, seconds_per_unit = _time_unit(samples)
    with mpl.rc_context(_STYLE):
        figure = Figure((WIDTH_PX / _DPI, HEIGHT_PX / _DPI), dpi=_DPI)
        memory = figure.add_axes((0.085, 0.18, 0.835, 0.69))
        share = memory.twinx()
        # What the grey line tells is the background of the rest.
        memory.set_zorder(share.get_zorder() + 1)
        memory.patch.set_visible(False)
        for axes in (memory, share):
            axes.spines[["top", "left", "right"]].set_visible(False)
            axes.tick_params(length=2)
        # An axis needs a length, which one sample alone does not give it.
        memory.set_xlim(0, max(samples[-1].elapsed_seconds, 0.1) / seconds_per_unit)
        memory.set_xlabel(f"time ({time_unit})", labelpad=1)
        _draw_memory(memory, samples, seconds_per_unit)
        _draw_utilization(share, samples, seconds_per_unit)
        _draw_legend(memory, share)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    file = io.BytesIO()
    # Five colours and their blends need no more; true colour takes three times the bytes.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(_COLOUR_COUNT, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def png_markdown(png: bytes, alt: str) -> str:
    """A PNG as Markdown that carries the whole picture.

    Args:
        png: The picture.
        alt: What it shows, for those who do not see it.
    """
    words = re.sub(r"([\\\[\]])", r"\\\1", " ".join(alt.split()))
    return f"![{words}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _time_unit(samples: Sequence[UsageSample]) -> tuple[str, float]:
    """The unit of the time axis and its length in seconds: the first in which little is counted."""
    end_seconds = samples[-1].elapsed_seconds
    return next(
        (unit for unit in (("s", 1), ("min", 60)) if end_seconds < _MAX_UNITS * unit[1]),
        ("h", 3600),
    )


def _memory_unit(peak_mib: int) -> tuple[str, float]:
    """The unit of the memory axis and its size in MiB."""
    return ("GiB", _MIB_PER_GIB) if peak_mib >= _MIB_PER_GIB else ("MiB", 1)


def _draw_memory(axes: "Axes", samples: Sequence[UsageSample], seconds_per_unit: float) -> None:
    device_peak_mib = max(sample.device_used_mib for sample in samples)
    total_mib = samples[-1].device_total_mib
    unit, unit_mib = _memory_unit(device_peak_mib)

    times = [sample.elapsed_seconds / seconds_per_unit for sample in samples]
    used = [sample.device_used_mib / unit_mib for sample in samples]
    label = f"device: peak {device_peak_mib / unit_mib:.3g} of {total_mib / unit_mib:.3g} {unit}"
    # Seen through: the grey line must not end at the area's edge.
    axes.fill_between(times, used, color=_DEVICE, alpha=_DEVICE_FILL_ALPHA, linewidth=0)
    _draw_line(axes, times, used, _DEVICE, label)

    own = [
        (time, sample.process_mib / unit_mib)
        for time, sample in zip(times, samples, strict=True)
        if sample.process_mib is not None
    ]
    if own:
        own_times, own_used = zip(*own, strict=True)
        label = f"this process: peak {max(own_used):.3g} {unit}"
        _draw_line(axes, own_times, own_used, _PROCESS, label)

    top = max(used + [figure for _, figure in own])
    if device_peak_mib >= _MIN_SHARE_FOR_TOTAL * total_mib:
        axes.axhline(total_mib / unit_mib, color=_TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
        top = max(top, total_mib / unit_mib)
    # One that carries nothing at all still needs an axis of some height.
    axes.set_ylim(0, 1.08 * top or 1)
    axes.locator_params(axis="y", nbins=5)
    axes.set_ylabel(f"memory ({unit})")
    axes.yaxis.set_label_coords(-0.068, 0.5)


def _draw_utilization(
    axes: "Axes", samples: Sequence[UsageSample], seconds_per_unit: float
) -> None:
    told = [
        (sample.elapsed_seconds / seconds_per_unit, sample.utilization_percent)
        for sample in samples
        if sample.utilization_percent is not None
    ]
    axes.set_visible(bool(told))
    if not told:
        return
    times, percents = zip(*told, strict=True)
    label = f"utilization: mean {fmean(percents):.0f} %"
    together = math.ceil(len(told) / _MAX_UTILIZATION_POINTS)
    _draw_line(axes, _means(times, together), _means(percents, together), _UTILIZATION, label)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("utilization (%)")
    axes.yaxis.set_label_coords(1.056, 0.5)


def _means(figures: Sequence[float], count: int) -> list[float]:
    """Of each `count` figures that follow one another."""
    return [fmean(figures[start : start + count]) for start in range(0, len(figures), count)]


def _draw_line(
    axes: "Axes", times: Sequence[float], figures: Sequence[float], color: str, label: str
) -> None:
    # One point alone makes no line, so it is marked; at the edge the mark is not cut in half.
    marker = "o" if len(times) == 1 else ""
    axes.plot(times, figures, color=color, marker=marker, linewidth=1.2, clip_on=False, label=label)


def _draw_legend(memory: "Axes", share: "Axes") -> None:
    found = [axes.get_legend_handles_labels() for axes in (memory, share)]
    memory.legend(
        [handle for handles, _ in found for handle in handles],
        [label for _, labels in found for label in labels],
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.6,
        frameon=False,
        handlelength=1.4,
        ncols=3,
    )
