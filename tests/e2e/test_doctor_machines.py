"""`ocr-assets doctor` on machines that a scripted driver makes up: the plan and what follows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fake_nvml.build import (
    GPU_IS_LOST,
    NO_PERMISSION,
    FakeCard,
    FakeMig,
    build_fake_nvml,
    script_cards,
)
from making import encode_video, numbered_image

from ocr_assets.instance import open_instance
from ocr_assets.settings import load_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the library is an ELF file")

BIN = Path(sys.executable).parent

H200_MIB = 141 * 1024

SMALL = FakeCard("GPU-5a5a5a5a-d72c-4106-c12f-20bd9faed9f6", 24 * 1024)
LARGE = FakeCard("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 80 * 1024, name="NVIDIA H100 80GB")
TINY = FakeCard("GPU-00400040-d72c-4106-c12f-20bd9faed9f6", 4 * 1024, name="NVIDIA T400 4GB")
SLICED = FakeCard(
    "GPU-c0ffee00-d72c-4106-c12f-20bd9faed9f6",
    H200_MIB,
    name="NVIDIA H200",
    utilization_percent=-1,
    mig=tuple(
        FakeMig(f"MIG-{index}b2b2b2b-d72c-4106-c12f-20bd9faed9f6", 20 * 1024) for index in range(7)
    ),
)


def eight_cards(worker_pid: int = 1, stranger_pid: int = 1) -> list[FakeCard]:
    """Eight H200: a worker of ours on the first, a stranger on the fourth, and on the sixth memory
    that the driver lists nobody for."""
    uses: dict[int, dict[str, Any]] = {
        0: {"used_mib": 1_500, "processes": {worker_pid: 1_500}},
        3: {"used_mib": 30_000, "processes": {stranger_pid: 30_000}},
        5: {"used_mib": 5_000},
    }
    return [
        FakeCard(
            f"GPU-{index}a1a1a1a-d72c-4106-c12f-20bd9faed9f6",
            H200_MIB,
            name="NVIDIA H200",
            **uses.get(index, {}),
        )
        for index in range(8)
    ]


@dataclass(frozen=True)
class Told:
    """What the doctor printed, taken apart."""

    code: int
    text: str

    @property
    def sections(self) -> dict[str, str]:
        titles = (
            r"^(Machine|Devices|Plan|Slots held|Pool|Measured needs|Recent use|Looks wrong)\b.*$"
        )
        _, *parts = re.split(titles, self.text, flags=re.MULTILINE)
        return dict(zip(parts[::2], parts[1::2], strict=True))

    @property
    def slots(self) -> dict[str, int]:
        """Planned slots by the short form of the device's UUID."""
        rows = re.findall(r"^│ (\S+) +│.*│ +(\d+) │$", self.sections["Plan"], re.MULTILINE)
        return {device: int(count) for device, count in rows}

    @property
    def problems(self) -> list[str]:
        """How bad each is, and the line on what it is."""
        rows = re.findall(
            r"^ (error|warning) +(.+?) *$", self.sections["Looks wrong"], re.MULTILINE
        )
        return [" ".join(row) for row in rows]

    def of_pool(self, name: str) -> str:
        match = re.search(rf"^ {name} +(.+?) *$", self.sections["Pool"], re.MULTILINE)
        assert match
        return match[1]


_DISCOVER = """
import sys
from dagster import AssetKey
from ocr_assets.definitions import build_definitions
from ocr_assets.instance import open_instance
from ocr_assets.settings import load_settings
for line in sys.stdin:
    settings = load_settings(max_slots=int(line) or None)
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    with open_instance(settings) as instance:
        job.execute_in_process(instance=instance, asset_selection=[AssetKey("videos")])
    print("discovered", flush=True)
"""


