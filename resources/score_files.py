"""Scores at rest: one Parquet file per shard, the record from which DuckDB can be built again.

A row is one segment scored by one scorer, its frames and their boxes nested, so that a segment is
there whole, with a score or with the reason why not, or not at all. A file holds the rows of every
scorer that ever scored the shard: going back to an earlier detector costs nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from resources.atomic_files import write_table

_BOX = pa.struct(
    [
        # x1, y1, … x4, y4 in pixels, clockwise from the text's top left.
        pa.field("points", pa.list_(pa.float32(), 8), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
    ]
)
_FRAME = pa.struct(
    [
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("pts_seconds", pa.float64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        # Null where the frame has no score; then `reason` is set.
        pa.field("text_area_ratio", pa.float64()),
        pa.field("box_area_ratio", pa.float64()),
        pa.field("boxes", pa.list_(_BOX), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
OUT_OF_MEMORY = "out_of_memory"
"""The reason of a frame that more memory may yet let be scored; one of `UnscoredReason`."""

SCORES_SCHEMA = pa.schema(
    [
        pa.field("scorer_id", pa.string(), nullable=False),
        # What the id stands for.
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("frames", pa.list_(_FRAME), nullable=False),
        # Set where the segment as a whole could not be read; then it has no frames.
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


class ScoreFiles:
    """The score files of one data directory.

    Attributes:
        directory: Where they lie, `<data_dir>/scores`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, shard: str) -> Path:
        """The file of one shard, whether it exists or not."""
        return self.directory / f"{shard}.parquet"

    def all_paths(self) -> Iterator[Path]:
        """Every score file there is, by shard."""
        yield from sorted(self.directory.glob("*.parquet"))

    def has_scores(self, shard: str, scorer_id: str) -> bool:
        """Whether a shard was scored by a scorer, as far as it can be.

        A frame that did not fit the device's memory can be scored once there is more of it.
        """
        path = self.path(shard)
        if not path.exists():
            return False
        with pq.ParquetFile(path) as file:
            # Not the boxes, which are most of the file.
            rows = file.read(columns=["scorer_id", "frames.list.element.reason"])
        rows = rows.filter(pc.field("scorer_id") == scorer_id)
        frames = pc.list_flatten(rows["frames"])
        unfit_index = pc.index(pc.struct_field(frames, "reason"), pa.scalar(OUT_OF_MEMORY))
        return rows.num_rows > 0 and unfit_index.as_py() < 0

    def rows(self, shard: str, scorer_id: str) -> pa.Table:
        """The rows of one scorer (`SCORES_SCHEMA`)."""
        path = self.path(shard)
        if not path.exists():
            return SCORES_SCHEMA.empty_table()
        return pq.read_table(path, filters=pc.field("scorer_id") == scorer_id)

    def write(self, shard: str, scorer_id: str, rows: pa.Table) -> Path:
        """Replaces one scorer's rows in a shard's file and leaves the other scorers' alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(shard)
        with FileLock(self.directory / f".{shard}.lock"):
            if path.exists():
                old = pq.read_table(path, schema=SCORES_SCHEMA)
                rows = pa.concat_tables([old.filter(pc.field("scorer_id") != scorer_id), rows])
            write_table(path, rows)
        return path
