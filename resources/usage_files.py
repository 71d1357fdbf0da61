"""Usage at rest: one Parquet file per shard, what its worker took of its device and when.

Belongs here: the files and their columns. Does not belong here: taking the samples
(`usage_sampler.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from resources.atomic_files import write_table
from resources.usage_sampler import UsageSample

USAGE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        # Whose samples they are.
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("process_id", pa.int64(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        pa.field("device_uuid", pa.string(), nullable=False),
        pa.field("device_name", pa.string(), nullable=False),
        pa.field("slot_index", pa.int32(), nullable=False),
        # One moment.
        pa.field("sampled_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("elapsed_seconds", pa.float64(), nullable=False),
        pa.field("device_used_mib", pa.int64(), nullable=False),
        pa.field("device_total_mib", pa.int64(), nullable=False),
        # Null where nothing tells.
        pa.field("process_mib", pa.int64()),
        pa.field("utilization_percent", pa.int32()),
    ]
)


def usage_table(
    samples: Sequence[UsageSample],
    *,
    shard: str,
    run_id: str,
    process_id: int,
    host: str,
    device_uuid: str,
    device_name: str,
    slot_index: int,
) -> pa.Table:
    """Samples as a table (`USAGE_SCHEMA`).

    Args:
        samples: As the sampler gives them.
        shard: The partition that was scored meanwhile.
        run_id: Dagster's id of the run.
        process_id: The worker's.
        host: The machine's name.
        device_uuid: NVML's UUID, or `cpu`.
        device_name: What people call the device.
        slot_index: Which of the device's slots the worker held, from 0.
    """
    worker = {
        "shard": shard,
        "run_id": run_id,
        "process_id": process_id,
        "host": host,
        "device_uuid": device_uuid,
        "device_name": device_name,
        "slot_index": slot_index,
    }
    return pa.Table.from_pylist(
        [worker | asdict(sample) for sample in samples], schema=USAGE_SCHEMA
    )


class UsageFiles:
    """The usage files of one data directory.

    Attributes:
        directory: Where they lie, `<data_dir>/usage`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, shard: str) -> Path:
        """The file of one shard, whether it exists or not."""
        return self.directory / f"{shard}.parquet"

    def all_paths(self) -> Iterator[Path]:
        """Every usage file there is, by shard."""
        yield from sorted(self.directory.glob("*.parquet"))

    def write(self, shard: str, table: pa.Table) -> Path:
        """Replaces a shard's file: the latest attempt is the one that is kept.

        Args:
            shard: The partition key.
            table: Its samples.

        Raises:
            ValueError: If the table has not the columns of `USAGE_SCHEMA`, or nulls where it allows
                none.
        """
        path = self.path(shard)
        write_table(path, table.cast(USAGE_SCHEMA))
        return path
