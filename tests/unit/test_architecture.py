"""What may import what, and what loading the code location may not do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocr_assets.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGES = ("ocr_assets", "resources")


def modules(*places: str) -> list[Path]:
    """The Python files at or below these places; a place without any is an error, not a pass."""
    found = [
        path
        for place in places
        for path in (
            [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
        )
    ]
    assert found
    assert all(path.is_file() for path in found)
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file, as dotted names."""
    return set(_imported(ast.parse(path.read_text(encoding="utf-8"))))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers_of(package: str, *places: str) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in modules(*places)
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    ]


def test_imports_are_found_wherever_they_stand(tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text("import a.b\ndef f():\n    from c import d\nif x:\n    import e as f\n")
    assert imports(path) == {"a.b", "c", "c.d", "e"}


def test_resources_never_import_the_pipeline():
    assert importers_of("ocr_assets", "resources") == []


@pytest.mark.parametrize(
    "package", ["dagster", "torch", "resources", "duckdb", "cv2", "av", "decord"]
)
def test_the_pure_rooms_stay_pure(package: str):
    assert importers_of(package, "ocr_assets/curation") == []


@pytest.mark.parametrize(
    "package", ["dagster", "torch", "pynvml", "resources", "ocr_assets", "filelock"]
)
def test_the_plan_of_slots_is_plain_arithmetic(package: str):
    assert importers_of(package, "resources/vram.py") == []


@pytest.mark.parametrize("package", ["dagster", "torch", "pyarrow", "ocr_assets", "filelock"])
def test_what_a_worker_needs_is_plain_arithmetic(package: str):
    assert importers_of(package, "resources/worker_memory.py") == []


def test_one_module_asks_nvml():
    assert importers_of("pynvml", *PACKAGES) == ["resources/nvml.py"]


def test_one_door_leads_to_duckdb():
    assert importers_of("duckdb", *PACKAGES) == ["resources/score_store.py"]


def test_one_module_starts_killable_workers():
    assert importers_of("pebble", *PACKAGES) == ["resources/worker_pool.py"]


@pytest.mark.parametrize("package", ["dagster", "streamlit", "rich", "typer"])
def test_detectors_and_stores_know_no_orchestrator(package: str):
    outside = {"resources/gpu.py"} if package == "dagster" else set()
    assert set(importers_of(package, "resources")) == outside


def test_no_module_that_defines_assets_or_resources_postpones_annotations():
    # An annotated `context` or `config` parameter then fails at definition (Dagster 1.13.27).
    places = ("ocr_assets/assets", "ocr_assets/definitions.py", "resources/gpu.py")
    assert importers_of("__future__.annotations", *places) == []


def test_loading_the_code_location_imports_nothing_heavy(tmp_path: Path):
    script = """
import sys
from ocr_assets.definitions import defs
defs()
heavy = {"torch", "torchvision", "decord", "pynvml", "easyocr", "onnxruntime", "rapidocr", "av",
         "matplotlib"}
print(*sorted(heavy & sys.modules.keys()))
"""
    # In an empty directory: what lies in the checkout must not matter, and nothing may be written.
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str):
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_belongs_in_it(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
