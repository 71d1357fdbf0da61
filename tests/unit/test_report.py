"""The report: what each threshold keeps, which clips are shown, and a page that is safe to open."""

import base64
import hashlib
import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocr_assets.curation.reasons import UnscoredReason
from ocr_assets.curation.report import (
    BIN_COUNT,
    COMMON_THRESHOLDS,
    GROUP_SIZE,
    MAX_EXACT_STEPS,
    METRIC_IN_WORDS,
    REASON_IN_WORDS,
    Axis,
    Clip,
    ClipFrame,
    GroupKind,
    Report,
    ScorerFacts,
    UnscoredGroup,
    UnscoredVideo,
    axis_for,
    histogram,
    kept_from,
    pick_clips,
    yield_steps,
)
from ocr_assets.curation.selection import (
    Metric,
    SelectionRule,
    SeveralVideos,
    UnscoredPolicy,
    UnscoredSamplesError,
    decide,
)
from ocr_assets.gallery import MAX_PICTURE_BYTES
from ocr_assets.report_page import command, render_page, rule_in_words

ANY, ALL = SeveralVideos.ANY, SeveralVideos.ALL
DROP, KEEP, FAIL = UnscoredPolicy.DROP, UnscoredPolicy.KEEP, UnscoredPolicy.FAIL
NEVER = math.inf
EVIL = '<script>alert("x")</script>\'&"><img src=x onerror=alert(1)>.mp4'
MAX_PAGE_BYTES = 3_000_000


def clip(index: int = 0, value: float = 0.05, **changes: Any) -> Clip:
    fields: dict[str, Any] = {
        "video_id": f"video{index}",
        "path": f"/videos/clip{index:05d}.mp4",
        "value": value,
        "kept_from": value,
    }
    return Clip(**{**fields, **changes})


def frame(box_count: int = 1) -> ClipFrame:
    box = [10.0, 10.0, 60.0, 10.0, 60.0, 30.0, 10.0, 30.0]
    return ClipFrame("s000001", 3, 0.3, 320, 240, 0.1, [box] * box_count)


def report(
    clips: list[Clip],
    rule: SelectionRule | None = None,
    *,
    never_kept_count: int = 0,
    **changes: Any,
) -> Report:
    """A report of samples of one video each, and of some that nothing keeps."""
    rule = rule or SelectionRule()
    thresholds = [clip.kept_from for clip in clips] + [NEVER] * never_kept_count
    axis = axis_for([clip.value for clip in clips], rule)
    steps = yield_steps(thresholds, rule, axis)
    groups = pick_clips(clips, rule.max_ratio, "scorer")
    shown = [clip for group in groups for clip in group.clips]
    fields: dict[str, Any] = {
        "made_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "data_path": "/data",
        "rule": rule,
        "scorer_id": "scorer",
        "scorer": ScorerFacts("uniform(3)", "craft", "0" * 64, "{}"),
        "sample_count": len(thresholds),
        "kept_count": steps.at(rule.max_ratio),
        "never_kept_count": thresholds.count(NEVER),
        "rejected_by_reason": {},
        "video_count": len(clips),
        "frame_count": 3 * len(clips),
        "box_count": len(clips),
        "unscored": [],
        "axis": axis,
        "histogram": histogram([clip.value for clip in clips], axis),
        "steps": steps,
        "groups": groups,
        "frames": {clip.video_id: frame() for clip in shown},
        "pictures": {clip.video_id: b"webp" for clip in shown},
    }
    return Report(**{**fields, **changes})


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text by element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]

    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def page(made: Report) -> Page:
    return Page(render_page(made))


values = st.lists(st.none() | st.sampled_from([0.0, 0.02, 0.05, 0.07, 0.2, 0.9]), max_size=4)


