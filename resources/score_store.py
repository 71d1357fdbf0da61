"""The one door to DuckDB: every connection of this project is opened here.

DuckDB lets one process write a file, and nobody read it meanwhile. A lock beside the file queues
our own processes (8 processes x 20 short transactions: 150 of 160 lost without it, none with it);
a person's notebook is outside that lock, so the door also waits for it, for a while. What DuckDB
holds is a copy: the Parquet files are the record, and a merge that could not happen now takes
place with the next one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from resources.catalog_store import CatalogStore
from resources.score_files import ScoreFiles
from resources.usage_files import UsageFiles

SCHEMA_VERSION = 2
"""Raised whenever `schema.sql` changes. A database of an older version is brought up by running the
file again, so it may gain tables and change views, but never change a table that exists. Version 2
added `gpu_samples`, `worker_memory` and `merged_usage_files`."""


class SchemaVersionError(Exception):
    """The database was written by a newer version of this project. The message says what to do."""


class StoreBusyError(Exception):
    """Somebody else holds the database open. The message names the file and who."""


class ScoreStore:
    """The DuckDB database of one data directory.

    Attributes:
        path: The database file, `<data_dir>/ocr_assets.duckdb`.
        wait_seconds: How long to wait for the database before giving up.
    """

    def __init__(self, path: Path, wait_seconds: float = 60.0) -> None:
        self.path = path
        self.wait_seconds = wait_seconds

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Opens the database for one short piece of work, alone, in one transaction.

        Yields:
            A connection; what was done with it is committed when the body ends well, and rolled
            back when it does not.

        Raises:
            SchemaVersionError: If a newer version of this project wrote the database.
            StoreBusyError: If the database was not to be had within `wait_seconds`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.wait_seconds
        lock = FileLock(self.path.with_suffix(".lock"), timeout=self.wait_seconds)
        try:
            lock.acquire()
        except Timeout:
            raise StoreBusyError(
                f"{self.path} has been in use by other ocr_assets processes for"
                f" {self.wait_seconds:g} s; try again when they are done"
            ) from None
        try:
            connection = self._open(deadline)
            try:
                connection.begin()
                _ensure_schema(connection, self.path)
                yield connection
                connection.commit()
            finally:
                connection.close()
        finally:
            lock.release()

    def _open(self, deadline: float) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                return duckdb.connect(self.path)
            except duckdb.IOException as error:
                # DuckDB has no error code for it; this is its message (FileSystem::OpenFile).
                if "Conflicting lock" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise StoreBusyError(
                        f"{self.path} is open in another program, waited {self.wait_seconds:g} s;"
                        f" close it there and try again ({_first_line(error)})"
                    ) from None
            time.sleep(0.2)

    def refresh_catalog(self, catalog: CatalogStore) -> None:
        """Shows the catalog's files: replaces `video_files`, `videos` and `segments`.

        Raises:
            StoreBusyError: As `connect`.
        """
        tables = {
            "video_files": catalog.files(),
            "videos": catalog.videos(),
            "segments": catalog.segments(),
        }
        with self.connect() as connection:
            for name, table in tables.items():
                connection.execute(f"DELETE FROM {name}")  # noqa: S608 a name from this file
                _insert(connection, name, table)

    def merge(
        self,
        score_files: ScoreFiles,
        usage_files: UsageFiles | None = None,
        worker_memory: pa.Table | None = None,
    ) -> list[str]:
        """Takes in every file that is new or has changed since it was last taken in.

        One transaction; doing it again changes nothing.

        Args:
            score_files: The scores.
            usage_files: What scoring took of its devices; None leaves `gpu_samples` alone.
            worker_memory: What replaces all rows of `worker_memory`; None leaves them alone.

        Returns:
            The shards whose scores were taken in.

        Raises:
            StoreBusyError: As `connect`. Nothing is lost: the next merge takes the files along.
        """
        with self.connect() as connection:
            shards = _take_in(
                connection, "merged_score_files", score_files.all_paths(), _replace_scores
            )
            if usage_files is not None:
                _take_in(connection, "merged_usage_files", usage_files.all_paths(), _replace_usage)
            if worker_memory is not None:
                connection.execute("DELETE FROM worker_memory")
                _insert(connection, "worker_memory", worker_memory)
        return shards

    def replace_dataset(self, rows: pa.Table) -> None:
        """Shows the filtered dataset: replaces `dataset`.

        Raises:
            StoreBusyError: As `connect`.
        """
        with self.connect() as connection:
            connection.execute("DELETE FROM dataset")
            _insert(connection, "dataset", rows)

    def query(self, sql: str, parameters: list[Any] | None = None) -> pa.Table:
        """Runs one SELECT.

        Raises:
            StoreBusyError: As `connect`.
        """
        with self.connect() as connection:
            return connection.execute(sql, parameters or []).to_arrow_table()


def _take_in(
    connection: duckdb.DuckDBPyConnection,
    stamps_table: str,
    paths: Iterable[Path],
    replace: Callable[[duckdb.DuckDBPyConnection, str, Path], None],
) -> list[str]:
    """Replaces the rows of each shard whose file is not as `stamps_table` has it; gives them."""
    merged = {
        shard: (size_bytes, mtime_ns)
        for shard, size_bytes, mtime_ns in connection.execute(
            f"SELECT shard, size_bytes, mtime_ns FROM {stamps_table}"  # noqa: S608
        ).fetchall()
    }
    # Stamped before the file is read: a file replaced meanwhile is taken in once more.
    stamps = {path: path.stat() for path in paths}
    pending = {
        path.stem: (path, stamp)
        for path, stamp in stamps.items()
        if merged.get(path.stem) != (stamp.st_size, stamp.st_mtime_ns)
    }
    for shard, (path, stamp) in pending.items():
        replace(connection, shard, path)
        connection.execute(f"DELETE FROM {stamps_table} WHERE shard = ?", [shard])  # noqa: S608
        connection.execute(
            f"INSERT INTO {stamps_table} VALUES (?, ?, ?)",  # noqa: S608
            [shard, stamp.st_size, stamp.st_mtime_ns],
        )
    return list(pending)


def _replace_scores(connection: duckdb.DuckDBPyConnection, shard: str, path: Path) -> None:
    for table in ("segment_scores", "frame_scores", "text_boxes"):
        connection.execute(f"DELETE FROM {table} WHERE shard = ?", [shard])  # noqa: S608
    connection.execute(
        """
        INSERT INTO scorers BY NAME
        SELECT DISTINCT scorer_id, sampler, detector, weights_sha256, parameters
        FROM read_parquet(?) AS incoming
        WHERE NOT EXISTS (SELECT 1 FROM scorers AS s WHERE s.scorer_id = incoming.scorer_id)
        """,
        [str(path)],
    )
    connection.execute(
        """
        INSERT INTO segment_scores BY NAME
        SELECT scorer_id, shard, video_id, segment_index, len(frames) AS frame_count, reason, detail
        FROM read_parquet(?)
        """,
        [str(path)],
    )
    connection.execute(
        """
        INSERT INTO frame_scores BY NAME
        SELECT scorer_id, shard, video_id, segment_index, f.frame_index, f.pts_seconds, f.width_px,
            f.height_px, f.text_area_ratio, f.box_area_ratio, len(f.boxes) AS box_count,
            f.reason, f.detail
        FROM (
            SELECT scorer_id, shard, video_id, segment_index, unnest(frames) AS f
            FROM read_parquet(?)
        )
        """,
        [str(path)],
    )
    connection.execute(
        """
        INSERT INTO text_boxes BY NAME
        SELECT scorer_id, shard, video_id, frame_index, box_index,
            boxes[box_index + 1].points AS points, boxes[box_index + 1].confidence AS confidence
        FROM (
            SELECT scorer_id, shard, video_id, f.frame_index, f.boxes AS boxes,
                unnest(range(len(f.boxes)))::INTEGER AS box_index
            FROM (
                SELECT scorer_id, shard, video_id, unnest(frames) AS f FROM read_parquet(?)
            )
        )
        """,
        [str(path)],
    )


def _replace_usage(connection: duckdb.DuckDBPyConnection, shard: str, path: Path) -> None:
    connection.execute("DELETE FROM gpu_samples WHERE shard = ?", [shard])
    connection.execute("INSERT INTO gpu_samples BY NAME SELECT * FROM read_parquet(?)", [str(path)])


def _insert(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("incoming", table)
    connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM incoming")  # noqa: S608
    connection.unregister("incoming")


def _ensure_schema(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)")
    found = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    version = found[0] if found else None
    if version is not None and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has schema version {version}, this ocr_assets writes {SCHEMA_VERSION}; update"
            " ocr_assets, or move the file aside: the next run builds it again from the Parquet"
            " files"
        )
    if version != SCHEMA_VERSION:
        # Creates what is missing, whether that is everything or what came since an older version.
        connection.execute(files("resources").joinpath("schema.sql").read_text())
        connection.execute("DELETE FROM schema_version")
        connection.execute("INSERT INTO schema_version VALUES (?)", [SCHEMA_VERSION])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
