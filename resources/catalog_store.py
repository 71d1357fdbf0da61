"""The catalog: which files, videos, segments and samples discovery knows, as Parquet files.

These files are the record; DuckDB shows the same rows to people (`ScoreStore.refresh_catalog`).
They are written in an order that makes a crash between two of them harmless: `files` last, since
a file that is not in it is simply looked at again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resources.atomic_files import write_table
from resources.frame_sizes import frame_sizes

FILES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("video_id", pa.string()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("checked_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("duration_seconds", pa.float64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("frame_count", pa.int64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("segment_count", pa.int32(), nullable=False),
        pa.field("first_seen_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("end_seconds", pa.float64(), nullable=False),
        pa.field("cost_megapixels", pa.float64(), nullable=False),
    ]
)


class CatalogStore:
    """Reads and writes the catalog's Parquet files.

    Attributes:
        directory: Where they lie, `<data_dir>/catalog`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def files_path(self) -> Path:
        """One row per path that was ever found."""
        return self.directory / "files.parquet"

    @property
    def videos_path(self) -> Path:
        """One row per content id."""
        return self.directory / "videos.parquet"

    @property
    def segments_path(self) -> Path:
        """One row per segment, with the shard it was dealt to."""
        return self.directory / "segments.parquet"

    def has_catalog(self) -> bool:
        """Whether a discovery has finished here."""
        return self.files_path.exists()

    def files(self) -> pa.Table:
        """All file rows (`FILES_SCHEMA`)."""
        return _read(self.files_path, FILES_SCHEMA)

    def videos(self) -> pa.Table:
        """All video rows (`VIDEOS_SCHEMA`)."""
        return _read(self.videos_path, VIDEOS_SCHEMA)

    def frame_sizes(self) -> list[tuple[int, int]]:
        """Heights and widths that the videos have, in pixels, each once."""
        return frame_sizes(self.videos_path)

    def segments(self, shard: str | None = None) -> pa.Table:
        """Segment rows (`SEGMENTS_SCHEMA`), of one shard or of all."""
        filters = None if shard is None else pc.field("shard") == shard
        return _read(self.segments_path, SEGMENTS_SCHEMA, filters)

    def write(
        self,
        *,
        files: pa.Table,
        videos: pa.Table,
        segments: pa.Table,
        samples: Sequence[pa.Table],
    ) -> None:
        """Replaces the catalog; see the module's text for the order."""
        write_table(self.segments_path, segments)
        write_table(self.videos_path, videos)
        for index, table in enumerate(samples):
            write_table(self._samples_path(index), table)
        for stale in list(self._samples_paths())[len(samples) :]:
            stale.unlink()
        write_table(self.files_path, files)

    def samples(self) -> Iterator[pa.Table]:
        """The samples of each source of the last discovery, in the order of the sources."""
        for path in self._samples_paths():
            yield pq.read_table(path)

    def _samples_path(self, index: int) -> Path:
        return self.directory / "samples" / f"source_{index:06d}.parquet"

    def _samples_paths(self) -> list[Path]:
        return sorted((self.directory / "samples").glob("source_*.parquet"))


def _read(path: Path, schema: pa.Schema, filters: pc.Expression | None = None) -> pa.Table:
    if not path.exists():
        return schema.empty_table()
    return pq.read_table(path, filters=filters, schema=schema)
