import json
from pathlib import Path
from typing import cast

import pytest

from ocr_assets.curation.manifest import SAMPLE_JSON, ManifestError
from ocr_assets.curation.sources import (
    DATA_JUICER_TEXT,
    VIDEO_SUFFIXES,
    SourceError,
    list_sources,
    video_paths,
)


def files(directory: Path, *names: str) -> list[str]:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [str(directory / name) for name in names]


def listed(*sources: str | Path) -> list[str]:
    """Every listed path, in the order of the samples, twice where it was listed twice."""
    return [
        path
        for table in list_sources([str(source) for source in sources])
        for videos in cast("list[list[str]]", table.column("videos").to_pylist())
        for path in videos
    ]


def test_a_folder_is_searched_to_its_depth(tmp_path: Path):
    expected = files(tmp_path, "a.mp4", "deep/er/b.MKV", "deep/c.webm")
    files(tmp_path, "notes.txt", "deep/frame.png", "mp4")
    assert sorted(listed(tmp_path)) == sorted(expected)


def test_a_folder_is_listed_in_the_same_order_whatever_the_file_system_says(tmp_path: Path):
    names = ["b/2.mp4", "b/1.mp4", "a/9.mp4", "z.mp4", "c.mp4", "a/B.mp4"]
    one, other = tmp_path / "one", tmp_path / "other"
    files(one, *names)
    files(other, *reversed(names))
    relative = [str(Path(path).relative_to(one)) for path in listed(one)]
    assert relative == [str(Path(path).relative_to(other)) for path in listed(other)]
    assert relative == ["c.mp4", "z.mp4", "a/9.mp4", "a/B.mp4", "b/1.mp4", "b/2.mp4"]


def test_hidden_files_and_folders_are_passed_by(tmp_path: Path):
    expected = files(tmp_path, "clip.mp4")
    files(tmp_path, "._clip.mp4", ".cache/clip.mp4", ".mp4")
    assert listed(tmp_path) == expected


def test_a_symbolic_link_back_up_ends_the_search(tmp_path: Path):
    expected = files(tmp_path, "a/clip.mp4")
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    assert listed(tmp_path) == expected


def test_a_linked_folder_is_searched_under_its_link(tmp_path: Path):
    files(tmp_path, "elsewhere/clip.mp4")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert listed(tmp_path / "source") == [str(tmp_path / "source/link/clip.mp4")]


