import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ocr_assets.curation.selection import Metric, SeveralVideos, UnscoredPolicy
from ocr_assets.settings import ENV_PREFIX, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _in_a_bare_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the working directory and the environment; here both are empty."""
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def toml(text: str) -> None:
    Path("ocr_assets.toml").write_text(text, encoding="utf-8")


def complaint(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(**overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_fresh_clone_needs_no_settings():
    settings = load_settings()
    assert settings.sampler == "uniform(3)"
    assert settings.rule.max_ratio == 0.07
    assert settings.dagster_home == Path("data/dagster")


def test_the_environment_sets_every_kind_of_value(monkeypatch: pytest.MonkeyPatch):
    values = {
        "source": "/videos",
        "data_dir": "/data",
        "segment_seconds": "60",
        "max_slots": "4",
        "detector": "ppocr",
        "metric": "text_frame_ratio",
        "several_videos": "all",
        "unscored": "fail",
    }
    for name, value in values.items():
        monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
    settings = load_settings()
    assert settings.source == ("/videos",)
    assert (settings.data_dir, settings.segment_seconds) == (Path("/data"), 60.0)
    assert (settings.max_slots, settings.detector) == (4, "ppocr")
    assert settings.rule.metric is Metric.TEXT_FRAME_RATIO
    assert settings.rule.several_videos is SeveralVideos.ALL
    assert settings.rule.unscored is UnscoredPolicy.FAIL


def test_several_sources_in_the_environment_are_a_json_list(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCR_ASSETS_SOURCE", json.dumps(["/a", "/b, c"]))
    assert load_settings().source == ("/a", "/b, c")


def test_a_json_list_that_is_none_is_a_complaint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCR_ASSETS_SOURCE", '["/a"')
    assert "setting source (environment variable OCR_ASSETS_SOURCE)" in complaint()


def test_toml_sets_values():
    toml('source = ["/a", "/b"]\nmax_ratio = 0.5\nsampler = "every(2.0)"\n')
    settings = load_settings()
    assert (settings.source, settings.max_ratio) == (("/a", "/b"), 0.5)
    assert settings.sampler == "every(2)"


def test_arguments_come_before_environment_before_dotenv_before_toml(
    monkeypatch: pytest.MonkeyPatch,
):
    toml("max_slots = 1\nreserve_mib = 1\nmax_ratio = 0.1\nmin_ratio = 0.01\n")
    Path(".env").write_text(
        "OCR_ASSETS_MAX_SLOTS=2\nOCR_ASSETS_RESERVE_MIB=2\nOCR_ASSETS_MAX_RATIO=0.2\n"
    )
    monkeypatch.setenv("OCR_ASSETS_MAX_SLOTS", "3")
    monkeypatch.setenv("OCR_ASSETS_RESERVE_MIB", "3")
    settings = load_settings(max_slots=4)
    found = (settings.max_slots, settings.reserve_mib, settings.max_ratio, settings.min_ratio)
    assert found == (4, 3, 0.2, 0.01)


def test_an_override_that_is_none_is_not_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCR_ASSETS_MAX_SLOTS", "3")
    assert load_settings(max_slots=None).max_slots == 3


def test_other_programs_keys_in_dotenv_are_passed_by():
    Path(".env").write_text("DAGSTER_HOME=/somewhere\nHF_TOKEN=x\nOCR_ASSETS_MAX_SLOTS=2\n")
    assert load_settings().max_slots == 2


def test_rejects_an_unknown_key_in_toml():
    toml("max_ratios = 0.5\n")
    message = complaint()
    assert "setting max_ratios is not known" in message
    assert "max_ratio," in message


def test_rejects_an_unknown_key_in_dotenv():
    Path(".env").write_text("OCR_ASSETS_MAX_RATIOS=0.5\n")
    assert "max_ratios" in complaint()


def test_rejects_an_unknown_key_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCR_ASSETS_MAX_RATIOS", "0.5")
    assert "max_ratios" in complaint().lower()


def test_rejects_an_unknown_argument():
    assert "setting speed is not known" in complaint(speed=3)


def test_rejects_toml_that_is_none_and_names_the_file():
    toml("max_ratio = \n")
    assert "ocr_assets.toml" in complaint()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_ratio", "nan"),
        ("max_ratio", "-0.1"),
        ("max_ratio", "much"),
        ("max_ratio", "inf"),
        ("min_ratio", "nan"),
        ("min_ratio", "-1"),
        ("segment_seconds", "0"),
        ("segment_seconds", "nan"),
        ("shard_target_megapixels", "0"),
        ("shard_target_megapixels", "inf"),
        ("max_slots", "0"),
        ("max_slots", "1.5"),
        ("max_slots", ""),
        ("reserve_mib", "-1"),
        ("batch_megapixels", "-2"),
        ("decode_processes", "0"),
        ("decode_timeout_seconds", "0.5"),
        ("detector", "tesseract"),
        ("device", "tpu"),
        ("metric", "ocr_score"),
        ("several_videos", "most"),
        ("unscored", "ignore"),
        ("sampler", "uniform(0)"),
    ],
)
def test_rejects_a_value_that_is_not_allowed_and_names_its_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
    assert name in complaint()


def test_the_complaint_says_what_was_given_and_what_is_allowed():
    message = complaint(detector="tesseract")
    assert "OCR_ASSETS_DETECTOR" in message
    assert "'tesseract'" in message
    assert "craft" in message


def test_rejects_a_minimum_above_the_maximum():
    message = complaint(min_ratio=0.5, max_ratio=0.1)
    assert "min_ratio 0.5 is above max_ratio 0.1" in message


def test_names_every_key_that_is_wrong():
    message = complaint(max_slots=0, sampler="all", max_ratio=math.nan)
    assert all(name in message for name in ("max_slots", "sampler", "max_ratio"))


def test_settings_do_not_change():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.max_ratio = 0.5  # type: ignore[misc]


def test_decodes_on_all_cores_but_no_more_than_16(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert load_settings().decode_process_count == 16
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert load_settings().decode_process_count == 1
    assert load_settings(decode_processes=3).decode_process_count == 3
