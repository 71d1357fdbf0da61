"""Pruning: what in a data directory is needed no more, and taking it away.

Three kinds, told apart because they differ in what it takes to have them back: frames of scored
shards are decoded again when they are wanted; leftovers of crashes are wanted by nobody; scores of
stale shards can only be had again if the videos come back, so they go only where that is asked for.

Looking changes nothing, not even a lock file: DuckDB and the Dagster instance stay unopened.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ocr_assets.curation.discovery import FileState
from ocr_assets.instance import is_over
from ocr_assets.partitions import SHARDS
from resources.atomic_files import PARTIAL_SUFFIX
from resources.data_directory import DataDirectory

PARTIAL_SECONDS = 86_400.0
"""No file takes a day to write: whoever began an older partial file is dead."""

SHARD_TABLES = (
    "segment_scores",
    "frame_scores",
    "text_boxes",
    "merged_score_files",
    "gpu_samples",
    "merged_usage_files",
)
"""Tables of DuckDB with rows of shards that only a merge fills."""

_AT_WORK = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


class PruneRefusedError(Exception):
    """Nothing can be pruned here or now. The message says why and what to do."""


@dataclass(frozen=True)
class Prunable:
    """One file that may go."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class PrunableGroup:
    """Files that may go for the same reason.

    Attributes:
        title: What they are.
        way_back: What it takes to have them again.
        files: The files.
    """

    title: str
    way_back: str
    files: Sequence[Prunable]

    @property
    def size_bytes(self) -> int:
        """Size of all of them."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class StaleShards:
    """What is known of videos that are nowhere any more.

    Attributes:
        shards: Shards none of whose videos is anywhere.
        video_ids: Their videos, which the catalog forgets: a file that comes back is a new one.
    """

    shards: Sequence[str] = ()
    video_ids: AbstractSet[str] = frozenset()


@dataclass(frozen=True)
class PrunePlan:
    """What would go.

    Attributes:
        groups: Files, by reason; each file once.
        stale: What goes from catalog, partitions and DuckDB besides.
    """

    groups: Sequence[PrunableGroup]
    stale: StaleShards

    @property
    def files(self) -> list[Prunable]:
        """All files of all groups."""
        return [file for group in self.groups for file in group.files]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take away."""
        return not self.files and not self.stale.video_ids


def plan_prune(
    data: DataDirectory, scorer_id: str, *, with_frames: bool, with_stale: bool
) -> PrunePlan:
    """Looks for what is needed no more, and changes nothing.

    Args:
        data: Where to look.
        scorer_id: Frames may go of shards that this scorer has scored as far as they can be.
        with_frames: Whether to look for these.
        with_stale: Whether to look for shards whose videos are gone.

    Raises:
        PruneRefusedError: If no discovery has finished here, or no video at all is there while
            stale shards are looked for.
    """
    if not data.catalog.has_catalog():
        raise PruneRefusedError(
            f"there is no catalog in {data.path}, so there is nothing to prune; name a data"
            " directory with --out"
        )
    stale = find_stale_shards(data) if with_stale else StaleShards()
    groups = [
        PrunableGroup(
            "partial files older than a day", "nobody needs them", _files(_partial_paths(data))
        )
    ]
    if with_frames:
        others = set(_values(data.catalog.segments(), "shard")) - set(stale.shards)
        scored = (
            shard
            for shard in sorted(others)
            if data.frames.path(shard).exists() and data.score_files.has_scores(shard, scorer_id)
        )
        groups.append(
            PrunableGroup(
                "frames of scored shards",
                "decoded again when another sampler or detector wants them",
                _files(data.frames.path(shard) for shard in scored),
            )
        )
    if with_stale:
        stores = (data.frames, data.score_files, data.usage_files)
        groups.append(
            PrunableGroup(
                "frames, scores and usage of stale shards",
                "only if the videos come back: decoded and scored anew",
                _files(store.path(shard) for shard in stale.shards for store in stores),
            )
        )
    return PrunePlan(groups, stale)


def find_stale_shards(data: DataDirectory) -> StaleShards:
    """Finds the shards none of whose videos is at any known path.

    A shard stays that shares a video with one that stays: a video's segments are forgotten all
    together or not at all. The newest shard always stays, so that no key is ever dealt twice.

    Raises:
        PruneRefusedError: If no video at all is there.
    """
    segments = data.catalog.segments()
    gone = _gone_video_ids(data)
    pairs = {(row["shard"], row["video_id"]) for row in segments.to_pylist()}
    staying = {shard for shard, video_id in pairs if video_id not in gone}
    staying |= {max(shard for shard, _ in pairs)} if pairs else set()
    while True:
        kept_ids = {video_id for shard, video_id in pairs if shard in staying}
        reached = {shard for shard, video_id in pairs if video_id in kept_ids}
        if reached == staying:
            break
        staying = reached
    return StaleShards(
        shards=sorted({shard for shard, _ in pairs} - staying), video_ids=gone - kept_ids
    )


