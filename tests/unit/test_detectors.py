"""The detectors' registry, identities and weights: all that needs no model."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from resources.detectors import DETECTOR_NAMES, detector_spec, load_detector, weights
from resources.detectors.base import WeightsError
from resources.detectors.craft import CraftParameters, craft_spec
from resources.detectors.ppocr import PpOcrParameters, ppocr_spec

Parameters = TypeVar("Parameters", CraftParameters, PpOcrParameters)


def changed(parameters: Parameters, field: str) -> Parameters:
    """A copy in which one parameter has another value of the same type."""
    other = {"min": "max", "fast": "slow", True: False}
    value = getattr(parameters, field)
    value = other[value] if isinstance(value, str | bool) else value + 1
    return dataclasses.replace(parameters, **{field: value})


def make_file(path: Path, content: bytes) -> str:
    """Writes a file and returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def no_weights_package(monkeypatch):
    """As if the `weights` extra were not installed."""
    monkeypatch.setitem(sys.modules, "easyocr_en_models", None)


@pytest.mark.parametrize("name", DETECTOR_NAMES)
def test_every_detector_name_has_a_spec_of_that_name(name):
    spec = detector_spec(name)
    assert spec.name == name
    assert len(spec.weights_sha256) == 64


def test_rejects_an_unknown_detector_and_lists_the_known_ones():
    for call in (detector_spec, lambda name: load_detector(name, device="cpu", thread_count=1)):
        with pytest.raises(ValueError, match="unknown detector 'tesseract'; allowed: craft, ppocr"):
            call("tesseract")


def test_rejects_a_thread_count_below_one():
    with pytest.raises(ValueError, match="thread_count must be at least 1, got 0"):
        load_detector("craft", device="cpu", thread_count=0)


def test_rejects_ppocr_on_a_gpu():
    with pytest.raises(ValueError, match="'cpu' only, got 'cuda:0'"):
        load_detector("ppocr", device="cuda:0", thread_count=1)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CraftParameters)])
def test_every_craft_parameter_changes_the_digest(field):
    other = changed(CraftParameters(), field)
    assert craft_spec(other).digest() != craft_spec().digest()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PpOcrParameters)])
def test_every_ppocr_parameter_changes_the_digest(field):
    other = changed(PpOcrParameters(), field)
    assert ppocr_spec(other).digest() != ppocr_spec().digest()


def test_the_craft_spec_states_the_arithmetic():
    parameters = craft_spec().parameters
    assert (parameters["dtype"], parameters["fp32_precision"]) == ("float32", "ieee")


def test_digests_need_neither_a_model_nor_its_libraries():
    code = (
        "import sys; from resources.detectors import DETECTOR_NAMES, detector_spec;"
        "import resources.detectors.craft, resources.detectors.ppocr;"
        "[detector_spec(name).digest() for name in DETECTOR_NAMES];"
        "heavy = {'torch', 'torchvision', 'easyocr', 'onnxruntime', 'rapidocr'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@dataclass(frozen=True)
class Model:
    """One of the two weights files and what goes with it."""

    find: object
    file: str
    sha256_constant: str


MODELS = [
    Model(weights.find_craft_weights, weights.CRAFT_WEIGHTS_FILE, "CRAFT_WEIGHTS_SHA256"),
    Model(weights.find_ppocr_weights, weights.PPOCR_WEIGHTS_FILE, "PPOCR_WEIGHTS_SHA256"),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.file)
def test_weights_are_found_by_file_and_by_folder(model, tmp_path, monkeypatch):
    path = tmp_path / model.file
    monkeypatch.setattr(weights, model.sha256_constant, make_file(path, b"the right ones"))
    assert model.find(path) == path
    assert model.find(tmp_path) == path


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.file)
def test_rejects_weights_with_another_checksum(model, tmp_path):
    found = make_file(tmp_path / model.file, b"not the weights")
    with pytest.raises(WeightsError) as error:
        model.find(tmp_path)
    for part in (str(tmp_path / model.file), found, getattr(weights, model.sha256_constant)):
        assert part in str(error.value)
    assert "pip install" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.file)
def test_missing_weights_are_named_with_the_fix(model, tmp_path):
    missing = tmp_path / "nowhere" / model.file
    with pytest.raises(WeightsError) as error:
        model.find(missing)
    for part in (str(missing), getattr(weights, model.sha256_constant), "pip install"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_replaced_file_is_checked_again(tmp_path, monkeypatch):
    path = tmp_path / weights.CRAFT_WEIGHTS_FILE
    monkeypatch.setattr(weights, "CRAFT_WEIGHTS_SHA256", make_file(path, b"right"))
    weights.find_craft_weights(path)
    make_file(path, b"wrong, and longer")
    with pytest.raises(WeightsError, match="sha256"):
        weights.find_craft_weights(path)


def test_an_unchanged_file_is_hashed_once(tmp_path, monkeypatch):
    path = tmp_path / weights.CRAFT_WEIGHTS_FILE
    monkeypatch.setattr(weights, "CRAFT_WEIGHTS_SHA256", make_file(path, b"right"))
    misses_before = weights._sha256.cache_info().misses
    for _ in range(3):
        weights.find_craft_weights(path)
    assert weights._sha256.cache_info().misses == misses_before + 1


@pytest.mark.usefixtures("no_weights_package")
@pytest.mark.parametrize("variable", ["EASYOCR_MODULE_PATH", "MODULE_PATH"])
def test_craft_weights_are_looked_for_where_easyocr_downloads_them(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("EASYOCR_MODULE_PATH", raising=False)
    monkeypatch.delenv("MODULE_PATH", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    path = tmp_path / "model" / weights.CRAFT_WEIGHTS_FILE
    monkeypatch.setattr(weights, "CRAFT_WEIGHTS_SHA256", make_file(path, b"downloaded"))
    assert weights.find_craft_weights() == path


@pytest.mark.usefixtures("no_weights_package")
def test_missing_craft_weights_name_easyocrs_folder_and_both_fixes(tmp_path, monkeypatch):
    monkeypatch.setenv("EASYOCR_MODULE_PATH", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        weights.find_craft_weights()
    for part in (os.fspath(tmp_path), "'ocr-assets[weights]'", "easyocr.Reader(['en']"):
        assert part in str(error.value)