@given(
    values=values,
    low=st.sampled_from([0.0, 0.02, 0.06]),
    high=st.sampled_from([0.06, 0.07, 0.3, 1.0]),
    several=st.sampled_from(SeveralVideos),
    unscored=st.sampled_from(UnscoredPolicy),
)
@example(values=[0.2, None], low=0.0, high=0.06, several=ANY, unscored=KEEP)
@example(values=[0.2, None], low=0.0, high=0.3, several=ALL, unscored=KEEP)
def test_the_slider_says_what_the_rule_would_decide(
    values: list[float | None],
    low: float,
    high: float,
    several: SeveralVideos,
    unscored: UnscoredPolicy,
):
    rule = SelectionRule(min_ratio=low, max_ratio=high, several_videos=several, unscored=unscored)
    metrics = {f"v{i}": value for i, value in enumerate(values) if value is not None}
    try:
        is_kept = decide(rule, [f"v{i}" for i in range(len(values))], metrics).is_kept
    except UnscoredSamplesError:
        is_kept = False
    assert (kept_from(rule, values) <= high) is is_kept


@pytest.mark.parametrize(
    ("values", "by_any", "by_all"),
    [
        ([], 0.01, 0.01),
        ([0.2], 0.2, 0.2),
        ([0.0], NEVER, NEVER),
        ([0.2, 0.05], 0.05, 0.2),
        ([0.2, 0.0], 0.2, NEVER),
        ([0.2, None], 0.2, NEVER),
        ([None], NEVER, NEVER),
    ],
)
def test_one_number_tells_from_where_on_a_sample_is_kept(
    values: list[float | None], by_any: float, by_all: float
):
    for several, expected in ((ANY, by_any), (ALL, by_all)):
        rule = SelectionRule(min_ratio=0.01, several_videos=several)
        assert kept_from(rule, values) == expected


def test_kept_unscored_samples_are_kept_at_any_threshold():
    for several in SeveralVideos:
        rule = SelectionRule(several_videos=several, unscored=KEEP)
        assert kept_from(rule, [None]) == 0


def test_few_steps_are_all_there():
    rule = SelectionRule(max_ratio=0.07)
    steps = yield_steps([0.0, 0.0, 0.1, 0.07, NEVER], rule, Axis(0.5))
    assert steps.is_exact
    assert (steps.edges, steps.kept) == ([0.0, 0.07, 0.1], [2, 3, 4])
    assert [steps.at(value) for value in (0.0, 0.0699, 0.07, 0.0999, 5.0)] == [2, 2, 3, 3, 4]


def test_nothing_is_kept_below_the_first_step():
    steps = yield_steps([0.05], SelectionRule(max_ratio=0.07), Axis(0.5))
    assert steps.at(0.049) == 0


def test_many_steps_are_counted_at_the_sliders_stops_and_at_the_threshold():
    thresholds = [i / 50_000 for i in range(50_000)]
    rule = SelectionRule(max_ratio=1 / 15)
    axis = axis_for(thresholds, rule)
    steps = yield_steps(thresholds, rule, axis)
    assert not steps.is_exact
    assert len(steps.edges) < MAX_EXACT_STEPS
    for edge in (*axis.stops(), *COMMON_THRESHOLDS, rule.max_ratio):
        assert steps.at(edge) == sum(value <= edge for value in thresholds[: steps.at(edge) + 2])
    # A threshold in between is counted at the stop below it, never above.
    assert steps.at(0.066_67) == steps.at(rule.max_ratio)


@pytest.mark.parametrize(
    ("values", "max_ratio", "top"),
    [([], 0.07, 0.1), ([0.12], 0.07, 0.2), ([0.44], 0.07, 0.5), ([1.0], 0.07, 1.0)],
)
def test_the_axis_ends_at_a_round_number_above_all_values(
    values: list[float], max_ratio: float, top: float
):
    assert axis_for(values, SelectionRule(max_ratio=max_ratio)).top == top


def test_box_areas_above_one_are_on_the_axis_and_absurd_thresholds_are_not():
    assert axis_for([2.6], SelectionRule()).top == 3.0
    axis = axis_for([0.2], SelectionRule(max_ratio=1e6))
    assert axis.top == 1.0
    assert axis.position(1e6) == 1.0


@given(st.floats(min_value=0.1, max_value=30))
def test_ticks_stand_apart(top: float):
    axis = Axis(top)
    places = [axis.position(tick) for tick in axis.ticks()]
    assert places == sorted(places)
    assert all(b - a >= 0.05 for a, b in pairwise(places))


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=50))
def test_every_video_is_in_one_bar(values: list[float]):
    bars = histogram(values, axis_for(values, SelectionRule()))
    assert len(bars.counts) == BIN_COUNT
    assert bars.zero_count + sum(bars.counts) == len(values)


