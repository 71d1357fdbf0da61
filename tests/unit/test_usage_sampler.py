"""The sampler on this machine, and in a subprocess on a scripted libnvidia-ml.so.1."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nvml.build import build_fake_nvml

from resources import usage_sampler
from resources.nvml import DeviceUsage
from resources.usage_sampler import MAX_SAMPLE_COUNT, UsageSampler, UsageSummary
from resources.vram import CPU_DEVICE

INTERVAL_SECONDS = 0.01

_ON_A_GPU = """
import dataclasses, json, os, sys, time
from fake_nvml.build import GPU_IS_LOST, FakeCard, script_cards
from resources.usage_sampler import UsageSampler

def show(used_mib, **details):
    script_cards(os.environ, [FakeCard("GPU-a", 24564, used_mib=used_mib, **details)])

def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def now():
    return sampler.samples[-1].device_used_mib

own = {os.getpid(): 1500}
show(1600, processes=own, utilization_percent=30)
with UsageSampler(sys.argv[1], interval_seconds=0.01) as sampler:
    for step in sys.argv[2:]:
        match step:
            case "stranger":
                show(9600, processes=own | {1: 8000}, utilization_percent=90)
                wait_for(lambda: now() == 9600)
            case "lost":
                show(1600, failures={"memory": GPU_IS_LOST, "handle": GPU_IS_LOST})
                wait_for(lambda: sampler.failure_count > 2)
            case "back":
                show(1700, processes=own)
                wait_for(lambda: now() == 1700)
    work = "done"
