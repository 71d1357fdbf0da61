"""The demo, as a person runs it: real videos, the real command, EasyOCR's real detector."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from ocr_assets.demo import is_within_tolerance
from ocr_assets.demo_corpus import KnownClip, load_known_geometry
from ocr_assets.results import SampleRow, sample_rows
from resources.data_directory import DataDirectory
from resources.detectors.torchvision_ops import ensure_torchvision_imports
from resources.detectors.weights import find_craft_weights

COMMAND = Path(sys.executable).with_name("ocr-assets")


@dataclass
class Demo:
    """A demo that ran once."""

    folder: Path
    output: str

    @property
    def data(self) -> DataDirectory:
        return DataDirectory(self.folder / "data")

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    def clips(self) -> list[KnownClip]:
        return load_known_geometry(self.videos)

    def rows(self) -> dict[str, SampleRow]:
        return {
            str(Path(row.video_paths[0]).relative_to(self.videos)): row
            for row in sample_rows(self.data)
        }

    def computed(self) -> dict[str, tuple[int, bytes]]:
        """Every file that costs frames or a model to make, with its time and its bytes."""
        folders = (self.data.frames.directory, self.data.score_files.directory)
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for folder in folders
            for path in folder.glob("*.parquet")
        }

    def run_count(self, asset: str) -> int:
        with dg.DagsterInstance.from_config(str(self.data.path / "dagster")) as instance:
            selected = [run.asset_selection or set() for run in instance.get_runs()]
        return sum(dg.AssetKey(asset) in keys for keys in selected)


def run_command(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    done = subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    return Demo(folder, run_command("demo", "--out", str(folder)))


def test_every_clip_is_kept_or_dropped_as_its_author_intended(demo: Demo):
    rows = demo.rows()
    assert {clip.relative_path: rows[clip.relative_path].is_kept for clip in demo.clips()} == {
        clip.relative_path: clip.is_intended_kept for clip in demo.clips()
    }
    assert "Every clip came out as its author intended." in demo.output


def test_measured_ratios_agree_with_the_known_ones(demo: Demo):
    rows = demo.rows()
    apart = {
        clip.relative_path: (measured, known)
        for clip in demo.clips()
        if not clip.is_damaged
        for measured in rows[clip.relative_path].metric_values
        for known in [clip.known_mean_text_area_ratio(clip.first_middle_last_frames)]
        if measured is None or not is_within_tolerance(measured, known)
    }
    assert apart == {}


def test_clean_clips_measure_exactly_nothing(demo: Demo):
    values = [row.metric_values for name, row in demo.rows().items() if name.startswith("nature/")]
    assert values == [[0.0], [0.0], [0.0]]


def test_the_damaged_file_has_its_reason(demo: Demo):
    assert demo.rows()["archive/broken_download.mp4"].reason == "unscored: not_a_video"


def test_stored_boxes_are_easyocrs_own(demo: Demo):
    """Box by box, corner by corner, against `easyocr.Reader.detect` one frame at a time."""
    ensure_torchvision_imports()
    import easyocr

    reader = easyocr.Reader(
        ["en"],
        gpu=False,
        recognizer=False,
        verbose=False,
        download_enabled=False,
        model_storage_directory=str(find_craft_weights().parent),
    )
    frames = [
        frame
        for path in sorted(demo.data.frames.directory.glob("*.parquet"))
        for frame in demo.data.frames.read(path.stem)
    ]
    assert len(frames) == 3 * 12, "three frames of each of the twelve distinct clips"
    for frame in frames:
        [horizontal], [free] = reader.detect(frame.pixels())
        theirs = [
            [[x_min, y_min], [x_max, y_min], [x_max, y_max], [x_min, y_max]]
            for x_min, x_max, y_min, y_max in horizontal
        ] + free
        stored = demo.data.score_store.query(
            "SELECT points FROM text_boxes WHERE video_id = ? AND frame_index = ?"
            " ORDER BY box_index",
            [frame.video_id, frame.frame_index],
        )
        ours = np.array(stored.column("points").to_pylist(), np.float32).reshape(-1, 4, 2)
        assert len(ours) == len(theirs), frame.video_id
        # A pixel: a batch may sum in another order than a single frame, and corners are rounded.
        np.testing.assert_allclose(ours, np.reshape(theirs, (-1, 4, 2)), atol=1.0)


def test_a_second_run_computes_nothing_and_a_new_video_only_its_own_shard(demo: Demo):
    before = demo.computed()
    runs = demo.run_count("frames"), demo.run_count("ocr_scores")
    assert "Nothing to compute" in run_command("demo", "--out", str(demo.folder))
    assert demo.computed() == before
    assert (demo.run_count("frames"), demo.run_count("ocr_scores")) == runs

    # Bytes after the last box of an MP4 file change its content, not its pictures.
    clip = demo.videos / "films" / "small_subtitle.mp4"
    original = clip.read_bytes()
    clip.write_bytes(original + b"\0" * 16)
    try:
        run_command("run", str(demo.videos), "--out", str(demo.data.path))
        after = demo.computed()
    finally:
        clip.write_bytes(original)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2, "one new shard: its frames and its scores"
    assert demo.rows()["films/small_subtitle.mp4"].metric_values == pytest.approx(
        demo.rows()["archive/small_subtitle_again.mp4"].metric_values
    )