def test_a_small_dataset_is_shown_whole():
    clips = [clip(i, i / 100) for i in range(GROUP_SIZE)]
    (group,) = pick_clips(clips, 0.07, "scorer")
    assert group.kind is GroupKind.EVERY
    assert [chosen.value for chosen in group.clips] == sorted(
        (chosen.value for chosen in clips), reverse=True
    )


def test_a_large_dataset_shows_highest_borderline_and_random_clips_each_once():
    clips = [clip(i, i / 1000) for i in range(1000)]
    highest, borderline, random = pick_clips(clips, 0.07, "scorer")
    assert [chosen.value for chosen in highest.clips] == [i / 1000 for i in range(999, 975, -1)]
    assert sorted(chosen.value for chosen in borderline.clips) == [i / 1000 for i in range(59, 83)]
    assert borderline.clips[0].value == 0.07
    shown = [c.video_id for group in (highest, borderline, random) for c in group.clips]
    assert len(shown) == len(set(shown)) == 3 * GROUP_SIZE


def test_where_one_side_of_the_threshold_is_empty_the_other_fills_the_borderline():
    clips = [clip(i, 0.0) for i in range(90)]
    highest, borderline, random = pick_clips(clips, 0.07, "scorer")
    # Clips without text are not the ones with most text.
    assert (len(highest.clips), len(borderline.clips)) == (0, GROUP_SIZE)
    assert len(random.clips) == GROUP_SIZE


def test_random_clips_are_the_same_each_time_and_others_for_another_scorer():
    clips = [clip(i, i / 1000) for i in range(1000)]
    draws = [
        pick_clips(given, 0.07, seed)[2].clips
        for given, seed in ((clips, "a"), (clips[::-1], "a"), (clips, "b"))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_the_contact_sheet_has_a_row_of_each_group():
    for count, sizes in ((12, [12]), (24, [4, 4, 4]), (500, [4, 4, 4])):
        made = report([clip(i, i / 1000) for i in range(count)])
        assert [len(group.clips) for group in made.sheet_groups()] == sizes


def test_every_metric_and_reason_has_its_words():
    assert METRIC_IN_WORDS.keys() == set(Metric)
    assert REASON_IN_WORDS.keys() == set(UnscoredReason)


def test_the_rule_is_told_in_words():
    assert rule_in_words(SelectionRule()) == (
        "A sample is kept if any of its videos has a value of at most 0.07."
    )
    assert rule_in_words(SelectionRule(min_ratio=0.01, several_videos=ALL)) == (
        "A sample is kept if all of its videos have a value of at least 0.01 and at most 0.07."
    )


def test_the_command_names_the_scorer_and_what_differs_from_the_defaults():
    rule = SelectionRule(
        metric=Metric.TEXT_FRAME_RATIO, min_ratio=0.01, several_videos=ALL, unscored=KEEP
    )
    assert " ".join(command(report([clip()], rule, data_path="/my data"))) == (
        "ocr-assets run SOURCE --out '/my data' --sampler 'uniform(3)' --detector craft"
        " --metric text_frame_ratio --min-ratio 0.01 --several-videos all --unscored keep"
        " --max-ratio"
    )


def test_the_page_shows_the_datasets_counts_before_the_slider_moves():
    made = report([clip(i, i / 100) for i in range(20)], never_kept_count=2)
    html = page(made)
    data = html.data()
    assert made.kept_count == 8
    assert data["kept"][data["edges"].index(data["max"])] == made.kept_count
    assert "8 of 22 samples kept" in html.texts
    cards = html.all("li", **{"class": "card"}) + html.all("li", **{"class": "card is-dropped"})
    assert len(cards) == 20
    assert len(html.all("li", **{"class": "card is-dropped"})) == 12
    for card in cards:
        is_kept = float(str(card["data-kept-from"])) <= data["max"]
        assert is_kept == (card["class"] == "card")


def test_a_sample_that_nothing_keeps_has_a_card_that_javascript_reads_so():
    html = page(report([clip(kept_from=NEVER)]))
    (card,) = html.all("li", **{"class": "card is-dropped"})
    assert card["data-kept-from"] == "Infinity"


def test_names_and_details_from_outside_are_text_never_markup():
    unscored = UnscoredGroup("not_a_video", 1, [UnscoredVideo(f"/{EVIL}", f"no: {EVIL}")])
    made = report(
        [clip(path=f"/videos/{EVIL}")],
        unscored=[unscored],
        data_path=f"/{EVIL}",
        scorer=ScorerFacts(EVIL, EVIL, EVIL, EVIL),
    )
    html = page(made)
    assert [found.get("type") for found in html.all("script")] == ["application/json", None]
    assert not any("alert(" in script for script in html.scripts)
    assert not any(name.startswith("on") for _, found in html.elements for name in found)
    assert all(str(found["src"]).startswith("data:image/webp;") for found in html.all("img"))
    assert any(EVIL.rpartition("/")[2] in text for text in html.texts)
    assert any(f"no: {EVIL}" in text for text in html.texts)


def test_the_page_loads_nothing_and_forbids_it():
    html = page(report([clip(i, i / 100) for i in range(30)]))
    for tag, found in html.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "audio", "video"}
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert (found.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"https?://|url\(|@import", render_page(report([clip()])))
    (policy,) = html.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")


