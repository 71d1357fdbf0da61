"""Measured memory at rest: one small Parquet file per data directory, which DuckDB mirrors.

Belongs here: the file's schema, reading it, and adding to it from several processes at once. Does
not belong here: what the figures mean (`worker_memory.py`), and measuring.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from resources.atomic_files import write_table
from resources.worker_memory import MemoryRecord

SCHEMA = pa.schema(
    [
        pa.field("detector", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("device_name", pa.string(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        # Of the network's input, padding included; 0 where the model was only loaded.
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("frame_count", pa.int32(), nullable=False),
        pa.field("peak_mib", pa.int32(), nullable=False),
        pa.field("is_out_of_memory", pa.bool_(), nullable=False),
        pa.field("measured_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


class MemoryRecordsError(Exception):
    """The file cannot be read. The message says which, why, and what to do."""


class MemoryRecords:
    """The measured peaks of one data directory.

    Of each detector, weights, type, device, input size and number of frames, one measured peak is
    kept and one at which memory ran out: the highest of each.

    Attributes:
        path: The file, `<data_dir>/worker_memory.parquet`, whether it exists or not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def table(self) -> pa.Table:
        """All of it (`SCHEMA`); no rows where nothing was measured yet.

        Takes no lock: the file is replaced as a whole.

        Raises:
            MemoryRecordsError: If the file is damaged or has another schema.
        """
        try:
            table = pq.read_table(self.path)
        except FileNotFoundError:
            return SCHEMA.empty_table()
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(str(error)) from error
        if table.schema != SCHEMA:
            raise self._unreadable(f"its columns are {', '.join(table.schema.names)}")
        return table

    def rows(self) -> list[MemoryRecord]:
        """All of it; an empty list where nothing was measured yet.

        Raises:
            MemoryRecordsError: If the file is damaged or has another schema.
        """
        return [MemoryRecord(**row) for row in self.table().to_pylist()]

    def add(self, records: Sequence[MemoryRecord]) -> None:
        """Adds measurements; where they tell nothing new, the file stays as it is.

        Raises:
            MemoryRecordsError: If the file is damaged or has another schema.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.stem}.lock")):
            old = self.rows()
            merged = _merge([*old, *records])
            if merged != old:
                rows = [asdict(record) for record in merged]
                write_table(self.path, pa.Table.from_pylist(rows, SCHEMA))

    def _unreadable(self, reason: str) -> MemoryRecordsError:
        return MemoryRecordsError(
            f"{self.path} cannot be read as measured memory ({reason}); "
            "make it readable, or remove it: it is measured again"
        )


def _merge(records: Sequence[MemoryRecord]) -> list[MemoryRecord]:
    """The highest peak of each kind, the newest of equals, in the order of their kinds."""
    highest: dict[tuple[str | int, ...], MemoryRecord] = {}
    for record in records:
        kind = (
            record.detector,
            record.weights_sha256,
            record.dtype,
            record.device_name,
            record.height_px,
            record.width_px,
            record.frame_count,
            record.is_out_of_memory,
        )
        known = highest.setdefault(kind, record)
        if (record.peak_mib, record.measured_at) > (known.peak_mib, known.measured_at):
            highest[kind] = record
    return [highest[kind] for kind in sorted(highest)]
