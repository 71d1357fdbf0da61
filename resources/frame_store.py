"""Frames at rest: one Parquet file per shard, lossless, in the layout that Hugging Face shows.

Belongs here: where frames lie and how a row looks. Does not belong here: which frames (sampling)
or how they are decoded (the video reader).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from resources.atomic_files import atomic_path
from resources.frame_sizes import frame_sizes

# `datasets` reads a struct of bytes and path as an Image where the schema's metadata says so
# (datasets/features/image.py, datasets/arrow_writer.py: key `huggingface`).
_HUGGINGFACE_FEATURES = {
    "image": {"_type": "Image"},
    "video_id": {"dtype": "string", "_type": "Value"},
    "segment_index": {"dtype": "int32", "_type": "Value"},
    "frame_index": {"dtype": "int64", "_type": "Value"},
    "pts_seconds": {"dtype": "float64", "_type": "Value"},
    "width_px": {"dtype": "int32", "_type": "Value"},
    "height_px": {"dtype": "int32", "_type": "Value"},
    "decoder": {"dtype": "string", "_type": "Value"},
}
FRAMES_SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("pts_seconds", pa.float64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
    ]
).with_metadata({"huggingface": json.dumps({"info": {"features": _HUGGINGFACE_FEATURES}})})

ROW_GROUP_BYTES = 32 << 20
"""Encoded images held back before a row group is written: what bounds a writer's memory, and what
a reader must hold at least. 32 MiB is about 100 lossless frames of 640x360."""

_PROVENANCE_KEY = "ocr_assets.frames"


@dataclass(frozen=True, eq=False)
class StoredFrame:
    """One frame with its place in its video.

    Attributes:
        png: The image, lossless.
        video_id: Content id of its video.
        segment_index: The segment that sampled it.
        frame_index: From 0 in presentation order.
        pts_seconds: When it is shown.
        width_px: Width as shown (rotation applied).
        height_px: Height as shown.
        decoder: Which decoder gave it, e.g. `decord 0.6.0`.
    """

    png: bytes
    video_id: str
    segment_index: int
    frame_index: int
    pts_seconds: float
    width_px: int
    height_px: int
    decoder: str

    def pixels(self) -> NDArray[np.uint8]:
        """Decodes the image: uint8 (H, W, 3) RGB."""
        return decode_png(self.png)


@dataclass(frozen=True)
class FramesProvenance:
    """What a shard's frames file says of itself, in its footer, so that it is atomic with the rows.

    Attributes:
        sampler: The sampler's text that picked the frames.
        segments: One entry per segment of the shard: `video_id`, `segment_index`, `frame_count`,
            and for a segment that could not be read `reason` and `detail`.
    """

    sampler: str
    segments: Sequence[Mapping[str, Any]]


class FrameStore:
    """The frames files of one data directory.

    Attributes:
        directory: Where they lie, `<data_dir>/frames`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, shard: str) -> Path:
        """The file of one shard, whether it exists or not."""
        return self.directory / f"{shard}.parquet"

    def provenance(self, shard: str) -> FramesProvenance | None:
        """What the shard's file says of itself; None where there is no file."""
        path = self.path(shard)
        if not path.exists():
            return None
        metadata = pq.read_metadata(path).metadata or {}
        return FramesProvenance(**json.loads(metadata[_PROVENANCE_KEY.encode()]))

    @contextmanager
    def writing(self, shard: str) -> Iterator["FramesWriter"]:
        """Opens a shard's file for writing; it appears, whole, when the body ends well."""
        with atomic_path(self.path(shard)) as partial, FramesWriter(partial) as writer:
            yield writer

    def frame_sizes(self, shard: str) -> list[tuple[int, int]]:
        """Heights and widths of a shard's frames, in pixels, each once."""
        return frame_sizes(self.path(shard))

    def read(self, shard: str) -> Iterator[StoredFrame]:
        """Reads a shard's frames in the order they were written, a few at a time."""
        with pq.ParquetFile(self.path(shard)) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    image = row.pop("image")
                    yield StoredFrame(png=image["bytes"], **row)


class FramesWriter:
    """Appends frames to one Parquet file in row groups of bounded size."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path,
            FRAMES_SCHEMA,
            # PNG is compressed already; compressing it again costs time and saves nothing.
            compression="none",
        )
        self._rows: list[dict[str, Any]] = []
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._writer.close()

    def add(self, frame: StoredFrame) -> None:
        """Appends one frame."""
        row = vars(frame).copy()
        name = f"{frame.video_id}_{frame.frame_index:08d}.png"
        row["image"] = {"bytes": row.pop("png"), "path": name}
        self._rows.append(row)
        self._held_bytes += len(frame.png)
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def finish(self, provenance: FramesProvenance) -> None:
        """Writes what is held back, and the footer that makes the file valid."""
        self._flush()
        self._writer.add_key_value_metadata({_PROVENANCE_KEY: json.dumps(vars(provenance))})

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=FRAMES_SCHEMA))
        self._rows, self._held_bytes = [], 0


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes a frame losslessly.

    Args:
        pixels: uint8 (H, W, 3) RGB.
    """
    # Level 1 of zlib: a third larger than the default, several times faster to write.
    is_encoded, data = cv2.imencode(
        ".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    if not is_encoded:
        raise ValueError(f"a frame of {pixels.shape = } could not be encoded as PNG")
    return data.tobytes()


def decode_png(png: bytes) -> NDArray[np.uint8]:
    """Decodes what `encode_png` wrote: uint8 (H, W, 3) RGB."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{len(png)} bytes are not a PNG image")
    return image.astype(np.uint8, copy=False)
