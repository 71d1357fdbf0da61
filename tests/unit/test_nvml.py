"""The real pynvml, in a subprocess, against a scripted libnvidia-ml.so.1."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
from fake_nvml.build import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    NO_PERMISSION,
    UNKNOWN,
    FakeCard,
    FakeMig,
    build_fake_nvml,
    script_cards,
)

from resources.nvml import GpuDevice, GpuProcess, device_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the library is an ELF file")

_READ = """
import dataclasses, json, sys
from resources.nvml import read_devices
json.dump(dataclasses.asdict(read_devices()), sys.stdout)
"""

_READ_OFTEN = """
import dataclasses, json, os, sys
from fake_nvml.build import GPU_IS_LOST, FakeCard, FakeMig, script_cards
from resources.nvml import device_reader, read_devices

def usage():
    reading = read()
    return reading and dataclasses.asdict(reading)

def show(used_mib, **details):
    mig = FakeMig("MIG-0b", 20096, used_mib=40, processes={os.getpid(): 39})
    sliced = FakeCard("GPU-c", 143771, utilization_percent=-1, mig=(mig,))
    script_cards(os.environ, [FakeCard("GPU-a", 24564, used_mib=used_mib, **details), sliced])

answers = []
uuid, *steps = sys.argv[1:]
show(2000, processes={os.getpid(): 1500, 1: 400}, utilization_percent=42)
with device_reader(uuid) as read:
    answers.append(usage())
    for step in steps:
        match step:
            case "fuller":
                show(5000, processes={1: 3000})
            case "lost":
                show(5000, failures={"memory": GPU_IS_LOST, "handle": GPU_IS_LOST})
            case "closed elsewhere":
                read_devices()
        answers.append(usage())
