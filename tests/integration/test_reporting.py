"""The report of a real data directory: DuckDB and frames files in, one page and pictures out."""

import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from making import frame_row, missing_file_row, score_rows, segment_row, stored_frame, write_catalog
from PIL import Image

from ocr_assets.assembling import assemble_dataset
from ocr_assets.curation.manifest import SAMPLE_JSON, SAMPLE_PATHS
from ocr_assets.curation.report import GROUP_SIZE
from ocr_assets.curation.selection import SelectionRule, SeveralVideos
from ocr_assets.gallery import (
    MAX_PICTURE_BYTES,
    MAX_SHEET_BYTES,
    contact_sheet_png,
    histogram_png,
    read_frames,
    thumbnail,
    yield_curve_png,
)
from ocr_assets.reporting import OtherRuleError, gather_report, write_report
from ocr_assets.results import NoResultsError
from resources.data_directory import DataDirectory
from resources.frame_store import FramesProvenance, encode_png

SCORER = "scorer"
SHARD = "s000001"
RULE = SelectionRule()
Frames = Mapping[str, Sequence[float]]
"""The text-area ratio of each frame, by video id."""


def data_directory(
    path: Path, frames: Frames, *, samples: Sequence[Sequence[str]] | None = None
) -> DataDirectory:
    """A data directory with scores and frames of these videos.

    Args:
        path: Where.
        frames: Frames that are scored.
        samples: Video ids of each sample, any name without scores among them; by default each
            video is a sample of its own.
    """
    data = DataDirectory(path)
    samples = [[video_id] for video_id in frames] if samples is None else samples
    missing = {name for sample in samples for name in sample if name not in frames}
    write_catalog(
        data.catalog,
        dict.fromkeys(frames, 1),
        file_rows=[missing_file_row(f"/videos/{name}.mp4") for name in sorted(missing)],
    )
    paths = [[f"/videos/{name}.mp4" for name in sample] for sample in samples]
    rows = pa.table(
        {
            SAMPLE_PATHS: pa.array(paths, pa.list_(pa.string())),
            SAMPLE_JSON: pa.array(["{}"] * len(samples), pa.string()),
        }
    )
    data.catalog.write(
        files=data.catalog.files(),
        videos=data.catalog.videos(),
        segments=data.catalog.segments(),
        samples=[rows],
    )
    scored = [
        segment_row(
            video_id,
            frames=[
                frame_row(i, ratio, box_count=int(ratio > 0)) for i, ratio in enumerate(ratios)
            ],
        )
        for video_id, ratios in frames.items()
    ]
    data.score_files.write(SHARD, SCORER, score_rows(*scored))
    picture = stored_frame()
    with data.frames.writing(SHARD) as writer:
        for video_id, ratios in frames.items():
            for i in range(len(ratios)):
                writer.add(replace(picture, video_id=video_id, frame_index=i))
        writer.finish(FramesProvenance("uniform(3)", []))
    return data


def assembled(
    path: Path,
    frames: Frames,
    rule: SelectionRule = RULE,
    *,
    samples: Sequence[Sequence[str]] | None = None,
) -> DataDirectory:
    data = data_directory(path, frames, samples=samples)
    assemble_dataset(data, rule, SCORER)
    return data


CLIPS = {"plain": [0.0, 0.0], "line": [0.02, 0.04], "slide": [0.5, 0.3]}


def test_the_page_tells_what_the_assembly_came_to(tmp_path: Path):
    data = data_directory(tmp_path, CLIPS)
    summary = assemble_dataset(data, RULE, SCORER)
    path = write_report(data, RULE, SCORER)
    assert path == data.dataset / "report.html"
    html = path.read_text(encoding="utf-8")
    assert f"<h1>{summary.kept_count} of {summary.sample_count} samples kept</h1>" in html
    assert html.count("data:image/webp;base64,") == len(CLIPS)


def test_counts_and_steps_agree_with_the_dataset(tmp_path: Path):
    report = gather_report(assembled(tmp_path, CLIPS), RULE, SCORER)
    assert report.sample_count == report.video_count == 3
    assert report.kept_count == report.steps.at(RULE.max_ratio) == 2
    assert report.rejected_by_reason == {"text_area_above_max": 1}
    assert (report.frame_count, report.box_count) == (6, 4)
    assert report.scorer is not None
    assert report.scorer.detector == "craft"