json.dump(
    {
        "work": work,
        "failure_count": sampler.failure_count,
        "used_mib": [sample.device_used_mib for sample in sampler.samples],
        "summary": dataclasses.asdict(sampler.summary()),
    },
    sys.stdout,
)
"""

Sample = Callable[..., Any]


@pytest.fixture(scope="module")
def sample_gpu(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    fake_environ = build_fake_nvml(tmp_path_factory.mktemp("fake_nvml"))

    def sample_in_subprocess(uuid: str, *steps: str) -> Any:
        output = subprocess.run(
            [sys.executable, "-W", "error", "-c", _ON_A_GPU, uuid, *steps],
            env={**os.environ, **fake_environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            check=True,
        )
        return json.loads(output.stdout)

    return sample_in_subprocess


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(INTERVAL_SECONDS)


def test_memory_that_this_process_takes_for_a_while_is_in_its_peak():
    with UsageSampler(CPU_DEVICE, interval_seconds=INTERVAL_SECONDS) as sampler:
        block = np.ones(200 * 2**20, np.uint8)
        # Counted when it is there: samples are taken while it fills, too.
        count = len(sampler.samples)
        wait_until(lambda: len(sampler.samples) >= count + 2)
        del block
    first = sampler.samples[0].process_mib
    peak = sampler.summary().peak_process_mib
    assert first is not None
    assert peak is not None
    # Other threads of the test process may give a little back meanwhile.
    assert peak - first >= 190


def test_the_machine_is_told_with_its_memory_and_how_busy_it_is():
    with UsageSampler(CPU_DEVICE, interval_seconds=INTERVAL_SECONDS) as sampler:
        wait_until(lambda: sampler.samples[-1].elapsed_seconds > 0.3)
    assert all(0 < s.device_used_mib < s.device_total_mib for s in sampler.samples)
    told = [s.utilization_percent for s in sampler.samples if s.utilization_percent is not None]
    # Over less than a tenth of a second nothing is told.
    assert 2 <= len(told) <= 1 + sampler.samples[-1].elapsed_seconds / 0.1
    assert all(0 <= percent <= 100 for percent in told)


def test_a_body_that_takes_no_time_has_a_sample_of_its_start_and_one_of_its_end():
    before = datetime.now(UTC)
    with UsageSampler(CPU_DEVICE, interval_seconds=60) as sampler:
        (begun,) = sampler.samples
    first, last = sampler.samples
    assert first == begun
    assert 0 <= first.elapsed_seconds <= last.elapsed_seconds < 60
    assert before <= first.sampled_at <= last.sampled_at <= datetime.now(UTC)


def test_an_error_of_the_body_comes_through_and_the_thread_is_gone():
    before = set(threading.enumerate())
    with pytest.raises(KeyError), UsageSampler(CPU_DEVICE):
        raise KeyError
    assert set(threading.enumerate()) == before


def test_a_stranger_that_comes_is_seen(sample_gpu: Sample):
    result = sample_gpu("GPU-a", "stranger")
    used_mib = result["used_mib"]
    assert used_mib == sorted(used_mib)
    assert set(used_mib) == {1600, 9600}
    summary = result["summary"]
    assert summary["peak_device_mib"] == 9600
    assert 1600 < summary["mean_device_mib"] < 9600
    assert (summary["peak_process_mib"], summary["mean_process_mib"]) == (1500, 1500)
    assert summary["peak_utilization_percent"] == 90
    assert 30 < summary["mean_utilization_percent"] < 90
    assert summary["sample_count"] == len(used_mib)
    assert result["failure_count"] == 0


def test_a_lost_device_does_not_stop_the_partition(sample_gpu: Sample):
    result = sample_gpu("GPU-a", "lost")
    assert result["work"] == "done"
    assert result["failure_count"] > 2
    assert set(result["used_mib"]) == {1600}


def test_a_device_that_is_back_is_sampled_again(sample_gpu: Sample):
    result = sample_gpu("GPU-a", "lost", "back")
    assert set(result["used_mib"]) == {1600, 1700}


def test_a_device_that_is_not_there_gives_an_empty_summary(sample_gpu: Sample):
    result = sample_gpu("GPU-other")
    assert result["work"] == "done"
    assert result["failure_count"] >= 2
    assert result["summary"].pop("sample_count") == 0
    assert set(result["summary"].values()) == {None}


def test_samples_are_thinned_out_evenly_over_the_whole_time():
    sampler = UsageSampler(CPU_DEVICE, interval_seconds=1)
    second = 0
    while second < 5 * MAX_SAMPLE_COUNT:
        sampler._take(partial(DeviceUsage, 10**9, second, None, None))
        assert len(sampler.samples) <= MAX_SAMPLE_COUNT
        second += int(sampler._interval_seconds)
    # Three times full, so every eighth second is left.
    kept = [sample.device_used_mib for sample in sampler.samples]
    assert kept == list(range(0, 5 * MAX_SAMPLE_COUNT, 8))


def test_a_peak_outlives_its_sample():
    sampler = UsageSampler(CPU_DEVICE)
    for number in range(MAX_SAMPLE_COUNT + 1):
        # Of the first two samples the second is the one to go.
        usage = (900, 800, 99) if number == 1 else (10, 5, 1)
        sampler._take(partial(DeviceUsage, 1000, *usage))
    assert {sample.device_used_mib for sample in sampler.samples} == {10}
    assert sampler.summary() == UsageSummary(
        peak_device_mib=900,
        mean_device_mib=10,
        peak_process_mib=800,
        mean_process_mib=5,
        mean_utilization_percent=1,
        peak_utilization_percent=99,
        sample_count=MAX_SAMPLE_COUNT // 2 + 1,
    )


def test_a_driver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    has_answer = threading.Event()

    def hang() -> None:
        has_answer.wait(60)

    @contextmanager
    def hanging(_uuid: str) -> Generator[Callable[[], None], None, None]:
        yield hang

    monkeypatch.setattr(usage_sampler, "device_reader", hanging)
    monkeypatch.setattr(usage_sampler, "_THREAD_TIMEOUT_SECONDS", 0.05)
    started = time.monotonic()
    with UsageSampler("GPU-a") as sampler:
        pass
    assert time.monotonic() - started < 30
    assert (sampler.samples, sampler.failure_count) == ((), 1)
    has_answer.set()


@pytest.mark.parametrize("interval_seconds", [0, -1, float("nan")])
def test_rejects_an_interval_that_is_none(interval_seconds: float):
    with pytest.raises(ValueError, match="above 0 seconds"):
        UsageSampler(CPU_DEVICE, interval_seconds=interval_seconds)