def test_only_the_pages_own_script_may_run():
    html = page(report([clip()]))
    digest = base64.b64encode(hashlib.sha256(html.scripts[1].encode()).digest()).decode()
    (policy,) = html.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert f"script-src 'sha256-{digest}';" in str(policy["content"])


def test_every_control_has_a_name_and_every_reference_a_target():
    html = page(report([clip(i, i / 100) for i in range(30)], never_kept_count=1))
    ids = [found["id"] for _, found in html.elements if found.get("id")]
    assert len(ids) == len(set(ids))
    for _, found in html.elements:
        for name in ("for", "aria-labelledby"):
            assert found.get(name) is None or found[name] in ids
    assert html.all("input", type="range")[0]["aria-label"] == "max_ratio"
    assert len(html.all("label")) == len(html.all("input")) - 1
    assert html.all("p", role="status")[0]["aria-live"] == "polite"
    assert html.all("html")[0]["lang"] == "en"


def test_the_page_is_for_reading_where_no_script_runs():
    html = page(report([clip()]))
    assert all("disabled" in found for found in html.all("button") if "aria-label" in found)
    scripted = [
        found for _, found in html.elements if "scripted" in str(found.get("class")).split()
    ]
    assert scripted
    assert all("hidden" in found for found in scripted)


def test_unscored_files_stand_apart_with_their_reason():
    listed = [UnscoredVideo(f"/videos/{i}.mp4", None) for i in range(3)]
    html = page(report([clip()], unscored=[UnscoredGroup("decode_failed", 1200, listed)]))
    assert "decode_failed" in html.texts
    assert REASON_IN_WORDS["decode_failed"] in html.texts
    assert any("and 1,197 more" in text for text in html.texts)


def test_min_ratio_is_shown_as_fixed():
    html = page(report([clip()], SelectionRule(min_ratio=0.01)))
    assert html.all("div", **{"class": "line min"})
    assert html.all("input", type="number")[0]["min"] == "0.01"


@pytest.mark.parametrize("clips", [[], [clip()], [clip(value=0.0, kept_from=0.0)]])
def test_datasets_of_nothing_and_of_one_video_have_a_page(clips: list[Clip]):
    html = page(report(clips, scorer=None))
    assert f"{len(clips)} of {len(clips)} samples kept" in html.texts


def test_a_clip_whose_frame_is_gone_says_so():
    html = page(report([clip()], pictures={}))
    assert "frame not on disk any more" in html.texts
    assert html.all("svg", **{"class": "boxes"})
    assert not html.all("img")


def test_a_page_of_everything_at_its_largest_is_small():
    clips = [clip(i, (i + 1) / 3 / 10_000) for i in range(MAX_EXACT_STEPS - 1)]
    made = report(clips)
    assert made.steps.is_exact
    shown = [chosen.video_id for group in made.groups for chosen in group.clips]
    largest = report(
        clips,
        frames=dict.fromkeys(shown, frame(1000)),
        pictures=dict.fromkeys(shown, b"x" * MAX_PICTURE_BYTES),
    )
    assert len(shown) == 3 * GROUP_SIZE
    assert len(render_page(largest).encode()) < MAX_PAGE_BYTES
