"""A card that is simulated from both sides: what NVML says of it, and what computes on it.

    with simulated_card(tmp_path, strangers_mib=15_360) as card:
        card.script(seconds_per_frame=0.1)
        with card.observing() as observer:
            card.run(OCR_ASSETS, "run", source, "--out", out)
        assert observer.most() <= 4
        assert overlap(card.events()) <= 4

NVML is a library that the real pynvml loads (`fake_nvml`); the detector and the few calls that
would reach CUDA are replaced in subprocesses through `sitecustomize`. Planner, leases, Dagster and
the commands are the product's. Belongs here: factories and measuring. Nothing here asserts anything
about the product.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from uuid import uuid4

import psutil
from fake_nvml.build import FakeCard, build_fake_nvml, script_cards
from simulated_card.scripted_detector import LOG_VARIABLE, SCRIPT_VARIABLE

from resources.leases import SlotHolder, SlotLeases, default_lock_directory

HERE = Path(__file__).parent

OCR_ASSETS = str(Path(sys.executable).with_name("ocr-assets"))
DAGSTER = str(Path(sys.executable).with_name("dagster"))
DAGSTER_DAEMON = str(Path(sys.executable).with_name("dagster-daemon"))
DAGSTER_GRAPHQL = str(Path(sys.executable).with_name("dagster-graphql"))

TOTAL_MIB = 24_576
RESERVE_MIB = 1024
NEED_MIB = 2048
"""The product's defaults: what it leaves alone, and what one EasyOCR worker needs."""

FOREVER = 3600.0
"""Seconds per frame of a detector that waits until it is scripted otherwise."""

OBSERVER_SECONDS = 0.01

WAIT_SECONDS = 240.0
"""The machine may be slow; who waits for so long, waits in vain."""


@dataclass(frozen=True)
class Event:
    """A line of the diary that scripted detectors keep.

    Attributes:
        event: `bound` to a device, `detected`, `out_of_memory`, `device_failed` or `unloaded`; of
            the nursery's workers also `born` and `waits`.
        pid: Of the process.
        at: Seconds, of `time.monotonic()`, which all processes of a machine share.
        details: What else there is to it.
    """

    event: str
    pid: int
    at: float
    details: Mapping[str, Any]