class Machine:
    """A data directory, and our commands beside a driver whose cards a test scripts."""

    def __init__(self, folder: Path, driver: Mapping[str, str]) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.driver = driver

    def call(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=self.folder,
            env=self.environ() | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def environ(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OCR_ASSETS_", "CUDA_", "DAGSTER_"))
        }
        return {
            **inherited,
            **self.driver,
            "OCR_ASSETS_DATA_DIR": str(self.data),
            "OCR_ASSETS_SOURCE": str(self.folder / "clips"),
        }

    def doctor(self, *cards: FakeCard, init_failure: int | None = None, **environ: str) -> Told:
        if self.driver:
            script_cards(self.driver, cards, init_failure=init_failure)
        done = self.call("ocr-assets", "doctor", **environ)
        assert not done.stderr, done.stderr
        return Told(done.returncode, done.stdout)


class DiscoveredMachine(Machine):
    """One whose sources were looked at by Dagster's command line, and are looked at again."""

    def __init__(self, folder: Path, driver: Mapping[str, str]) -> None:
        super().__init__(folder, driver)
        (folder / "clips").mkdir()
        images = [numbered_image(index) for index in range(4)]
        encode_video(folder / "clips" / "clip.mp4", images=images)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DAGSTER_HOME", raising=False)
            with open_instance(load_settings(data_dir=self.data)):
                pass
        command = ("dagster", "asset", "materialize", "--select", "videos")
        home = str(self.data / "dagster")
        done = self.call(*command, "-m", "ocr_assets.definitions", DAGSTER_HOME=home)
        assert done.returncode == 0, done.stdout + done.stderr
        # Starting Dagster takes seconds, so one process does all the others.
        self._again = subprocess.Popen(
            [sys.executable, "-c", _DISCOVER],
            cwd=folder,
            env=self.environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def discover(self, *cards: FakeCard, max_slots: int = 0) -> None:
        """Materializes `videos` on a machine with these cards; 0: without a cap."""
        script_cards(self.driver, cards)
        assert self._again.stdin
        assert self._again.stdout
        self._again.stdin.write(f"{max_slots}\n")
        self._again.stdin.flush()
        assert self._again.stdout.readline() == "discovered\n"

    def close(self) -> None:
        with self._again:
            self._again.kill()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiscoveredMachine]:
    driver = build_fake_nvml(tmp_path_factory.mktemp("driver"))
    script_cards(driver, [SMALL])
    with closing(DiscoveredMachine(tmp_path_factory.mktemp("machine"), driver)) as discovered:
        yield discovered


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


_HOLD = """
import sys, time
from resources.leases import SlotLeases, default_lock_directory
with SlotLeases(default_lock_directory(), {sys.argv[1]: 1}, need_mib=2048).acquire():
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def worker_on(uuid: str) -> Iterator[int]:
    """A process that holds a slot of a card."""
    with process(sys.executable, "-c", _HOLD, uuid) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield holder.pid


def assert_nothing_else_is_wrong(told: Told, *, has_cards: bool = True) -> None:
    """Nothing, but that a torch without CUDA cannot use these cards."""
    torch = find_spec("torch")
    assert torch
    assert torch.origin
    version = (Path(torch.origin).parent / "version.py").read_text(encoding="utf-8")
    if has_cards and "+cpu" in version:
        [problem] = told.problems
        assert "was built without CUDA" in problem
        assert told.code == 1
    else:
        assert told.problems == []
        assert told.code == 0


@pytest.mark.parametrize(
    ("cards", "slots"),
    [
        # (24576 - 1024) // 2048, and so on.
        ([SMALL], {"GPU-5a5a5a5a": 11}),
        ([LARGE, SMALL], {"GPU-8932f937": 39, "GPU-5a5a5a5a": 11}),
        ([SLICED], {f"MIG-{index}b2b2b2b": 9 for index in range(7)}),
        ([TINY], {"GPU-00400040": 1}),
    ],
    ids=["1x24", "80+24", "MIG 7x20", "1x4"],
)
def test_the_pools_limit_is_the_plan(
    machine: DiscoveredMachine, cards: list[FakeCard], slots: dict[str, int]
):
    machine.discover(*cards)
    told = machine.doctor(*cards)
    assert told.slots == slots
    assert told.of_pool("limit") == told.of_pool("plan") == str(sum(slots.values()))
    assert (told.of_pool("claimed"), told.of_pool("waiting")) == ("0", "0")
    assert_nothing_else_is_wrong(told)


def test_strangers_take_slots_and_our_workers_do_not(machine: DiscoveredMachine):
    with process("sleep", "600") as stranger, worker_on(eight_cards()[0].uuid) as worker_pid:
        cards = eight_cards(worker_pid=worker_pid, stranger_pid=stranger.pid)
        machine.discover(*cards)
        told = machine.doctor(*cards)
    # (144384 - 1024) // 2048 = 70; less 30000 MiB of the stranger, less 5000 MiB of nobody listed.
    counts = (70, 70, 70, 55, 70, 67, 70, 70)
    assert told.slots == {f"GPU-{index}a1a1a1a": count for index, count in enumerate(counts)}
    assert told.of_pool("limit") == told.of_pool("plan") == "542"
    assert re.search(rf"GPU-0a1a1a1a +│ +{worker_pid} │ +1500 │ OCR worker, slot 0", told.text)
    assert re.search(rf"GPU-3a1a1a1a +│ +{stranger.pid} │ +30000 │ sleep 600", told.text)
    assert re.search(rf"GPU-0a1a1a1a +│ +0 │ +{worker_pid} │", told.sections["Slots held"])
    assert_nothing_else_is_wrong(told)


def test_without_a_card_the_pool_follows_the_cpu(machine: DiscoveredMachine):
    machine.discover(max_slots=1)
    told = machine.doctor(OCR_ASSETS_MAX_SLOTS="1")
    assert told.slots == {"cpu": 1}
    assert told.of_pool("limit") == told.of_pool("plan") == "1"
    [problem] = told.problems
    assert problem.startswith("warning the driver lists no GPU")
    assert told.code == 0


@pytest.mark.skipif(
    find_library("nvidia-ml") is not None, reason="this machine has NVIDIA's own library"
)
def test_a_machine_without_a_driver_that_was_never_used_is_left_untouched(tmp_path: Path):
    told = Machine(tmp_path, driver={}).doctor()
    assert told.slots.keys() == {"cpu"}
    assert "no Dagster instance yet" in told.sections["Pool"]
    [problem] = told.problems
    assert problem.startswith("warning NVML does not start")
    assert told.code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_refuses_this_user_is_an_error(machine: DiscoveredMachine):
    told = machine.doctor(SMALL, init_failure=NO_PERMISSION)
    assert told.slots.keys() == {"cpu"}
    assert told.problems[0].startswith("error NVML does not start: Insufficient Permissions")
    assert told.code == 1


def test_one_lost_card_of_two_is_an_error_and_the_other_is_planned(machine: DiscoveredMachine):
    lost = FakeCard("GPU-105710570", 24 * 1024, failures={"memory": GPU_IS_LOST})
    told = machine.doctor(SMALL, lost)
    assert told.slots == {"GPU-5a5a5a5a": 11}
    assert told.problems[0].startswith("error GPU 1 (GPU-105710570): GPU is lost")
    assert told.code == 1
