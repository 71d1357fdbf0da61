import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from making import stored_frame
from numpy.typing import NDArray

from resources import frame_store
from resources.frame_store import (
    FRAMES_SCHEMA,
    FramesProvenance,
    FrameStore,
    StoredFrame,
    decode_png,
    encode_png,
)

SHARD = "s000001"
PROVENANCE = FramesProvenance(
    "uniform(3)",
    [{"video_id": "video", "segment_index": 0, "frame_count": 3, "reason": None, "detail": None}],
)


def write(
    store: FrameStore, *frames: StoredFrame, provenance: FramesProvenance = PROVENANCE
) -> Path:
    with store.writing(SHARD) as writer:
        for frame in frames:
            writer.add(frame)
        writer.finish(provenance)
    return store.path(SHARD)


def write_half(store: FrameStore) -> None:
    with store.writing(SHARD) as writer:
        writer.add(stored_frame(7))
        raise KeyError


def fields_of(frame: StoredFrame) -> dict[str, object]:
    return dict(vars(frame))


@settings(max_examples=40)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
)
def test_png_keeps_every_pixel(pixels: NDArray[np.uint8]):
    decoded = decode_png(encode_png(pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_red_stays_red():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert decode_png(encode_png(red))[0, 0].tolist() == [255, 0, 0]


def test_rejects_bytes_that_are_no_image():
    with pytest.raises(ValueError, match="4 bytes are not a PNG"):
        decode_png(b"text")


def test_an_image_is_whole_or_an_error_whatever_was_imported_before():
    # decord brings a zlib of its own; imported before OpenCV it takes the place of OpenCV's, whose
    # reader then refuses every image. Our modules import OpenCV first.
    script = """
import decord
import numpy as np
from resources.frame_store import decode_png, encode_png
pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
try:
    image = decode_png(encode_png(pixels))
except ValueError as error:
    print("refused:", error)
else:
    assert (image == pixels).all()
    print("whole")
"""
    pytest.importorskip("decord", reason="there is no wheel of decord for this platform")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("whole", "refused: "))


def test_frames_come_back_as_they_were_written(tmp_path: Path):
    store = FrameStore(tmp_path)
    frames = [stored_frame(index, segment_index=index % 2) for index in range(5)]
    write(store, *frames)
    assert [fields_of(frame) for frame in store.read(SHARD)] == [fields_of(f) for f in frames]


def test_a_stored_frames_pixels_are_lossless(tmp_path: Path):
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    store = FrameStore(tmp_path)
    write(store, stored_frame(png=encode_png(noise), width_px=64, height_px=48))
    (frame,) = store.read(SHARD)
    np.testing.assert_array_equal(frame.pixels(), noise)


def test_the_provenance_comes_back_as_it_was_written(tmp_path: Path):
    store = FrameStore(tmp_path)
    write(store, stored_frame())
    assert store.provenance(SHARD) == PROVENANCE


def test_a_shard_without_a_file_has_no_provenance(tmp_path: Path):
    assert FrameStore(tmp_path).provenance(SHARD) is None


def test_a_shard_whose_videos_gave_no_frame_says_why(tmp_path: Path):
    store = FrameStore(tmp_path)
    failed = FramesProvenance("keyframes", [{"video_id": "a", "reason": "not_a_video"}])
    write(store, provenance=failed)
    assert list(store.read(SHARD)) == []
    assert store.provenance(SHARD) == failed


def test_an_exception_leaves_no_file_behind(tmp_path: Path):
    store = FrameStore(tmp_path)
    with pytest.raises(KeyError):
        write_half(store)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_older_file_as_it_was(tmp_path: Path):
    store = FrameStore(tmp_path)
    before = write(store, stored_frame()).read_bytes()
    with pytest.raises(KeyError):
        write_half(store)
    assert store.path(SHARD).read_bytes() == before
    assert list(tmp_path.iterdir()) == [store.path(SHARD)]


def test_a_second_write_replaces_the_first(tmp_path: Path):
    store = FrameStore(tmp_path)
    write(store, stored_frame(0), stored_frame(1))
    write(store, stored_frame(2))
    assert [frame.frame_index for frame in store.read(SHARD)] == [2]


def test_many_frames_are_written_in_row_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    frames = [stored_frame(index) for index in range(10)]
    limit = 3 * len(frames[0].png)
    monkeypatch.setattr(frame_store, "ROW_GROUP_BYTES", limit)
    store = FrameStore(tmp_path)
    metadata = pq.read_metadata(write(store, *frames))
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert len(rows) > 2
    # The frame that reaches the limit is still taken in.
    largest = max(len(frame.png) for frame in frames)
    assert max(rows) * min(len(frame.png) for frame in frames) <= limit + largest
    assert [frame.frame_index for frame in store.read(SHARD)] == list(range(10))
    assert store.provenance(SHARD) == PROVENANCE


def test_the_schema_describes_every_column_to_hugging_face():
    metadata = json.loads((FRAMES_SCHEMA.metadata or {})[b"huggingface"])
    assert list(metadata["info"]["features"]) == FRAMES_SCHEMA.names


def test_hugging_face_datasets_shows_the_frames_as_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    path = write(FrameStore(tmp_path), stored_frame(0), stored_frame(1))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["frame_index"] == datasets.Value("int64")
    image = np.asarray(loaded[1]["image"])
    np.testing.assert_array_equal(image, stored_frame(1).pixels())