def test_a_link_to_nowhere_is_passed_by(tmp_path: Path):
    expected = files(tmp_path, "clip.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert listed(tmp_path) == expected


def test_a_folder_named_like_a_video_is_a_folder(tmp_path: Path):
    expected = files(tmp_path, "parts.mp4/clip.mp4")
    assert listed(tmp_path) == expected


def test_a_glob_lists_what_it_matches(tmp_path: Path):
    expected = files(tmp_path, "a/one.mp4", "b/one.mp4")
    files(tmp_path, "a/two.mp4", "b/one.txt")
    assert listed(tmp_path / "*" / "one.*") == expected


def test_a_glob_that_matches_folders_searches_them(tmp_path: Path):
    expected = files(tmp_path, "day1/a.mp4", "day2/sub/b.mp4")
    files(tmp_path, "night1/c.mp4")
    assert listed(tmp_path / "day*") == expected


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.mp4", "[ab]*"])
def test_a_glob_lists_each_video_once(tmp_path: Path, pattern: str):
    expected = files(tmp_path, "a/one.mp4", "a/deep/two.mp4", "b/three.mp4")
    assert sorted(listed(tmp_path / pattern)) == sorted(expected)


def test_a_folder_with_brackets_in_its_name_is_a_folder(tmp_path: Path):
    expected = files(tmp_path, "clips [2026]/a.mp4")
    assert listed(tmp_path / "clips [2026]") == expected


def test_a_file_named_outright_may_have_any_name(tmp_path: Path):
    (clip,) = files(tmp_path, "clip.bin")
    assert listed(clip) == [clip]


def test_a_list_names_videos_relative_to_itself(tmp_path: Path):
    source = tmp_path / "list.txt"
    source.write_text("a.mp4\n\n  sub/b.mp4  \n/else/c.mp4\n", encoding="utf-8")
    expected = [str(tmp_path / "a.mp4"), str(tmp_path / "sub/b.mp4"), "/else/c.mp4"]
    assert listed(source) == expected


def test_a_list_as_windows_saves_it_is_read(tmp_path: Path):
    source = tmp_path / "list.txt"
    source.write_bytes("\ufeffa.mp4\r\nb.mp4\r\n".encode())
    assert listed(source) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


def test_a_list_may_name_any_path_that_is_one_line(tmp_path: Path):
    source = tmp_path / "list.txt"
    source.write_text("one\u2028two.mp4\n", encoding="utf-8")
    assert listed(source) == [str(tmp_path / "one\u2028two.mp4")]


def test_rejects_a_list_that_is_not_utf_8(tmp_path: Path):
    source = tmp_path / "list.txt"
    source.write_bytes(b"Stra\xdfe.mp4\n")
    with pytest.raises(ManifestError, match=r"list\.txt is not UTF-8"):
        listed(source)


def test_a_home_directory_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = files(tmp_path, "videos/a.mp4")
    assert listed("~/videos") == expected
    assert listed("~/video*/*.mp4") == expected


def test_relative_sources_give_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = files(tmp_path, "videos/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert listed("videos") == listed("videos/*.mp4") == listed("videos/a.mp4") == expected


def test_a_manifests_samples_are_listed(tmp_path: Path):
    source = tmp_path / "samples.jsonl"
    source.write_text(json.dumps({"videos": ["a.mp4", "b.mp4"], "text": "x"}) + "\n")
    (table,) = list_sources([str(source)])
    assert table.column("text").to_pylist() == ["x"]
    assert listed(source) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


def test_a_bare_video_is_a_sample_that_data_juicer_can_load(tmp_path: Path):
    (clip,) = files(tmp_path, "clip.mp4")
    (table,) = list_sources([str(tmp_path)])
    sample = json.loads(str(table.column(SAMPLE_JSON)[0]))
    assert sample == {"videos": [clip], "text": DATA_JUICER_TEXT}


def test_each_source_has_a_table_of_its_own(tmp_path: Path):
    files(tmp_path, "one/a.mp4", "two/b.mp4", "two/c.mp4")
    tables = list_sources([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [table.num_rows for table in tables] == [1, 2]


def test_a_path_under_two_sources_is_one_path(tmp_path: Path):
    expected = files(tmp_path, "b.mp4", "a.mp4")
    sources = [str(tmp_path), str(tmp_path / "a.mp4")]
    assert video_paths(list_sources(sources)) == sorted(expected)


def test_rejects_no_source_and_says_how_to_give_one():
    with pytest.raises(SourceError, match="OCR_ASSETS_SOURCE"):
        list_sources([])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere", "source .*nowhere does not exist"),
        ("nowhere.mp4", r"source .*nowhere\.mp4 does not exist"),
        ("empty", "folder .*empty holds no video"),
        ("pictures", "folder .*pictures holds no video"),
        ("*.mkv", r"glob .*\*\.mkv matches no video"),
        ("blank.txt", r"list .*blank\.txt names no path"),
        ("blank.jsonl", r"manifest .*blank\.jsonl holds no sample"),
    ],
)
def test_rejects_a_source_that_holds_nothing(tmp_path: Path, source: str, complaint: str):
    (tmp_path / "empty").mkdir()
    files(tmp_path, "pictures/a.png", "blank.txt", "blank.jsonl")
    with pytest.raises(SourceError, match=complaint) as raised:
        list_sources([str(tmp_path / source)])
    assert "\n" not in str(raised.value)


def test_one_bad_source_among_good_ones_is_an_error(tmp_path: Path):
    files(tmp_path, "a.mp4")
    with pytest.raises(SourceError, match="nowhere"):
        list_sources([str(tmp_path), str(tmp_path / "nowhere")])


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_folder_yields_every_kind_of_container(tmp_path: Path, suffix: str):
    expected = files(tmp_path, f"clip{suffix}")
    assert listed(tmp_path) == expected