def test_any_and_all_are_told_apart(tmp_path: Path):
    samples = [["line", "slide"], ["plain"]]
    for several, expected in ((SeveralVideos.ANY, 2), (SeveralVideos.ALL, 1)):
        rule = SelectionRule(several_videos=several)
        data = assembled(tmp_path / several, CLIPS, rule, samples=samples)
        report = gather_report(data, rule, SCORER)
        assert report.kept_count == report.steps.at(rule.max_ratio) == expected
        companions = {clip.video_id: clip.companion_count for clip in report.groups[0].clips}
        assert companions == {"line": 1, "slide": 1, "plain": 0}


def test_min_ratio_keeps_out_what_no_threshold_lets_in(tmp_path: Path):
    rule = SelectionRule(min_ratio=0.01)
    report = gather_report(assembled(tmp_path, CLIPS, rule), rule, SCORER)
    assert (report.kept_count, report.never_kept_count) == (1, 1)
    assert report.rejected_by_reason == {"text_area_above_max": 1, "text_area_below_min": 1}


def test_unscored_files_are_listed_with_reason_and_detail(tmp_path: Path):
    data = assembled(tmp_path, CLIPS, samples=[["slide"], ["gone"], ["gone", "line"]])
    report = gather_report(data, RULE, SCORER)
    (group,) = report.unscored
    assert (group.reason, group.count) == ("file_missing", 1)
    assert [(video.path, video.detail) for video in group.listed] == [
        ("/videos/gone.mp4", "no such file")
    ]
    assert report.kept_count == report.steps.at(RULE.max_ratio) == 1


def test_one_video_in_many_samples_is_one_clip(tmp_path: Path):
    data = assembled(tmp_path, CLIPS, samples=[["line"], ["line"], ["slide"]])
    report = gather_report(data, RULE, SCORER)
    assert {clip.video_id: clip.sample_count for clip in report.groups[0].clips} == {
        "line": 2,
        "slide": 1,
    }
    assert report.kept_count == report.steps.at(RULE.max_ratio) == 2


def test_a_clip_is_shown_by_its_frame_of_most_text_with_its_boxes(tmp_path: Path):
    report = gather_report(assembled(tmp_path, CLIPS), RULE, SCORER)
    assert {name: found.frame_index for name, found in report.frames.items()} == {
        "plain": 0,
        "line": 1,
        "slide": 0,
    }
    assert report.frames["slide"].boxes == [[1.0, 1.0, 5.0, 1.0, 5.0, 3.0, 1.0, 3.0]]
    assert report.frames["plain"].boxes == []


def test_frames_that_are_gone_leave_the_report_whole(tmp_path: Path):
    data = assembled(tmp_path, CLIPS)
    data.frames.path(SHARD).unlink()
    report = gather_report(data, RULE, SCORER)
    assert (len(report.frames), len(report.pictures)) == (3, 0)
    assert contact_sheet_png(report)
    assert "frame not on disk any more" in write_report(data, RULE, SCORER).read_text()


def test_an_empty_dataset_has_a_report_and_no_contact_sheet(tmp_path: Path):
    data = assembled(tmp_path, {}, samples=[])
    report = gather_report(data, RULE, SCORER)
    assert (report.sample_count, report.scorer) == (0, None)
    assert "0 of 0 samples kept" in write_report(data, RULE, SCORER).read_text()
    assert histogram_png(report)
    assert yield_curve_png(report)
    with pytest.raises(ValueError, match="at least one scored clip"):
        contact_sheet_png(report)


@pytest.mark.parametrize(
    ("rule", "scorer_id"),
    [
        (replace(RULE, max_ratio=0.9), SCORER),
        (replace(RULE, min_ratio=0.01), SCORER),
        (RULE, "another"),
    ],
)
def test_rejects_a_dataset_of_another_rule_or_scorer(
    tmp_path: Path, rule: SelectionRule, scorer_id: str
):
    data = assembled(tmp_path, CLIPS)
    with pytest.raises(OtherRuleError, match="materialize `filtered_dataset` first"):
        write_report(data, rule, scorer_id)