class SimulatedCard:
    """One card, alone on its machine; made by `simulated_card`.

    Attributes:
        uuid: Its own, so that nothing else on this machine can mean it.
        folder: Where its scripts and diary lie, and where its commands are started.
        environ: What a process needs to find it.
    """

    def __init__(self, folder: Path, *, total_mib: int, strangers_mib: int) -> None:
        self.uuid = f"GPU-{uuid4()}"
        self.folder = folder
        self.total_mib = total_mib
        self._nvml = build_fake_nvml(folder)
        self._script = folder / "detector.json"
        self._log = folder / "detector.log"
        self._log.touch()
        self._outputs: list[Path] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        # A memory user that is no worker of ours has to be a living process.
        self._stranger = subprocess.Popen(["sleep", "86400"])
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {
            **self._nvml,
            "PYTHONPATH": os.pathsep.join(paths),
            SCRIPT_VARIABLE: str(self._script),
            LOG_VARIABLE: str(self._log),
        }
        self._scripted: dict[str, Any] = {}
        self.script()
        self.strangers_mib = strangers_mib
        self.show()

    @property
    def planned(self) -> int:
        """How many workers the card carries, by hand: floor((total - reserve - others) / need)."""
        return (self.total_mib - RESERVE_MIB - self.strangers_mib) // NEED_MIB

    def script(self, **changes: Any) -> None:
        """Changes what the detectors do from now on; see `scripted_detector.DEFAULTS`."""
        self._scripted |= changes
        _replace(self._script, json.dumps(self._scripted))

    def show(self, *, process_mib: Mapping[int, int] | None = None) -> None:
        """Changes what NVML says: memory of strangers, and of processes that are named."""
        named = {**(process_mib or {})}
        used_mib = self.strangers_mib + sum(named.values())
        processes = {self._stranger.pid: self.strangers_mib, **named}
        card = FakeCard(self.uuid, self.total_mib, used_mib=used_mib, processes=processes)
        script_cards(self._nvml, [card])

    def stranger_takes(self, strangers_mib: int) -> None:
        """Changes what somebody else uses."""
        self.strangers_mib = strangers_mib
        self.show()

    def start(self, *command: object, **environ: str) -> "subprocess.Popen[bytes]":
        """Starts a command that finds this card; what it prints is kept for `output`."""
        return self._start([str(part) for part in command], environ, subprocess.DEVNULL)

    def start_nursery(self, *command: object, **environ: str) -> "subprocess.Popen[bytes]":
        """As `start`, with a pipe to the process' standard input."""
        return self._start([str(part) for part in command], environ, subprocess.PIPE)

    def run(self, *command: object, **environ: str) -> None:
        """Runs a command to its end.

        Raises:
            RuntimeError: If it fails; with everything that was printed.
        """
        self.finish(self.start(*command, **environ))

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for a command.

        Raises:
            RuntimeError: If it failed; with everything that was printed.
        """
        code = process.wait(WAIT_SECONDS)
        if code != 0:
            raise RuntimeError(f"{process.args} ended with {code}:\n{self.output()}")

    def wait_for(
        self, fact: Callable[[], object], what: str, seconds: float = WAIT_SECONDS
    ) -> None:
        """Waits until something is so.

        Raises:
            TimeoutError: If it does not come true; with everything that was printed.
        """
        deadline = time.monotonic() + seconds
        while not fact():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}\n{self.output()}")
            time.sleep(0.05)

    def output(self) -> str:
        """What the commands printed so far."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}" for path in self._outputs
        )

    def events(self, *names: str) -> list[Event]:
        """The diary, in order of time; only events of these names if any are given."""
        events: list[Event] = []
        for line in self._log.read_text().splitlines():
            entry = json.loads(line)
            head = (entry.pop("event"), entry.pop("pid"), entry.pop("at"))
            events.append(Event(*head, entry))
        chosen = [event for event in events if not names or event.event in names]
        return sorted(chosen, key=lambda event: event.at)

    def holders(self) -> list[SlotHolder]:
        """Who holds a slot of this card now, as the kernel says."""
        return [holder for holder in _holders() if holder.device_uuid == self.uuid]

    @contextmanager
    def observing(self) -> Generator["LeaseObserver", None, None]:
        """Watches the slots of this card while the body runs."""
        observer = LeaseObserver([self.uuid])
        observer.start()
        try:
            yield observer
        finally:
            observer.stop()

    def close(self) -> None:
        """Ends every process that this card has seen, and removes its lock files."""
        self._stranger.kill()
        self._stranger.wait()
        while found := self._living():
            for process in found:
                process.kill()
            psutil.wait_procs(found, timeout=1)
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for path in default_lock_directory().glob(f"{quote(self.uuid, safe='')}.*.lock"):
            path.unlink()

    def _living(self) -> list[psutil.Process]:
        """Every process of this card; some have left for sessions or parents of their own."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(LOG_VARIABLE) == str(self._log)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _start(
        self, command: Sequence[str], environ: Mapping[str, str], stdin: int
    ) -> "subprocess.Popen[bytes]":
        path = self.folder / f"output{len(self._outputs)}.txt"
        self._outputs.append(path)
        with path.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**_clean_environ(), **self.environ, **environ},
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process


@contextmanager
def simulated_card(
    folder: Path, *, total_mib: int = TOTAL_MIB, strangers_mib: int = 0
) -> Generator[SimulatedCard, None, None]:
    """Simulates a card while the body runs; ends what runs on it afterwards.

    Args:
        folder: An empty folder, or one that is made.
        total_mib: The card's memory.
        strangers_mib: What another process uses of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = SimulatedCard(folder, total_mib=total_mib, strangers_mib=strangers_mib)
    try:
        yield card
    finally:
        card.close()


