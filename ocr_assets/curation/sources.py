"""Sources: from what a person names to the samples and video files it stands for."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ocr_assets.curation.manifest import (
    MANIFEST_SUFFIXES,
    SAMPLE_PATHS,
    ManifestError,
    read_manifest,
    samples_table,
)

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
"""Containers looked for in folders and globs. A file named outright may have any name."""

LIST_SUFFIX = ".txt"

DATA_JUICER_TEXT = "<__dj__video> <|__dj__eoc|>"
"""The text of a sample that is one video and nothing else, in Data-Juicer's special tokens
(`SpecialTokens.video` and `.eoc` in data_juicer/utils/mm_utils.py); its loaders want a text."""


class SourceError(ValueError):
    """A source that is not there or holds nothing. The message names it and what is accepted."""


_ACCEPTED = (
    "a folder, a glob, a video file, a .txt list of paths, or a manifest"
    f" ({', '.join(MANIFEST_SUFFIXES)})"
)


def list_sources(sources: Sequence[str]) -> list[pa.Table]:
    """Lists every source's samples.

    Args:
        sources: As the settings give them.

    Returns:
        One samples table per source: the samples' own columns, and beside them the absolute paths
        of each sample's videos (`SAMPLE_PATHS`) and its JSON (`SAMPLE_JSON`).

    Raises:
        SourceError: If there is no source, or one does not exist or names no video.
        ManifestError: If a manifest cannot be read.
    """
    if not sources:
        raise SourceError(
            f"no source is set; give {_ACCEPTED}: as the argument of `ocr-assets run`, in the"
            " environment variable OCR_ASSETS_SOURCE, or as `source` in ocr_assets.toml"
        )
    return [_list_source(source) for source in sources]


def video_paths(samples: Iterable[pa.Table]) -> list[str]:
    """Every distinct path that the samples name, sorted."""
    return sorted(
        {
            path
            for table in samples
            for paths in table.column(SAMPLE_PATHS).to_pylist()
            for path in paths or ()
        }
    )


def _list_source(source: str) -> pa.Table:
    path = Path(source).expanduser()
    if path.is_dir():
        found = list(_walk(path))
        what = f"folder {source} holds no video"
    elif path.is_file():
        suffix = path.suffix.lower()
        if suffix in MANIFEST_SUFFIXES:
            return _not_empty(read_manifest(path), f"manifest {source} holds no sample")
        found = _read_list(path) if suffix == LIST_SUFFIX else [str(path)]
        what = f"list {source} names no path"
    elif glob.has_magic(source):
        found = [
            video
            for match in sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            for video in _videos_at(Path(match))
        ]
        what = f"glob {source} matches no video"
    else:
        raise SourceError(f"source {source} does not exist; expected {_ACCEPTED}")
    # `**` matches folders and what is in them.
    distinct = dict.fromkeys(os.path.abspath(video) for video in found)  # noqa: PTH100 keeps links
    absolute = list(distinct)
    samples = [{"videos": [video], "text": DATA_JUICER_TEXT} for video in absolute]
    table = samples_table(samples, [[video] for video in absolute])
    return _not_empty(table, f"{what} (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")


def _not_empty(table: pa.Table, complaint: str) -> pa.Table:
    if table.num_rows == 0:
        raise SourceError(complaint)
    return table


def _videos_at(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _walk(path)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield str(path)


def _walk(directory: Path) -> Iterator[str]:
    """Video files below a folder, in the same order on every machine; each real folder once."""
    entered: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        stat = Path(folder).stat()
        if (stat.st_dev, stat.st_ino) in entered:  # A symbolic link led back here.
            subfolders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            # Names with a leading dot are other programs' (macOS puts ._clip.mp4 by clip.mp4).
            if path.suffix.lower() in VIDEO_SUFFIXES and name[0] != "." and path.is_file():
                yield str(path)


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return [str(path.parent / line.strip()) for line in lines if line.strip()]
