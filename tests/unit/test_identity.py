import hashlib
from pathlib import Path

import pytest

from ocr_assets.curation import identity
from ocr_assets.curation.identity import content_id, scorer_id


def test_a_video_id_is_the_beginning_of_what_sha256sum_says(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"some bytes")
    assert content_id(path) == hashlib.sha256(b"some bytes").hexdigest()[:32]


def test_the_same_bytes_under_another_name_are_the_same_video(tmp_path: Path):
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes(b"x" * 300_000)
    assert content_id(tmp_path / "a.mp4") == content_id(tmp_path / "b.mkv")


def test_one_other_byte_is_another_video(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x" * 300_000)
    before = content_id(path)
    path.write_bytes(b"x" * 299_999 + b"y")
    assert content_id(path) != before


def test_a_missing_file_is_the_operating_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        content_id(tmp_path / "nowhere.mp4")


def test_a_scorer_id_depends_on_all_that_makes_a_score(monkeypatch: pytest.MonkeyPatch):
    ids = [
        scorer_id(sampler="uniform(3)", detector_digest="a"),
        scorer_id(sampler="uniform(4)", detector_digest="a"),
        scorer_id(sampler="uniform(3)", detector_digest="b"),
        # Joined without a separator, these two would be one.
        scorer_id(sampler="uniform(3)a", detector_digest=""),
    ]
    monkeypatch.setattr(identity, "SCORING_VERSION", identity.SCORING_VERSION + 1)
    ids.append(scorer_id(sampler="uniform(3)", detector_digest="a"))
    assert len(set(ids)) == len(ids)
    assert {len(text) for text in ids} == {16}


def test_a_scorer_id_is_the_same_in_every_process():
    # Rows in people's databases are filed under it: should this fail, SCORING_VERSION has to rise.
    assert scorer_id(sampler="uniform(3)", detector_digest="digest") == "9e8e6a45fd921de7"