@dataclass
class LeaseObserver:
    """Asks the kernel every 10 ms who holds slots, and keeps the most that it ever saw.

    Attributes:
        uuids: Devices that count.
        sample_count: How often it asked.
    """

    uuids: Sequence[str]
    sample_count: int = 0
    _most: Counter[str] = field(default_factory=Counter)
    _now: Counter[str] = field(default_factory=Counter)
    _failure: BaseException | None = None

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lease observer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends watching.

        Raises:
            RuntimeError: If it ended by itself before, so that it saw nothing.
        """
        self._is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise RuntimeError("the observer failed") from self._failure

    def most(self, uuid: str | None = None) -> int:
        """The most slots held at once, of one device or on each of all."""
        return self._most[uuid] if uuid else max(self._most.values(), default=0)

    def held(self) -> int:
        """Slots held when it last looked, on all devices."""
        return self._now.total()

    def _watch(self) -> None:
        try:
            while not self._is_over.wait(OBSERVER_SECONDS):
                self._now = Counter(
                    holder.device_uuid for holder in _holders() if holder.device_uuid in self.uuids
                )
                self._most |= self._now
                self.sample_count += 1
        except BaseException as error:  # noqa: BLE001 (told by `stop`)
            self._failure = error


@dataclass(frozen=True)
class Interval:
    """From when to when one worker was on a device, as far as its diary tells.

    The end is the diary's `unloaded`, which comes before the slot is given back, or the last line
    of a process that was killed. So workers that overlap here did so in truth.
    """

    pid: int
    uuid: str
    slot: int
    start: float
    end: float


def intervals(events: Iterable[Event]) -> list[Interval]:
    """Every stay of a worker on a device."""
    by_pid: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_pid[event.pid].append(event)
    found: list[Interval] = []
    for pid, lines in by_pid.items():
        is_bound = False
        for line in lines:
            if line.event == "bound":
                uuid, slot = line.details["uuid"], line.details["slot"]
                found.append(Interval(pid, uuid, slot, line.at, line.at))
            elif is_bound:
                found[-1] = replace(found[-1], end=line.at)
            is_bound = line.event == "bound" or (is_bound and line.event != "unloaded")
    return found


def overlap(events: Iterable[Event]) -> int:
    """Most workers on one device at once."""
    return max(_most_at_once(intervals(events), lambda stay: stay.uuid).values(), default=0)


def overlap_of_a_slot(events: Iterable[Event]) -> int:
    """Most workers in one slot of one device at once: 1, if slots mean anything."""
    most = _most_at_once(intervals(events), lambda stay: (stay.uuid, stay.slot))
    return max(most.values(), default=0)


def _most_at_once(
    stays: Iterable[Interval], key: Callable[[Interval], object]
) -> Mapping[object, int]:
    steps: defaultdict[object, list[tuple[float, int]]] = defaultdict(list)
    for stay in stays:
        steps[key(stay)] += [(stay.start, -1), (stay.end, 1)]
    # At equal times a start comes first, so that a stay of one line counts too.
    return {
        key: max(itertools.accumulate(-step for _, step in sorted(of_key)))
        for key, of_key in steps.items()
    }


def write_line(process: "subprocess.Popen[bytes]", line: str) -> None:
    """Tells a process something on its standard input."""
    stdin: IO[bytes] | None = process.stdin
    assert stdin is not None
    stdin.write(f"{line}\n".encode())
    stdin.flush()


def _holders() -> Sequence[SlotHolder]:
    return SlotLeases(default_lock_directory(), {}, need_mib=1).holders()


def _clean_environ() -> dict[str, str]:
    """This process' environment without what would decide something in the product's."""
    decides = ("OCR_ASSETS_", "DAGSTER_", "CUDA_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(decides)}


def _replace(path: Path, text: str) -> None:
    # Renamed into place, so that no reader sees half of it.
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