def carry_out(data: DataDirectory, plan: PrunePlan, instance: dg.DagsterInstance) -> None:
    """Takes away what a plan names, and nothing else.

    Whatever stops it half-way, the next time does the rest: DuckDB takes in again what still has a
    file, and the catalog, which says that a shard is stale, changes last.

    Args:
        data: Whose plan it is.
        plan: What goes.
        instance: Has the partition keys; nothing may be at work on it.

    Raises:
        PruneRefusedError: If something is.
        StoreBusyError: If DuckDB is held open by somebody; then nothing has changed.
    """
    require_idle(instance)
    if plan.stale.video_ids:
        _forget_in_duckdb(data, plan.stale)
        for shard in set(plan.stale.shards) & set(instance.get_dynamic_partitions(_SHARDS_NAME)):
            instance.delete_dynamic_partition(_SHARDS_NAME, shard)
    for file in plan.files:
        file.path.unlink(missing_ok=True)
    if plan.stale.video_ids:
        _forget_in_catalog(data, plan.stale)


def require_idle(instance: dg.DagsterInstance) -> None:
    """Makes sure that no run is at work on an instance, or waits to be.

    Raises:
        PruneRefusedError: If one is, that is not the leftover of a dead process.
    """
    runs = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=list(_AT_WORK)))
        if not is_over(instance, run.run_id)
    ]
    if runs:
        [run, *_] = runs
        assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
        raise PruneRefusedError(
            f"{len(runs)} runs are at work or queued, such as {run.run_id}"
            f" ({assets or run.job_name}, {run.status.value}); nothing was removed: wait until they"
            " are done, or stop them, and try again"
        )


_SHARDS_NAME = str(SHARDS.name)


def _gone_video_ids(data: DataDirectory) -> set[str]:
    """Videos that are at no known path, as far as that can be known."""
    files = data.catalog.files().select(["path", "video_id", "state"]).to_pylist()
    missing = [row for row in files if row["state"] == FileState.MISSING]
    # Looked at now: what was missing at the last discovery may be back.
    is_back = {row["path"] for row in missing if os.path.lexists(row["path"])}
    there = [row for row in files if row["state"] != FileState.MISSING or row["path"] in is_back]
    ids = set(_values(data.catalog.videos(), "video_id"))
    ids |= set(_values(data.catalog.segments(), "video_id"))
    if ids and not any(row["video_id"] in ids for row in there):
        raise PruneRefusedError(
            f"none of the {len(files)} files in {data.catalog.files_path} is there, so all shards"
            " look stale; mount or restore their folders and materialize `videos`, or delete"
            f" {data.path} to start over"
        )
    gone = ids - {row["video_id"] for row in there}
    if any(row["video_id"] is None for row in there):
        # This file could not be read; what no path holds any more may be in it.
        gone &= {row["video_id"] for row in missing}
    return gone


def _forget_in_duckdb(data: DataDirectory, stale: StaleShards) -> None:
    if not data.score_store.path.exists():
        return
    with data.score_store.connect() as connection:
        for name in (*SHARD_TABLES, "segments"):
            connection.execute(
                f"DELETE FROM {name} WHERE shard IN (SELECT unnest($1::VARCHAR[]))",  # noqa: S608
                [list(stale.shards)],
            )
        for name in ("videos", "video_files"):
            connection.execute(
                f"DELETE FROM {name} WHERE video_id IN (SELECT unnest($1::VARCHAR[]))",  # noqa: S608
                [sorted(stale.video_ids)],
            )


def _forget_in_catalog(data: DataDirectory, stale: StaleShards) -> None:
    catalog = data.catalog
    is_forgotten = pc.field("video_id").isin(pa.array(sorted(stale.video_ids), pa.string()))
    catalog.write(
        files=catalog.files().filter(~is_forgotten),
        videos=catalog.videos().filter(~is_forgotten),
        segments=catalog.segments().filter(~is_forgotten),
        samples=list(catalog.samples()),
    )


def _partial_paths(data: DataDirectory) -> Iterator[Path]:
    oldest = time.time() - PARTIAL_SECONDS
    folders = (
        data.path,
        data.catalog.directory,
        data.catalog.directory / "samples",
        data.frames.directory,
        data.score_files.directory,
        data.usage_files.directory,
        data.dataset,
    )
    for folder in folders:
        for path in sorted(folder.glob(f".*{PARTIAL_SUFFIX}")):
            if path.stat().st_mtime < oldest:
                yield path


def _files(paths: Iterable[Path]) -> list[Prunable]:
    return [Prunable(path, path.stat().st_size) for path in paths if path.exists()]


def _values(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()
