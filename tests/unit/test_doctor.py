"""What looks wrong: each problem from its facts, and the questions from whoever does not answer."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ocr_assets import doctor
from ocr_assets.cli import app
from ocr_assets.doctor import diagnose, show
from ocr_assets.doctor_checks import (
    DeviceUse,
    Diagnosis,
    InstanceState,
    Problem,
    Question,
    TorchBuild,
    problems,
)
from ocr_assets.instance import open_instance
from ocr_assets.pools import PoolClaim, PoolState, set_ocr_limit
from ocr_assets.settings import load_settings
from resources.data_directory import DataDirectory
from resources.leases import SlotHolder
from resources.memory_records import MemoryRecords
from resources.nvml import GpuDevice, GpuProcess, NvmlReading, NvmlState
from resources.usage_files import usage_table
from resources.usage_sampler import UsageSample
from resources.vram import DeviceMemory, Reserve, VramPlan, plan_slots
from resources.worker_memory import MemoryRecord

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
OTHER_UUID = "GPU-8932f937-aaaa-4106-c12f-20bd9faed9f6"
HERE, STRANGER, ELSEWHERE = 4711, 4712, 4_000_000


def card(uuid: str = UUID, **changes: Any) -> GpuDevice:
    fields: dict[str, Any] = {
        "uuid": uuid,
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "total_mib": 24576,
        "free_mib": 24576,
        "used_mib": 0,
        "utilization_percent": 0,
        "processes": (),
        "is_mig": False,
        "parent_uuid": None,
    }
    return GpuDevice(**(fields | changes))


def plan(strangers_mib: int = 0, total_mib: int = 24576, uuid: str = UUID) -> VramPlan:
    memory = DeviceMemory(uuid, "NVIDIA H100 80GB HBM3", total_mib, strangers_mib)
    return plan_slots([memory], need_mib=2048, reserve=Reserve(mib=1024))


def holder(pid: int | None = HERE, slot_index: int = 0, uuid: str = UUID) -> SlotHolder:
    return SlotHolder(uuid, slot_index, pid, NOW, 2048)


def pool(**changes: Any) -> PoolState:
    return replace(PoolState(11, is_default=False, by_hand=None, claims=(), waiting=()), **changes)


def instance(**changes: Any) -> InstanceState:
    state = InstanceState(pool(), is_op_granular=True, default_limit=1, frees_slots=True)
    return replace(state, **changes)


def diagnosis(**changes: Any) -> Diagnosis:
    """A machine with one card of 24 GiB, 11 slots, and nothing wrong."""
    return replace(
        Diagnosis(
            host="station",
            core_count=16,
            available_mib=60_000,
            detector="craft",
            device="auto",
            reserve=Reserve(mib=1024),
            data_dir=Path("/data"),
            is_writable=True,
            has_catalog=True,
            torch=TorchBuild("2.13.0+cu130", "13.0"),
            weights=Path("/weights/craft_mlt_25k.pth"),
            reading=NvmlReading(NvmlState.OK, (card(),), ""),
            commands={HERE: "python worker", STRANGER: "python train.py"},
            holders=(),
            plan=plan(),
            dagster_home=Path("/data/dagster"),
            instance=instance(),
            measured=(),
            uses=(),
            unanswered={},
        ),
        **changes,
    )


def only_problem(**changes: Any) -> Problem:
    [problem] = problems(diagnosis(**changes))
    assert problem.why
    assert problem.fix
    return problem


def reading(state: NvmlState, detail: str, *devices: GpuDevice) -> NvmlReading:
    return NvmlReading(state, devices, detail)


def test_nothing_is_wrong_with_a_machine_that_is_well():
    assert problems(diagnosis()) == []


def test_nothing_is_wrong_before_anything_was_run():
    assert problems(diagnosis(instance=None, has_catalog=False)) == []


@pytest.mark.parametrize(
    ("state", "severity", "fix"),
    [
        (NvmlState.NO_DRIVER, "warning", "--gpus all"),
        (NvmlState.NO_DEVICES, "warning", "CUDA_VISIBLE_DEVICES"),
        (NvmlState.NO_PERMISSION, "error", "/dev/nvidia*"),
        (NvmlState.DEVICE_LOST, "error", "--gpu-reset"),
        (NvmlState.ERROR, "error", "nvidia-smi"),
    ],
)
def test_a_driver_without_a_usable_card_is_told_with_what_to_do(
    state: NvmlState, severity: str, fix: str
):
    problem = only_problem(reading=reading(state, "in words"))
    assert (problem.severity, problem.what) == (severity, "in words")
    assert problem.why == "OCR runs on the CPU"
    assert fix in problem.fix


def test_one_lost_card_of_two_is_an_error():
    problem = only_problem(reading=reading(NvmlState.DEVICE_LOST, "GPU 1 is lost", card()))
    assert (problem.severity, problem.what) == ("error", "GPU 1 is lost")


def test_a_card_with_mig_on_and_no_instance_beside_others_is_told():
    problem = only_problem(reading=reading(NvmlState.OK, "MIG is on, but none exists", card()))
    assert problem.severity == "warning"
    assert "nvidia-smi mig" in problem.fix


@pytest.mark.parametrize("changes", [{"device": "cpu"}, {"detector": "ppocr"}])
def test_who_does_without_a_card_is_not_told_to_get_one(changes: dict[str, str]):
    assert problems(diagnosis(reading=reading(NvmlState.NO_DRIVER, "none"), **changes)) == []
    lost = diagnosis(reading=reading(NvmlState.DEVICE_LOST, "GPU 0 is lost"), **changes)
    assert [problem.severity for problem in problems(lost)] == ["warning"]


def test_cuda_without_a_card_is_one_error():
    problem = only_problem(
        device="cuda",
        plan=None,
        reading=reading(NvmlState.NO_DRIVER, "no library"),
        unanswered={Question.PLAN: "device is cuda, but there is no usable card; mend it"},
    )
    assert problem.severity == "error"
    assert problem.what == "device is cuda, but there is no usable card: no library"
    assert problem.fix.endswith("set device to auto")


def test_a_card_beside_a_torch_without_cuda_is_an_error():
    problem = only_problem(torch=TorchBuild("2.13.0+cpu", None))
    assert problem.severity == "error"
    assert "torch 2.13.0+cpu was built without CUDA" in problem.what
    assert "NVIDIA H100 80GB HBM3" in problem.what


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu"},
        {"detector": "ppocr"},
        {"device": "cpu", "reading": reading(NvmlState.NO_DRIVER, "no library")},
    ],
)
def test_a_torch_without_cuda_is_fine_where_no_card_is_used(changes: dict[str, Any]):
    assert problems(diagnosis(torch=TorchBuild("2.13.0+cpu", None), **changes)) == []


def test_craft_without_torch_is_an_error():
    assert only_problem(torch=None).what == "torch is not installed"
    assert problems(diagnosis(torch=None, detector="ppocr")) == []


@pytest.mark.parametrize(
    ("question", "message", "what", "fix"),
    [
        (Question.WEIGHTS, "CRAFT weights not found; install them", "CRAFT weights", "install"),
        (Question.SLOTS, "/run/lock/x was kept locked for 5 s", "kept locked", "lslocks"),
        (Question.DRIVER, "the driver: no answer in 30 s", "no answer", "nvidia-smi"),
        (Question.PLAN, "ppocr runs on the CPU only; set device", "CPU only", "set device"),
        (Question.INSTANCE, "no such table: runs", "no such table", "dagster.yaml"),
        (Question.MEASURED, "a.parquet cannot be read; remove it", "a.parquet", "remove it"),
    ],
)
def test_what_could_not_be_found_out_is_an_error(
    question: Question, message: str, what: str, fix: str
):
    problem = only_problem(unanswered={question: message})
    assert problem.severity == "error"
    assert what in problem.what
    assert fix in problem.fix


def test_a_damaged_usage_file_is_a_warning():
    assert only_problem(unanswered={Question.USE: "not Parquet"}).severity == "warning"


def test_what_stops_two_questions_is_told_once():
    message = "worker_memory.parquet cannot be read; remove it"
    unanswered = {Question.PLAN: message, Question.MEASURED: message}
    assert "worker_memory" in only_problem(unanswered=unanswered).what


def test_a_read_only_data_directory_is_an_error():
    problem = only_problem(is_writable=False)
    assert (problem.severity, problem.what) == ("error", "data directory /data cannot be written")


def test_a_full_card_says_what_to_free():
    busy = plan(strangers_mib=23_000)
    problem = only_problem(plan=busy, instance=None)
    assert problem.severity == "error"
    assert f"({UUID}) has 552 MiB for OCR, a worker needs 2048 MiB" in problem.what
    assert "others use 23000 MiB there" in problem.why
    assert problem.fix.startswith("free at least 1496 MiB there")


def test_a_card_that_is_too_small_is_not_called_busy():
    problem = only_problem(plan=plan(total_mib=2048), instance=None)
    assert problem.why == "no OCR process can start"
    assert "reserve_mib is 1024" in problem.fix


def test_more_workers_than_planned_are_told():
    problem = only_problem(
        plan=plan(strangers_mib=20_000),
        instance=None,
        holders=(holder(slot_index=0), holder(slot_index=1)),
    )
    assert problem.severity == "warning"
    assert f"2 workers are on NVIDIA H100 80GB HBM3 ({UUID}), the plan has 1" in problem.what


def test_workers_on_a_device_that_is_not_planned_are_nobodys_concern():
    assert problems(diagnosis(holders=(holder(uuid="cpu"),))) == []


@pytest.mark.parametrize(
    ("pid", "called"), [(ELSEWHERE, "itself 4000000"), (None, "of unknown id")]
)
def test_a_holder_that_is_not_seen_here_is_told(pid: int | None, called: str):
    problem = only_problem(holders=(holder(pid),))
    assert problem.severity == "warning"
    assert called in problem.what


@pytest.mark.parametrize(
    ("default_limit", "why"),
    [(None, "as many OCR steps as are started"), (1, "at most 1 OCR steps at once")],
)
def test_a_pool_that_was_never_set_is_told_once_videos_were_discovered(
    default_limit: int | None, why: str
):
    unset = instance(pool=pool(limit=None), default_limit=default_limit)
    found = problems(diagnosis(instance=unset))
    assert found[0].what == "the limit of pool ocr_gpu was not set, though there was a discovery"
    assert why in found[0].why
    assert problems(diagnosis(instance=instance(pool=pool(limit=None)), has_catalog=False)) == []


def test_a_default_limit_counts_as_not_set():
    assert (
        "was not set" in only_problem(instance=instance(pool=pool(limit=1, is_default=True))).what
    )


@pytest.mark.parametrize(("limit", "by_hand"), [(12, None), (10, None), (12, 12)])
def test_a_limit_that_is_not_the_plans_is_a_warning(limit: int, by_hand: int | None):
    problem = only_problem(instance=instance(pool=pool(limit=limit, by_hand=by_hand)))
    assert problem.severity == "warning"
    assert problem.what == f"the limit of pool ocr_gpu is {limit}, the plan is 11"
    assert "ocr_pool_limit" in problem.fix


def test_a_plan_without_slots_lets_one_step_tell_why():
    state = instance(pool=pool(limit=1))
    [problem] = problems(diagnosis(plan=plan(strangers_mib=24_000), instance=state))
    assert "the plan has no slot" in problem.what


def test_a_lower_limit_by_hand_says_how_to_lift_it():
    problem = only_problem(instance=instance(pool=pool(limit=4, by_hand=4)))
    assert problem.severity == "warning"
    assert problem.what == "pool ocr_gpu is limited to 4 by hand, the plan is 11"
    assert "delete its limit" in problem.fix


def test_a_higher_limit_by_hand_is_fine():
    assert problems(diagnosis(instance=instance(pool=pool(limit=11, by_hand=20)))) == []


def test_a_pool_paused_by_hand_is_an_error():
    problem = only_problem(instance=instance(pool=pool(limit=0, by_hand=0)))
    assert (problem.severity, problem.what) == ("error", "pool ocr_gpu was set to 0 by hand")


@pytest.mark.parametrize("where", ["claims", "waiting"])
def test_claims_of_runs_that_are_over_are_leaks(where: str):
    claims = (PoolClaim("going", "step", is_over=False), PoolClaim("gone", "step", is_over=True))
    problem = only_problem(instance=instance(pool=pool(**{where: claims})))
    assert problem.severity == "warning"
    assert problem.what.endswith("slots of pool ocr_gpu: gone")


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"is_op_granular": False}, "concurrency.pools.granularity to op"),
        ({"default_limit": None}, "concurrency.pools.default_limit to 1"),
        ({"frees_slots": False}, "run_monitoring.free_slots_after_run_end_seconds to 5"),
    ],
)
def test_an_instance_that_is_set_up_otherwise_is_told_what_to_set(
    changes: dict[str, Any], fix: str
):
    problem = only_problem(instance=instance(**changes))
    assert problem.severity == "warning"
    assert fix in problem.fix
    assert "/data/dagster/dagster.yaml" in problem.fix


def test_errors_come_first():
    found = problems(diagnosis(is_writable=False, holders=(holder(None),), torch=None))
    assert [problem.severity for problem in found] == ["error", "error", "warning"]


@pytest.fixture
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No instance, no settings and no slots of this machine."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resources.planner.default_lock_directory", lambda: tmp_path / "slots")


def diagnosed(tmp_path: Path) -> Diagnosis:
    return diagnose(load_settings(data_dir=tmp_path / "data", detector="ppocr"))


@pytest.mark.usefixtures("_alone")
def test_asking_makes_neither_instance_nor_data_directory(tmp_path: Path):
    found = diagnosed(tmp_path)
    assert found.instance is None
    assert found.unanswered == {}
    assert [path.name for path in tmp_path.iterdir()] == ["slots"]


@pytest.mark.usefixtures("_alone")
def test_an_empty_dagster_home_is_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert diagnosed(tmp_path).instance is None
    assert list(home.iterdir()) == []


@pytest.mark.usefixtures("_alone")
def test_an_instance_is_read_as_it_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {granularity: run}}"
    )
    with open_instance(load_settings()) as opened:
        set_ocr_limit(opened, 7)
        opened.event_log_storage.claim_concurrency_slot("ocr_gpu", "deleted", "step")
    expected = InstanceState(
        pool=PoolState(
            limit=7,
            is_default=False,
            by_hand=None,
            claims=(PoolClaim("deleted", "step", is_over=True),),
            waiting=(),
        ),
        is_op_granular=False,
        default_limit=None,
        frees_slots=False,
    )
    assert diagnosed(tmp_path).instance == expected


@pytest.mark.usefixtures("_alone")
def test_our_own_instance_is_set_up_as_it_should_be(tmp_path: Path):
    with open_instance(load_settings(data_dir=tmp_path / "data")):
        pass
    found = diagnosed(tmp_path)
    assert found.instance is not None
    assert problems(found) == []


@pytest.mark.usefixtures("_alone")
def test_a_damaged_instance_is_told_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("storage: {tape: {}}")
    found = diagnosed(tmp_path)
    assert set(found.unanswered) == {Question.INSTANCE}
    assert found.plan is not None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """As a process does that was stopped while it counted the slots."""
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.mark.usefixtures("_alone")
def test_who_keeps_the_slots_locked_does_not_keep_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(doctor.DEADLINES_SECONDS, Question.SLOTS, 0.3)
    started = time.monotonic()
    with locked(tmp_path / "slots"):
        found = diagnosed(tmp_path)
    assert time.monotonic() - started < 10
    assert found.unanswered == {Question.SLOTS: "who holds a slot: no answer in 0.3 s"}
    assert found.plan is None


@pytest.mark.usefixtures("_alone")
def test_a_driver_that_hangs_does_not_hang_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(doctor.DEADLINES_SECONDS, Question.DRIVER, 0.1)
    monkeypatch.setattr(doctor, "read_devices", lambda: time.sleep(30))
    found = diagnosed(tmp_path)
    assert set(found.unanswered) == {Question.DRIVER}
    assert [problem.severity for problem in problems(found)] == ["error"]


@pytest.mark.usefixtures("_alone")
def test_a_defect_of_our_own_is_not_taken_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "read_devices", fail)
    with pytest.raises(ZeroDivisionError):
        diagnosed(tmp_path)


@pytest.mark.usefixtures("_alone")
def test_damaged_records_are_told_once_and_nothing_is_planned(tmp_path: Path):
    records = DataDirectory(tmp_path / "data").memory_records.path
    records.parent.mkdir()
    records.write_bytes(b"not Parquet")
    found = diagnosed(tmp_path)
    [problem] = problems(found)
    assert str(records) in problem.what
    assert found.plan is None


@pytest.mark.usefixtures("_alone")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_seen_before_anything_is_written(tmp_path: Path):
    (tmp_path / "data").mkdir(mode=0o500)
    assert not diagnosed(tmp_path).is_writable


@pytest.mark.usefixtures("_alone")
def test_a_file_in_the_way_is_no_place_for_data(tmp_path: Path):
    (tmp_path / "data").write_text("in the way")
    assert not diagnosed(tmp_path).is_writable


def sample(used_mib: int, process_mib: int | None, utilization_percent: int | None) -> UsageSample:
    return UsageSample(NOW, 0.0, used_mib, 24576, process_mib, utilization_percent)


@pytest.mark.usefixtures("_alone")
def test_recent_use_is_summed_up_by_device(tmp_path: Path):
    usage = DataDirectory(tmp_path / "data").usage_files
    worker: dict[str, Any] = {"run_id": "run", "process_id": 1, "host": "h", "slot_index": 0}
    for shard, uuid, samples in (
        ("s000001", UUID, [sample(1000, 500, 40), sample(3000, 1500, 60)]),
        ("s000002", UUID, [sample(2000, None, None)]),
        ("s000003", "cpu", [sample(100, None, None)]),
    ):
        table = usage_table(samples, shard=shard, device_uuid=uuid, device_name="card", **worker)
        usage.write(shard, table)
    [gpu, cpu] = diagnosed(tmp_path).uses
    assert gpu == DeviceUse("h", UUID, "card", 2, NOW, 3000, 2000, 1500, 1000, 50)
    assert (cpu.peak_mib, cpu.peak_process_mib, cpu.mean_utilization_percent) == (100, None, None)


def record(**changes: Any) -> MemoryRecord:
    fields: dict[str, Any] = {
        "detector": "craft",
        "weights_sha256": "0" * 64,
        "dtype": "float32",
        "device_name": "NVIDIA H100 80GB HBM3",
        "host": "station",
        "height_px": 384,
        "width_px": 640,
        "frame_count": 4,
        "peak_mib": 1234,
        "is_out_of_memory": False,
        "measured_at": NOW,
    }
    return MemoryRecord(**(fields | changes))


@pytest.mark.usefixtures("_alone")
def test_needs_of_another_model_are_not_shown(tmp_path: Path):
    MemoryRecords(DataDirectory(tmp_path / "data").memory_records.path).add([record()])
    assert diagnosed(tmp_path).measured == ()


def shown(found: Diagnosis, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> str:
    console = Console(width=width, highlight=False, record=True, file=StringIO())
    monkeypatch.setattr(doctor, "console", console)
    show(found, problems(found))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_shown_and_nothing_is_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
):
    processes = tuple(GpuProcess(pid, 2000) for pid in (HERE, STRANGER, ELSEWHERE))
    full: dict[str, Any] = {"total_mib": 143_771, "used_mib": 120_000, "free_mib": 123_771}
    use = DeviceUse("station", UUID, "card", 3, NOW, 9000, 8000, 1234, 1111, 77)
    text = shown(
        diagnosis(
            reading=reading(NvmlState.OK, "", card(processes=processes, **full), card(OTHER_UUID)),
            holders=(holder(), holder(ELSEWHERE, 1)),
            instance=instance(pool=pool(claims=(PoolClaim("gone", "step", is_over=True),))),
            measured=(record(), record(frame_count=64, is_out_of_memory=True)),
            uses=(use,),
        ),
        monkeypatch,
        width,
    )
    assert max(len(line) for line in text.splitlines()) <= width
    lines = {" ".join(line.split()) for line in text.splitlines()}
    # Whole on one line, to be copied from there; elsewhere as short as tells them apart.
    assert any(UUID in line for line in lines)
    assert "│ GPU-8932f937-d │ 23552 │ 0 │ 11 │" in lines
    assert any(
        line.startswith("│ GPU-8932f937-d │ 4711 │ 2000 │ OCR worker, slot 0") for line in lines
    )
    for words in (
        "not seen here",
        "python train.py",
        "did not fit",
        "1234 / 1111",
        "77 │",
        "is over",
    ):
        assert words in text


def test_what_is_not_known_is_not_shown_as_none(monkeypatch: pytest.MonkeyPatch):
    unanswered = {Question.SLOTS: "kept locked", Question.INSTANCE: "no such table"}
    text = shown(diagnosis(unanswered=unanswered, instance=None, plan=None), monkeypatch)
    assert text.count("not known, see below") == 2
    assert "there is none, see below" in text


def test_the_doctor_imports_nothing_heavy():
    script = (
        "import sys, ocr_assets.doctor as d;"
        " from ocr_assets.settings import load_settings as s;"
        " d.diagnose(s(data_dir='none'));"
        " print(*sorted({'torch', 'easyocr', 'onnxruntime', 'decord'} & sys.modules.keys()))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.usefixtures("_alone")
def test_the_exit_code_is_that_of_the_worst_problem(tmp_path: Path):
    command = ["doctor", "--out", str(tmp_path / "data"), "--detector", "ppocr"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / "data").write_text("in the way")
    assert CliRunner().invoke(app, command).exit_code == 1


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("home", "arguments", "words"),
    [
        ("", ["--detector", "x"], "'craft' or 'ppocr'"),
        ("/nowhere", [], "DAGSTER_HOME is /nowhere"),
        ("relative", [], "DAGSTER_HOME is relative"),
    ],
)
def test_wrong_settings_are_told_on_one_line(
    home: str, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
):
    Path("relative").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", home)
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert words in line
