"""The report as one HTML file: what the template shows, in words, percentages and SVG paths.

Belongs here: how numbers become what the page draws. The template (`report.html.jinja`) has markup,
style and script, and escapes whatever it is given; it loads nothing, and its policy forbids it to.
"""

import base64
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ocr_assets.curation.report import (
    COMMON_THRESHOLDS,
    METRIC_IN_WORDS,
    REASON_IN_WORDS,
    STOP_COUNT,
    Clip,
    ClipFrame,
    ClipGroup,
    GroupKind,
    Report,
)
from ocr_assets.curation.selection import SelectionRule, SeveralVideos, UnscoredPolicy

TEMPLATE = "report.html.jinja"

PLOT_WIDTH, PLOT_HEIGHT = 1000, 100
"""The plots' own coordinates; the page stretches them."""

_BAR_SHARE = 0.82
_CUT_FACTOR = 1.6
"""A bar of zeros that is longer than this times the next one is cut off there."""

_HEADROOM = 1.15
"""Room above the tallest bar, for the number on the bar of zeros."""

_SHOWN_BOXES = 300
"""Per frame, the first; more are a grey haze, and a page of them is large."""

_HEADINGS = {
    GroupKind.EVERY: ("Every scored clip", "Most text first."),
    GroupKind.HIGHEST: ("Most text", "The clips with the highest values."),
    GroupKind.BORDERLINE: (
        "Borderline",
        "The clips nearest to the threshold of the rule, from both sides, in order.",
    ),
    GroupKind.RANDOM: ("Random", "Drawn from all others; the same ones each time."),
}

_UNSCORED_IN_WORDS = {
    UnscoredPolicy.DROP: "Samples that cannot be judged for want of a score are dropped.",
    UnscoredPolicy.KEEP: "Samples that cannot be judged for want of a score are kept.",
    UnscoredPolicy.FAIL: (
        "A sample that cannot be judged for want of a score stops the run; below, it counts as"
        " dropped."
    ),
}


