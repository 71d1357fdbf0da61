"""Manifests: samples that name their videos, with columns of their own that are carried through.

Data-Juicer's JSONL and Parquet (a list `videos` per sample) and CSV (a column with one path).
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE_PATHS = "__ocr_assets_paths"
"""Column beside a sample's own: the absolute paths of its videos, list<string>."""

SAMPLE_JSON = "__ocr_assets_json"
"""Column beside a sample's own: the sample as one JSON object, string."""

MANIFEST_SUFFIXES = (".jsonl", ".parquet", ".csv")

VIDEOS_KEY = "videos"
"""Data-Juicer's key for a sample's list of videos (`video_key` in its configuration)."""

CSV_PATH_COLUMNS = ("path", "video", "video_path", "file_path", "file", "filename")

OUTPUT_COLUMNS = ("video_ids", "metric_values", "reason", "unscored_reasons")
"""Columns that the filtered dataset adds; a manifest that has one is refused."""

_OWN_COLUMNS = frozenset({*OUTPUT_COLUMNS, SAMPLE_PATHS, SAMPLE_JSON})


class ManifestError(ValueError):
    """A manifest that cannot be read. The message names the file, the line and the fix."""


def read_manifest(path: Path) -> pa.Table:
    """Reads a manifest whole.

    Returns:
        The manifest's own columns, with `videos` made absolute (relative paths are relative to the
        manifest), and beside them `SAMPLE_PATHS` and `SAMPLE_JSON`.

    Raises:
        ManifestError: If it cannot be read, a sample is not what it should be, or a column has a
            name that the filtered dataset adds.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
    return readers[path.suffix.lower()](path)


def _refuse_own_columns(names: Iterable[str], path: Path) -> None:
    clashing = sorted(_OWN_COLUMNS.intersection(names))
    if clashing:
        raise ManifestError(
            f"{path} has a column {clashing[0]!r}, which the filtered dataset adds itself; rename"
            " it in the manifest"
        )


def samples_table(
    samples: Sequence[Mapping[str, Any]], video_paths: Sequence[Sequence[str]]
) -> pa.Table:
    """Makes a samples table from JSON objects and their videos' absolute paths."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(key for sample in samples for key in sample):
        columns[name] = _column([sample.get(name) for sample in samples])
    columns[SAMPLE_PATHS] = pa.array(video_paths, pa.list_(pa.string()))
    columns[SAMPLE_JSON] = pa.array([json.dumps(s, ensure_ascii=False) for s in samples])
    return pa.table(columns)


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _json_column(values)  # Values of several types, or integers beyond 64 bits.
    # Parquet has no type for an empty object, however deep it lies.
    return _json_column(values) if "struct<>" in str(array.type) else array


def _json_column(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values])


def _read_jsonl(path: Path) -> pa.Table:
    samples: list[dict[str, Any]] = []
    video_paths: list[list[str]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                sample = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ManifestError(
                    f"{where} is not JSON ({error.msg} at column {error.colno}); every line must"
                    f' be an object such as {{"{VIDEOS_KEY}": ["clip.mp4"]}}'
                ) from None
            if not isinstance(sample, dict):
                raise ManifestError(
                    f"{where} is a JSON {type(sample).__name__}, expected an object with a list"
                    f" {VIDEOS_KEY!r}"
                )
            _refuse_own_columns(sample, path)
            _refuse_half_characters(line, where)
            paths = _absolute(sample.get(VIDEOS_KEY), path, where)
            samples.append({**sample, VIDEOS_KEY: paths})
            video_paths.append(paths)
    return samples_table(samples, video_paths)


def _refuse_half_characters(line: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no UTF-8 file can hold."""
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        culprit = error.object[error.start : error.end]
        raise ManifestError(
            f"{where} has {culprit!r}, half of a surrogate pair, which is no character; remove it"
        ) from None


def _lines(file: Any, path: Path) -> Any:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _read_parquet(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise ManifestError(f"{path} is not a Parquet file: {first_line}") from None
    if VIDEOS_KEY not in table.column_names:
        raise ManifestError(
            f"{path} has no column {VIDEOS_KEY!r} (a list of paths per sample); its columns are:"
            f" {', '.join(table.column_names)}"
        )
    _refuse_own_columns(table.column_names, path)
    stated = table.column(VIDEOS_KEY).to_pylist()
    paths = [_absolute(v, path, f"{path} row {i}") for i, v in enumerate(stated)]
    array = pa.array(paths, pa.list_(pa.string()))
    table = table.set_column(table.column_names.index(VIDEOS_KEY), VIDEOS_KEY, array)
    texts = [json.dumps(row, ensure_ascii=False, default=str) for row in table.to_pylist()]
    return table.append_column(SAMPLE_PATHS, array).append_column(SAMPLE_JSON, pa.array(texts))


def _read_csv(path: Path) -> pa.Table:
    samples: list[dict[str, Any]] = []
    video_paths: list[list[str]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_lines(file, path), restkey="_more")
        columns = reader.fieldnames or []
        column = next((name for name in CSV_PATH_COLUMNS if name in columns), None)
        if column is None:
            raise ManifestError(
                f"{path} has no path column; name it one of {', '.join(CSV_PATH_COLUMNS)}, found:"
                f" {', '.join(columns) or 'no header line'}"
            )
        _refuse_own_columns(columns, path)
        if VIDEOS_KEY in columns:
            raise ManifestError(
                f"{path} has a column {VIDEOS_KEY!r} beside {column!r}; the dataset's list of"
                " videos takes that name, so rename the column"
            )
        for sample in _rows(reader, path):
            where = f"{path} line {reader.line_num}"
            if "_more" in sample or None in sample.values():
                raise ManifestError(f"{where} has not as many fields as the header line")
            paths = _absolute([sample[column]], path, where)
            samples.append({**sample, VIDEOS_KEY: paths})
            video_paths.append(paths)
    return samples_table(samples, video_paths)


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ManifestError(f"{path} line {reader.line_num + 1} is not CSV: {error}") from None


def _absolute(videos: Any, manifest: Path, where: str) -> list[str]:
    if videos is None:
        return []  # Data-Juicer lets a sample have no video.
    if not isinstance(videos, list) or not all(isinstance(v, str) and v for v in videos):
        raise ManifestError(
            f"{where}: {VIDEOS_KEY!r} must be a list of paths,"
            f" got {json.dumps(videos, default=str)}"
        )
    return [os.path.abspath(manifest.parent / video) for video in videos]  # noqa: PTH100 keeps links
