"""Builds a libnvidia-ml.so.1 whose cards a test scripts, for the real pynvml in a subprocess.

    environ = build_fake_nvml(tmp_path)
    script_cards(environ, [FakeCard("GPU-a", 24576, processes={4711: 3000})])
    subprocess.run([sys.executable, ...], env={**os.environ, **environ})

The library is found through LD_LIBRARY_PATH, which only counts at a process's start; so the reader
must be a subprocess, and the product has no hook for it. The script may change while one runs: the
library reads it again at every nvmlInit and whenever it is asked for a UUID or for memory.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent / "fake_nvml.c"

NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
UNKNOWN = 999


@dataclass(frozen=True)
class FakeMig:
    """A MIG instance; memory in MiB, processes as pid → MiB (None: not told)."""

    uuid: str
    total_mib: int
    used_mib: int = 0
    processes: Mapping[int, int | None] = field(default_factory=dict[int, int | None])
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    name: str = "NVIDIA H200 MIG 1g.18gb"


@dataclass(frozen=True)
class FakeCard:
    """A GPU; `mig` None: not enabled, (): enabled without instances.

    Failures are NVML codes by call: handle, uuid, name, memory, processes, utilization, mig.
    """

    uuid: str
    total_mib: int
    used_mib: int = 0
    processes: Mapping[int, int | None] = field(default_factory=dict[int, int | None])
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    name: str = "NVIDIA GeForce RTX 4090"
    utilization_percent: int = 0
    mig: Sequence[FakeMig] | None = None


def build_fake_nvml(directory: Path) -> dict[str, str]:
    """Builds the library into `directory`; skips the test where there is no C compiler.

    Returns:
        The environment variables that let a subprocess find it. Its script has no card yet.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the scripted libnvidia-ml.so.1 with")
    library = directory / "libnvidia-ml.so.1"
    flags = ["-std=c11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE)], check=True)
    found = [str(directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environ = {
        "LD_LIBRARY_PATH": os.pathsep.join(found),
        "FAKE_NVML_SCRIPT": str(directory / "fake_nvml.script"),
    }
    script_cards(environ, [])
    return environ


def script_cards(
    environ: Mapping[str, str], cards: Sequence[FakeCard], *, init_failure: int | None = None
) -> None:
    """Says what the library of `environ` answers from now on, in every process.

    Who has it open needs the devices in the order that they had.
    """
    lines = [] if init_failure is None else [f"fail init {init_failure}"]
    for card in cards:
        lines.append(
            f"gpu {card.uuid} {card.total_mib} {card.used_mib} {card.utilization_percent} "
            f"{int(card.mig is not None)} {card.name}"
        )
        lines += _details(card)
        for mig in card.mig or ():
            lines.append(f"mig {mig.uuid} {mig.total_mib} {mig.used_mib} {mig.name}")
            lines += _details(mig)
    script = Path(environ["FAKE_NVML_SCRIPT"])
    # Renamed into place, so that no reader sees half of it.
    draft = script.with_suffix(".draft")
    draft.write_text("".join(line + "\n" for line in lines))
    draft.replace(script)


def _details(device: FakeCard | FakeMig) -> list[str]:
    return [
        *(
            f"process {pid} {-1 if used is None else used}"
            for pid, used in device.processes.items()
        ),
        *(f"fail {call} {code}" for call, code in device.failures.items()),
    ]