json.dump(answers, sys.stdout)
"""

Read = Callable[..., Any]

UNEVEN = (
    FakeCard("GPU-8932f937-d72c", 81559, name="NVIDIA H100 80GB HBM3"),
    FakeCard("GPU-8a51bcde-0000", 24564),
)
EIGHT = tuple(FakeCard(f"GPU-{index}a", 143771, name="NVIDIA H200") for index in range(8))
SLICED = FakeCard(
    "GPU-c0ffee",
    143771,
    name="NVIDIA H200",
    utilization_percent=-1,
    mig=tuple(FakeMig(f"MIG-{index}b", 20096, used_mib=40) for index in range(7)),
)


@pytest.fixture(scope="module")
def fake_environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_fake_nvml(tmp_path_factory.mktemp("fake_nvml"))


@pytest.fixture
def read(fake_environ: dict[str, str]) -> Read:
    def read_in_subprocess(
        *cards: FakeCard, visible: str | None = None, init_failure: int | None = None
    ) -> Any:
        script_cards(fake_environ, cards, init_failure=init_failure)
        environ = {**os.environ, **fake_environ}
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        output = subprocess.run(
            [sys.executable, "-W", "error", "-c", _READ],
            env=environ,
            capture_output=True,
            check=True,
        )
        return json.loads(output.stdout)

    return read_in_subprocess


@pytest.fixture
def read_often(fake_environ: dict[str, str]) -> Read:
    def read_in_subprocess(uuid: str, *steps: str) -> Any:
        output = subprocess.run(
            [sys.executable, "-W", "error", "-c", _READ_OFTEN, uuid, *steps],
            env={**os.environ, **fake_environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            check=True,
        )
        return json.loads(output.stdout)

    return read_in_subprocess


def uuids(reading: Any) -> list[str]:
    return [device["uuid"] for device in reading["devices"]]


def test_a_card_is_read_in_mib_with_its_processes(read: Read):
    reading = read(
        FakeCard(
            "GPU-a", 24564, used_mib=3021, processes={77: 2500, 12: None}, utilization_percent=42
        )
    )
    assert reading["state"] == "ok"
    assert reading["detail"] == ""
    assert reading["devices"] == [
        {
            "uuid": "GPU-a",
            "index": 0,
            "name": "NVIDIA GeForce RTX 4090",
            "total_mib": 24564,
            "free_mib": 21543,
            "used_mib": 3021,
            "utilization_percent": 42,
            "processes": [{"pid": 12, "used_mib": None}, {"pid": 77, "used_mib": 2500}],
            "is_mig": False,
            "parent_uuid": None,
        }
    ]


def test_eight_cards_are_read_in_nvmls_order(read: Read):
    reading = read(*EIGHT)
    assert uuids(reading) == [card.uuid for card in EIGHT]
    assert [device["index"] for device in reading["devices"]] == list(range(8))


def test_mig_instances_stand_in_for_their_card(read: Read):
    reading = read(UNEVEN[1], SLICED)
    assert uuids(reading) == [UNEVEN[1].uuid, *(f"MIG-{index}b" for index in range(7))]
    instance = reading["devices"][1]
    assert (instance["is_mig"], instance["parent_uuid"]) == (True, "GPU-c0ffee")
    assert (instance["index"], instance["total_mib"]) == (1, 20096)
    assert instance["utilization_percent"] is None


def test_a_card_with_mig_on_and_no_instance_says_so(read: Read):
    reading = read(FakeCard("GPU-a", 143771, mig=()))
    assert reading["state"] == "no_devices"
    assert reading["detail"] == "GPU 0 (GPU-a): MIG is on, but no instance exists"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1,0", [1, 0]),
        (" 1", [1]),
        ("1gpu", [1]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),
        ("0,2,1", [0]),
        ("0,0", []),
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c", [0]),
        ("GPU-8a,GPU-89", [1, 0]),
        ("GPU-8", []),
        ("GPU-89,GPU-none,GPU-8a", [0]),
        ("GPU-89,GPU-8932", []),
        ("GPU-89,1", [0]),
        ("1,GPU-89", [1]),
        ("MIG-0b", []),
    ],
)
def test_cuda_visible_devices_names_cards_as_cuda_reads_it(
    read: Read, visible: str, expected: list[int]
):
    reading = read(*UNEVEN, visible=visible)
    assert uuids(reading) == [UNEVEN[index].uuid for index in expected]
    assert reading["state"] == ("ok" if expected else "no_devices")


def test_devices_hidden_by_the_environment_are_explained(read: Read):
    reading = read(*UNEVEN, visible="")
    assert reading["detail"] == "CUDA_VISIBLE_DEVICES='' shows none of the 2 GPUs"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("MIG-3b", ["MIG-3b"]),
        ("MIG-3,MIG-0b", ["MIG-3b", "MIG-0b"]),
        ("MIG-3b,MIG-3b", []),
        ("MIG-", []),
        ("GPU-c0ffee", [f"MIG-{index}b" for index in range(7)]),
    ],
)
def test_cuda_visible_devices_names_mig_instances(read: Read, visible: str, expected: list[str]):
    assert uuids(read(SLICED, visible=visible)) == expected


@pytest.mark.skipif(
    find_library("nvidia-ml") is not None, reason="this machine has NVIDIA's own library"
)
def test_without_the_library_there_is_no_driver():
    output = subprocess.run([sys.executable, "-c", _READ], capture_output=True, check=True)
    reading = json.loads(output.stdout)
    assert reading["state"] == "no_driver"
    assert "Library Not Found" in reading["detail"]


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (DRIVER_NOT_LOADED, "no_driver"),
        (NO_PERMISSION, "no_permission"),
        (UNKNOWN, "error"),
        (31, "error"),
    ],
)
def test_a_driver_that_does_not_start_is_a_state(read: Read, code: int, state: str):
    reading = read(*UNEVEN, init_failure=code)
    assert (reading["state"], reading["devices"]) == (state, [])
    assert reading["detail"].startswith("NVML does not start: ")


def test_a_driver_without_cards_is_a_state(read: Read):
    reading = read()
    assert reading["state"] == "no_devices"
    assert reading["detail"] == "the driver lists no GPU"


@pytest.mark.parametrize(
    "call", ["handle", "uuid", "memory", "name", "processes", "utilization", "mig"]
)
def test_a_lost_card_does_not_hide_the_others(read: Read, call: str):
    lost = FakeCard("GPU-lost", 24564, failures={call: GPU_IS_LOST})
    reading = read(lost, *UNEVEN)
    assert reading["state"] == "device_lost"
    assert uuids(reading) == [card.uuid for card in UNEVEN]
    assert "GPU is lost" in reading["detail"]
    assert "GPU 0" in reading["detail"]


def test_a_lost_card_named_first_does_not_hide_the_others(read: Read):
    lost = FakeCard("GPU-lost", 24564, failures={"handle": GPU_IS_LOST})
    reading = read(*UNEVEN, lost, visible="GPU-lost,GPU-8a")
    assert reading["state"] == "device_lost"
    assert uuids(reading) == ["GPU-8a51bcde-0000"]


def test_a_lost_card_that_is_not_visible_is_no_concern(read: Read):
    lost = FakeCard("GPU-lost", 24564, failures={"handle": GPU_IS_LOST})
    reading = read(lost, *UNEVEN, visible="1,2")
    assert (reading["state"], reading["detail"]) == ("ok", "")


def test_a_card_that_keeps_its_processes_to_itself_is_still_read(read: Read):
    reading = read(FakeCard("GPU-a", 24564, failures={"processes": NO_PERMISSION}))
    assert reading["state"] == "ok"
    assert reading["devices"][0]["processes"] == []


def test_a_device_read_often_is_told_as_it_is_each_time(read_often: Read):
    first, second = read_often("GPU-a", "fuller")
    expected = {"total_mib": 24564, "used_mib": 2000, "own_mib": 1500, "utilization_percent": 42}
    assert first == expected
    assert (second["used_mib"], second["own_mib"]) == (5000, None)


def test_a_mig_instance_is_read_by_its_uuid(read_often: Read):
    expected = {"total_mib": 20096, "used_mib": 40, "own_mib": 39, "utilization_percent": None}
    assert read_often("MIG-0b") == [expected]


def test_a_device_that_is_lost_is_none_until_it_is_back(read_often: Read):
    answers = read_often("GPU-a", "lost", "lost", "fuller")
    assert [answer and answer["used_mib"] for answer in answers] == [2000, None, None, 5000]


def test_a_device_that_does_not_exist_is_none(read_often: Read):
    assert read_often("GPU-other", "fuller") == [None, None]


def test_reading_all_devices_meanwhile_does_not_close_a_reader(read_often: Read):
    answers = read_often("GPU-a", "closed elsewhere", "fuller")
    assert [answer["used_mib"] for answer in answers] == [2000, 2000, 5000]


@pytest.mark.skipif(
    find_library("nvidia-ml") is not None, reason="this machine has NVIDIA's own library"
)
def test_without_a_driver_every_reading_is_none():
    script = """
from resources.nvml import device_reader
with device_reader("GPU-a") as read:
    print(read(), read())
"""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert output.stdout == "None None\n"


def test_importing_the_module_loads_no_pynvml():
    check = "import sys, resources.nvml; sys.exit('pynvml' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_memory_of_processes_in_another_namespace_is_unaccounted_for():
    # 2**22 is the highest process id that Linux gives, so it never exists beside the test.
    device = GpuDevice(
        uuid="GPU-a",
        index=0,
        name="NVIDIA L4",
        total_mib=24576,
        free_mib=14576,
        used_mib=10000,
        utilization_percent=None,
        processes=(GpuProcess(os.getpid(), 3000), GpuProcess(2**22, 2000)),
        is_mig=False,
        parent_uuid=None,
    )
    stranger_beside_us = device_memory(device, own_pids=[os.getpid()], need_mib=2048)
    assert stranger_beside_us.strangers_mib == 7000
    hidden_worker = device_memory(device, own_pids=[os.getpid(), 1], need_mib=2048)
    assert hidden_worker.strangers_mib == 7000 - 2048