def test_rejects_a_data_directory_without_results(tmp_path: Path):
    with pytest.raises(NoResultsError, match="materialize `filtered_dataset`"):
        write_report(DataDirectory(tmp_path), RULE, SCORER)
    assert list(tmp_path.iterdir()) == []


def test_only_wanted_frames_are_read(tmp_path: Path):
    store = DataDirectory(tmp_path).frames
    with store.writing(SHARD) as writer:
        for i in range(5):
            writer.add(stored_frame(i))
        writer.finish(FramesProvenance("uniform(5)", []))
    wanted = [(SHARD, "video", 3), (SHARD, "video", 9), ("s000009", "video", 0)]
    assert list(read_frames(store, wanted)) == [((SHARD, "video", 3), stored_frame(3).png)]


@pytest.mark.parametrize("size_px", [(1920, 1080), (1080, 1920), (1, 3000), (64, 48)])
def test_pictures_are_small_in_pixels_and_bytes(size_px: tuple[int, int]):
    noise = np.random.default_rng(0).integers(0, 256, (*size_px[::-1], 3)).astype(np.uint8)
    webp = thumbnail(encode_png(noise))
    picture = Image.open(io.BytesIO(webp))
    assert picture.format == "WEBP"
    assert max(picture.size) <= 480
    assert min(picture.size) >= 1
    assert len(webp) <= 2 * MAX_PICTURE_BYTES


def test_the_uis_pictures_are_png_small_enough_for_an_event(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3)).astype(np.uint8)
    webp = thumbnail(encode_png(noise))
    clips = {f"clip {i}": [i / 100] for i in range(30)}
    report = gather_report(assembled(tmp_path, clips), RULE, SCORER)
    noisy = replace(report, pictures=dict.fromkeys(report.pictures, webp))
    for png, limit in (
        (histogram_png(report), 20_000),
        (yield_curve_png(report), 20_000),
        (contact_sheet_png(report), MAX_SHEET_BYTES),
        (contact_sheet_png(noisy), MAX_SHEET_BYTES),
    ):
        assert Image.open(io.BytesIO(png)).format == "PNG"
        assert len(png) <= limit


def test_boxes_are_drawn_into_the_contact_sheet(tmp_path: Path):
    report = replace(gather_report(assembled(tmp_path, CLIPS), RULE, SCORER), pictures={})

    def yellow_count(boxes: list[list[float]]) -> int:
        frames = {name: replace(found, boxes=boxes) for name, found in report.frames.items()}
        sheet = Image.open(io.BytesIO(contact_sheet_png(replace(report, frames=frames))))
        red, _, blue = np.moveaxis(np.asarray(sheet.convert("RGB")).astype(int), 2, 0)
        return int(((red > 200) & (blue < 100)).sum())

    # Without boxes, a few pixels of what is written.
    assert yellow_count([]) < 50
    # Three clips, each with a box around most of it.
    assert yellow_count([[8.0, 8.0, 56.0, 8.0, 56.0, 40.0, 8.0, 40.0]]) > 3 * 200


def test_fifty_thousand_videos_take_seconds_and_fit_a_page(tmp_path: Path):
    rng = np.random.default_rng(0)
    ratios = np.where(rng.random(50_000) < 0.6, 0.0, rng.beta(1, 8, 50_000))
    data = assembled(tmp_path, {f"{i:032x}": [float(ratio)] for i, ratio in enumerate(ratios)})
    started = time.monotonic()
    html = write_report(data, RULE, SCORER).read_text(encoding="utf-8")
    # Four seconds on two busy cores; the bound leaves room for slower ones.
    assert time.monotonic() - started < 20
    assert len(html.encode()) < 3_000_000
    assert html.count("data:image/webp") == 3 * GROUP_SIZE
    assert '"exact": false' in html
    kept = int((ratios <= RULE.max_ratio).sum())
    assert re.search(rf"<h1>{kept:,} of 50,000 samples kept</h1>", html)
