"""The demo: a corpus whose text is known, through the pipeline, and the two compared."""

from pathlib import Path
from typing import Any

from rich.text import Text

from ocr_assets.console import console, table
from ocr_assets.demo_corpus import KnownClip, generate_demo_corpus
from ocr_assets.results import SampleRow, sample_rows
from ocr_assets.settings import Settings, load_settings
from resources.data_directory import DataDirectory

TOLERANCE_RATIO = 0.01
"""How far a clip's measured text-area ratio may lie from the known one, plus a quarter of it: CRAFT
pads its boxes by a tenth of a line's height on every side (`add_margin`), rounds to pixels, and the
codec softens edges. Tested for every clip by tests/e2e/test_demo.py."""

TOLERANCE_SHARE = 0.25


def demo_settings(directory: Path) -> Settings:
    """The settings of the demo: the defaults, but small shards, so that there are several."""
    return load_settings(
        source=(str(directory / "videos"),),
        data_dir=directory / "data",
        shard_target_megapixels=2.0,
    )


def prepare_corpus(directory: Path) -> list[KnownClip]:
    """Writes the corpus where it is not there yet, with one line per clip."""
    return generate_demo_corpus(
        directory / "videos", on_clip=lambda clip: console.print(f"made {clip}", style="dim")
    )


def is_within_tolerance(measured: float, known: float) -> bool:
    """Whether a measured ratio agrees with the known one."""
    return abs(measured - known) <= TOLERANCE_RATIO + TOLERANCE_SHARE * known


def show_comparison(settings: Settings, clips: list[KnownClip]) -> bool:
    """Prints measured beside known.

    Returns:
        Whether every clip is kept or dropped as intended, and measured within tolerance.
    """
    data = DataDirectory(settings.data_dir)
    videos = Path(settings.source[0]).absolute()
    rows = {str(Path(row.video_paths[0]).relative_to(videos)): row for row in sample_rows(data)}
    frames = _scored_frames(data)
    compared = [
        _compare(clip, rows[clip.relative_path], frames.get(str(videos / clip.relative_path), []))
        for clip in clips
    ]
    console.print(
        table(
            "Text-area ratio, mean over the sampled frames",
            ("video", "measured", "known", "", "why", "as intended"),
            compared,
        )
    )
    is_right = all(row[-1] == "yes" for row in compared)
    verdict = "Every clip came out as its author intended." if is_right else "Some clips did not."
    console.print(Text(verdict, style="bold green" if is_right else "bold red"))
    return is_right


def _compare(clip: KnownClip, row: SampleRow, frame_indices: list[int]) -> tuple[Any, ...]:
    measured = row.metric_values[0]
    known = clip.known_mean_text_area_ratio(frame_indices) if frame_indices else None
    is_right = row.is_kept == clip.is_intended_kept and (
        (measured is None and clip.is_damaged)
        or (measured is not None and known is not None and is_within_tolerance(measured, known))
    )
    return (
        clip.relative_path,
        measured,
        known,
        "kept" if row.is_kept else "dropped",
        row.reason,
        "yes" if is_right else "NO",
    )


def _scored_frames(data: DataDirectory) -> dict[str, list[int]]:
    """The frames that were scored, by path."""
    rows = data.score_store.query(
        """
        SELECT f.path, list(s.frame_index ORDER BY s.frame_index) AS frame_indices
        FROM dataset AS d
        JOIN frame_scores AS s ON s.scorer_id = d.scorer_id AND s.video_id = d.video_ids[1]
        JOIN video_files AS f ON f.path = d.video_paths[1]
        GROUP BY f.path
        """
    )
    return {row["path"]: row["frame_indices"] for row in rows.to_pylist()}
