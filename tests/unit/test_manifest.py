import csv
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ocr_assets.curation.manifest import (
    CSV_PATH_COLUMNS,
    OUTPUT_COLUMNS,
    SAMPLE_JSON,
    SAMPLE_PATHS,
    ManifestError,
    read_manifest,
)
from resources.atomic_files import write_table


def jsonl(directory: Path, *samples: Any) -> Path:
    return jsonl_lines(directory, *(json.dumps(sample) for sample in samples))


def jsonl_lines(directory: Path, *lines: str) -> Path:
    path = directory / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parquet(directory: Path, **columns: Any) -> Path:
    path = directory / "samples.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def csv_file(directory: Path, *rows: Sequence[str], encoding: str = "utf-8") -> Path:
    path = directory / "samples.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def paths_of(table: pa.Table) -> list[list[str]]:
    return cast("list[list[str]]", table.column(SAMPLE_PATHS).to_pylist())


def objects_of(table: pa.Table) -> list[Any]:
    return [json.loads(str(text)) for text in table.column(SAMPLE_JSON).to_pylist()]


def message_of(path: Path) -> str:
    with pytest.raises(ManifestError) as raised:
        read_manifest(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_relative_paths_are_relative_to_the_manifest(tmp_path: Path):
    table = read_manifest(jsonl(tmp_path, {"videos": ["a.mp4", "sub/../b.mp4", "/else/c.mp4"]}))
    expected = [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "/else/c.mp4"]
    assert paths_of(table) == [expected]
    assert table.column("videos").to_pylist() == [expected]


def test_a_manifest_named_by_a_relative_path_gives_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jsonl(tmp_path, {"videos": ["a.mp4"]})
    monkeypatch.chdir(tmp_path)
    assert paths_of(read_manifest(Path("samples.jsonl"))) == [[str(tmp_path / "a.mp4")]]


def test_symbolic_links_keep_their_names(tmp_path: Path):
    (tmp_path / "real.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    table = read_manifest(jsonl(tmp_path, {"videos": ["link.mp4"]}))
    assert paths_of(table) == [[str(tmp_path / "link.mp4")]]


def test_a_samples_own_columns_are_carried_through(tmp_path: Path):
    sample = {"videos": ["/v/a.mp4"], "text": "Größe 大", "n": 3, "meta": {"tags": ["x", None]}}
    table = read_manifest(jsonl(tmp_path, sample))
    assert {name: table.column(name).to_pylist() for name in sample} == {
        name: [value] for name, value in sample.items()
    }
    assert objects_of(table) == [sample]


def test_a_column_that_only_some_samples_have_is_null_in_the_others(tmp_path: Path):
    table = read_manifest(jsonl(tmp_path, {"videos": ["/v/a.mp4"], "n": 1}, {"videos": []}))
    assert table.column("n").to_pylist() == [1, None]
    assert objects_of(table)[1] == {"videos": []}


def test_a_sample_may_have_no_video(tmp_path: Path):
    table = read_manifest(jsonl(tmp_path, {"text": "x"}, {"videos": None}, {"videos": []}))
    assert paths_of(table) == [[], [], []]


def test_blank_lines_are_no_samples(tmp_path: Path):
    path = jsonl_lines(tmp_path, "", '{"videos": []}', "   ", '{"videos": []}')
    assert read_manifest(path).num_rows == 2


def test_a_column_of_several_types_holds_json(tmp_path: Path):
    values = [1, "one", {"n": 1}, None, [1, "ä"]]
    samples = [{"videos": [], "label": value} for value in values]
    table = read_manifest(jsonl(tmp_path, *samples))
    assert table.column("label").to_pylist() == ["1", '"one"', '{"n": 1}', None, '[1, "ä"]']
    assert objects_of(table) == samples


@pytest.mark.parametrize(
    "value",
    [{}, {"inner": {}}, [{}], 2**63, -(2**70)],
    ids=["empty object", "nested", "in a list", "above int64", "below int64"],
)
def test_any_json_value_can_be_carried_through_a_parquet_file(tmp_path: Path, value: Any):
    table = read_manifest(jsonl(tmp_path, {"videos": ["/v/a.mp4"], "meta": value}))
    write_table(tmp_path / "out.parquet", table)
    assert objects_of(pq.read_table(tmp_path / "out.parquet"))[0]["meta"] == value


def test_rejects_text_that_is_not_unicode(tmp_path: Path):
    # Half of a surrogate pair: JSON can write it, UTF-8 and so Parquet cannot.
    path = jsonl_lines(tmp_path, '{"videos": []}', '{"videos": [], "text": "\\ud800"}')
    assert "line 2" in message_of(path)


def test_an_empty_manifest_has_no_samples(tmp_path: Path):
    assert read_manifest(jsonl_lines(tmp_path)).num_rows == 0


def test_the_suffix_may_be_in_capitals(tmp_path: Path):
    path = jsonl(tmp_path, {"videos": []}).rename(tmp_path / "SAMPLES.JSONL")
    assert read_manifest(path).num_rows == 1


def test_rejects_a_line_that_is_not_json(tmp_path: Path):
    message = message_of(jsonl_lines(tmp_path, '{"videos": []}', "", "{'videos': []}"))
    assert "line 3 is not JSON" in message
    assert '{"videos": ["clip.mp4"]}' in message


def test_rejects_a_line_that_is_not_an_object(tmp_path: Path):
    assert "line 2 is a JSON list" in message_of(jsonl(tmp_path, {"videos": []}, ["a.mp4"]))


@pytest.mark.parametrize("videos", ["a.mp4", [1], [""], ["a.mp4", None], {"a": 1}, 7, False])
def test_rejects_videos_that_are_not_a_list_of_paths(tmp_path: Path, videos: Any):
    message = message_of(jsonl(tmp_path, {"videos": []}, {"videos": videos}))
    assert "line 2: 'videos' must be a list of paths" in message
    assert json.dumps(videos) in message


def test_rejects_a_file_that_is_not_utf_8(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes('{"videos": ["Stra\xdfe.mp4"]}\n'.encode("latin-1"))
    assert "is not UTF-8 text" in message_of(path)


@pytest.mark.parametrize("column", OUTPUT_COLUMNS)
def test_rejects_a_column_that_the_filtered_dataset_adds(tmp_path: Path, column: str):
    message = message_of(jsonl(tmp_path, {"videos": [], column: 1}))
    assert repr(column) in message
    assert "rename it" in message


@pytest.mark.parametrize("column", [SAMPLE_PATHS, SAMPLE_JSON])
def test_rejects_a_column_that_the_catalog_keeps_for_itself(tmp_path: Path, column: str):
    assert repr(column) in message_of(parquet(tmp_path, videos=[["a.mp4"]], **{column: ["x"]}))
    assert repr(column) in message_of(jsonl(tmp_path, {"videos": [], column: "x"}))


def test_a_parquet_manifest_keeps_its_columns_and_their_types(tmp_path: Path):
    columns = {
        "id": pa.array([7, 8], pa.int16()),
        "videos": pa.array([["a.mp4"], ["b.mp4", "/c.mp4"]]),
        "day": pa.array([date(2026, 1, 2), None]),
        "raw": pa.array([b"\x00\xff", None]),
    }
    table = read_manifest(parquet(tmp_path, **columns))
    own = table.drop_columns([SAMPLE_PATHS, SAMPLE_JSON])
    assert own.column_names == list(columns)
    assert own.drop_columns(["videos"]).equals(pa.table(columns).drop_columns(["videos"]))
    assert paths_of(table) == [[str(tmp_path / "a.mp4")], [str(tmp_path / "b.mp4"), "/c.mp4"]]
    assert objects_of(table)[0]["day"] == "2026-01-02"


def test_rejects_a_parquet_file_without_the_column_videos(tmp_path: Path):
    message = message_of(parquet(tmp_path, path=["a.mp4"], text=["x"]))
    assert "no column 'videos'" in message
    assert "path, text" in message


def test_rejects_a_parquet_column_that_holds_no_lists(tmp_path: Path):
    assert "row 0: 'videos' must be a list" in message_of(parquet(tmp_path, videos=["a.mp4"]))


def test_rejects_a_file_that_is_parquet_in_name_only(tmp_path: Path):
    path = tmp_path / "samples.parquet"
    path.write_text("not Parquet at all, though long enough to look for a footer")
    assert "is not a Parquet file" in message_of(path)


def test_rejects_a_parquet_file_with_a_damaged_footer(tmp_path: Path):
    path = parquet(tmp_path, videos=[["a.mp4"]])
    data = bytearray(path.read_bytes())
    data[-60:-8] = b"\xff" * 52
    path.write_bytes(data)
    assert "is not a Parquet file" in message_of(path)


@pytest.mark.parametrize("column", CSV_PATH_COLUMNS)
def test_a_csv_names_one_video_per_line(tmp_path: Path, column: str):
    path = csv_file(tmp_path, ["caption", column], ["a, b", "x.mp4"], ["c\nd", "/y.mp4"])
    table = read_manifest(path)
    assert paths_of(table) == [[str(tmp_path / "x.mp4")], ["/y.mp4"]]
    assert table.column("caption").to_pylist() == ["a, b", "c\nd"]
    assert table.column(column).to_pylist() == ["x.mp4", "/y.mp4"]
    assert objects_of(table)[1]["videos"] == ["/y.mp4"]


def test_a_csv_as_spreadsheets_save_it_is_read(tmp_path: Path):
    path = csv_file(tmp_path, ["path"], ["/ä.mp4"], encoding="utf-8-sig")
    assert paths_of(read_manifest(path)) == [["/ä.mp4"]]


def test_a_jsonl_file_as_windows_saves_it_is_read(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"videos": ["/a.mp4"]}\n', encoding="utf-8-sig")
    assert paths_of(read_manifest(path)) == [["/a.mp4"]]


def test_rejects_a_csv_without_a_column_of_paths(tmp_path: Path):
    message = message_of(csv_file(tmp_path, ["url", "caption"], ["a.mp4", "x"]))
    assert "no path column" in message
    assert "url, caption" in message


def test_rejects_a_csv_without_a_line(tmp_path: Path):
    assert "no header line" in message_of(csv_file(tmp_path))


@pytest.mark.parametrize("row", [["a.mp4"], ["a.mp4", "x", "more"]], ids=["short", "long"])
def test_rejects_a_csv_line_with_another_number_of_fields(tmp_path: Path, row: list[str]):
    path = csv_file(tmp_path, ["path", "caption"], ["/ok.mp4", "fine"], row)
    assert "line 3 has not as many fields as the header line" in message_of(path)


def test_rejects_a_csv_line_with_an_empty_path(tmp_path: Path):
    path = csv_file(tmp_path, ["path", "caption"], ["", "x"])
    assert "line 2" in message_of(path)


def test_rejects_a_csv_field_that_pythons_reader_refuses(tmp_path: Path):
    path = csv_file(tmp_path, ["path", "caption"], ["a.mp4", "x" * (csv.field_size_limit() + 1)])
    assert "line 2" in message_of(path)


def test_rejects_a_csv_whose_own_column_would_be_replaced(tmp_path: Path):
    path = csv_file(tmp_path, ["path", "videos"], ["a.mp4", "mine"])
    assert "'videos'" in message_of(path)