def render_page(report: Report) -> str:
    """The whole page, with everything in it."""
    environment = Environment(
        loader=PackageLoader("ocr_assets", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.get_template(TEMPLATE).render(
        report=report,
        rule=report.rule,
        rule_in_words=rule_in_words(report.rule),
        unscored_in_words=_UNSCORED_IN_WORDS[report.rule.unscored],
        metric_in_words=METRIC_IN_WORDS[report.rule.metric],
        reason_in_words=REASON_IN_WORDS,
        command=command(report),
        plot=_plot(report),
        yield_rows=_yield_rows(report),
        groups=[_group(report, group) for group in report.groups if group.clips],
        data={
            "edges": report.steps.edges,
            "kept": report.steps.kept,
            "exact": report.steps.is_exact,
            "stops": report.axis.stops(),
            "top": report.axis.top,
            "min": report.rule.min_ratio,
            "max": report.rule.max_ratio,
            "samples": report.sample_count,
            "never": report.never_kept_count,
        },
    )


def rule_in_words(rule: SelectionRule) -> str:
    """What the rule keeps, as a sentence."""
    which = (
        "any of its videos has"
        if rule.several_videos is SeveralVideos.ANY
        else "all of its videos have"
    )
    low = f"at least {rule.min_ratio:g} and " if rule.min_ratio > 0 else ""
    return f"A sample is kept if {which} a value of {low}at most {rule.max_ratio:g}."


def command(report: Report) -> list[str]:
    """The command line that applies another threshold, up to the threshold, word by word.

    It names the data directory, sampler and detector even where they are the defaults: another
    scorer would have to score everything anew.
    """
    rule, usual = report.rule, SelectionRule()
    words = ["ocr-assets", "run", "SOURCE", "--out", report.data_path]
    if report.scorer is not None:
        words += ["--sampler", report.scorer.sampler, "--detector", report.scorer.detector]
    if rule.metric is not usual.metric:
        words += ["--metric", rule.metric.value]
    if rule.min_ratio != usual.min_ratio:
        words += ["--min-ratio", repr(rule.min_ratio)]
    if rule.several_videos is not usual.several_videos:
        words += ["--several-videos", rule.several_videos.value]
    if rule.unscored is not usual.unscored:
        words += ["--unscored", rule.unscored.value]
    return [shlex.quote(word) for word in (*words, "--max-ratio")]


def _sha256(script: str) -> str:
    """A script's digest as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plot(report: Report) -> dict[str, Any]:
    axis, counts = report.axis, report.histogram.counts
    zero_count, highest = report.histogram.zero_count, max(counts)
    # Most of a dataset is often free of text; its bar alone would press all others flat.
    is_cut = 0 < _CUT_FACTOR * highest < zero_count
    top = max(highest * _CUT_FACTOR if is_cut else max(highest, zero_count), 1) * _HEADROOM
    return {
        "bars": _bars(counts, top),
        "highest": highest,
        "zero_percent": 100 * min(zero_count / top, 1 / _HEADROOM),
        "is_zero_cut": is_cut,
        "curve": _curve(report),
        "min_percent": 100 * axis.position(report.rule.min_ratio),
        "max_percent": 100 * axis.position(report.rule.max_ratio),
        "kept_percent": 100 * report.kept_count / max(report.sample_count, 1),
        "slider": round(STOP_COUNT * axis.position(report.rule.max_ratio)),
        "slider_max": STOP_COUNT,
        "ticks": [(f"{tick:g}", 100 * axis.position(tick)) for tick in axis.ticks()],
    }


def _bars(counts: Sequence[int], top: float) -> str:
    width = PLOT_WIDTH / len(counts)
    return "".join(
        f"M{(i + (1 - _BAR_SHARE) / 2) * width:.1f} {PLOT_HEIGHT}"
        f"v{-PLOT_HEIGHT * count / top:.2f}h{_BAR_SHARE * width:.1f}V{PLOT_HEIGHT}z"
        for i, count in enumerate(counts)
        if count
    )


def _curve(report: Report) -> str:
    """The yield as a staircase from the left edge to the right, one step per stop at most."""
    total = max(report.sample_count, 1)
    parts: list[str] = []
    shown = None
    for i, stop in enumerate(report.axis.stops()):
        kept = report.steps.at(stop)
        if kept != shown:
            x, y = PLOT_WIDTH * i / STOP_COUNT, PLOT_HEIGHT * (1 - kept / total)
            parts.append(f"M{x:g} {y:.2f}" if shown is None else f"H{x:g}V{y:.2f}")
            shown = kept
    return "".join(parts) + f"H{PLOT_WIDTH}"


def _yield_rows(report: Report) -> list[tuple[str, int, str]]:
    thresholds = sorted({*COMMON_THRESHOLDS, report.rule.max_ratio})
    return [
        (f"{value:g}", report.steps.at(value), _percent(report.steps.at(value), report))
        for value in thresholds
        if report.rule.min_ratio <= value <= max(report.axis.top, report.rule.max_ratio)
    ]


def _percent(count: int, report: Report) -> str:
    return f"{100 * count / max(report.sample_count, 1):.1f} %"


def _group(report: Report, group: ClipGroup) -> dict[str, Any]:
    heading, note = _HEADINGS[group.kind]
    clips = list(group.clips)
    if group.kind is GroupKind.BORDERLINE:
        clips.sort(key=lambda clip: (clip.value, clip.path))
    return {
        "kind": group.kind.value,
        "heading": heading,
        "note": note,
        "cards": [_card(report, clip) for clip in clips],
    }


def _card(report: Report, clip: Clip) -> dict[str, Any]:
    frame = report.frames.get(clip.video_id)
    webp = report.pictures.get(clip.video_id)
    return {
        "name": PurePath(clip.path).name,
        "path": clip.path,
        "value": f"{clip.value:.4f}",
        "percent": 100 * report.axis.position(clip.value),
        # As JavaScript's Number() reads it.
        "kept_from": repr(clip.kept_from).replace("inf", "Infinity"),
        "is_kept": clip.kept_from <= report.rule.max_ratio,
        "notes": _notes(clip, frame, has_picture=webp is not None),
        "frame": frame,
        "boxes": _boxes(frame) if frame else "",
        "picture": f"data:image/webp;base64,{base64.b64encode(webp).decode()}" if webp else None,
    }


def _notes(clip: Clip, frame: ClipFrame | None, *, has_picture: bool) -> list[str]:
    notes = []
    if frame is not None and frame.boxes:
        boxes = "1 box" if len(frame.boxes) == 1 else f"{len(frame.boxes):,} boxes"
        notes.append(f"{boxes} in the frame at {frame.pts_seconds:.1f}\N{NO-BREAK SPACE}s")
        if len(frame.boxes) > _SHOWN_BOXES:
            notes.append(f"the first {_SHOWN_BOXES} drawn")
    elif frame is not None:
        notes.append("no text found")
    if not has_picture:
        notes.append("frame not on disk any more")
    if clip.companion_count:
        others = "other" if clip.companion_count == 1 else "others"
        notes.append(f"verdict of its sample, with {clip.companion_count} {others}")
    if clip.sample_count > 1:
        notes.append(f"in {clip.sample_count:,} samples")
    return notes


def _boxes(frame: ClipFrame) -> str:
    return "".join(
        "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in zip(box[::2], box[1::2], strict=True)) + "Z"
        for box in frame.boxes[:_SHOWN_BOXES]
    )
