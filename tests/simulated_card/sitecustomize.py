"""Put on PYTHONPATH by tests: the product's processes then compute on a scripted detector.

Python imports this module at its start. It imports next to nothing, and waits until the product
imports one of its own modules in which a name is to be replaced. Everything else is the product's.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

HERE = str(Path(__file__).parent)

REPLACEMENTS = {
    "resources.ocr_worker": "replace_device",
    "ocr_assets.worker_process": "replace_imports",
}
"""Which function of `scripted_detector` is told of which module once that has been executed."""


class _Hook:
    """Finds the modules as Python does, and adds a step to their execution."""

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in REPLACEMENTS else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_replace(module) -> None:
            execute(module)
            scripted_detector = importlib.import_module("scripted_detector")
            getattr(scripted_detector, REPLACEMENTS[name])(module)

        spec.loader.exec_module = execute_and_replace
        return spec


def _run_the_one_behind() -> None:
    """There may be another of this name, which this one hides."""
    others = [path for path in sys.path if path != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Hook())
_run_the_one_behind()
