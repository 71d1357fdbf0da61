"""The ways in which OCR work is launched, each run on a simulated card and measured.

Belongs here: launching, and what was measured of it. What it has to be is said by the tests and
shown by the benchmark, which share this.

Detectors stand still until every slot that the plan has is taken and the others have come to the
door; only then they are let go. So it does not hang on a machine's speed whether a limit binds.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import dagster as dg
import numpy as np
from making import encode_video
from simulated_card.harness import (
    DAGSTER,
    DAGSTER_DAEMON,
    DAGSTER_GRAPHQL,
    FOREVER,
    HERE,
    OCR_ASSETS,
    WAIT_SECONDS,
    LeaseObserver,
    SimulatedCard,
    overlap,
    overlap_of_a_slot,
)

from ocr_assets.instance import open_instance
from ocr_assets.pools import read_ocr_limit
from ocr_assets.scoring import Scorer
from ocr_assets.settings import load_settings
from resources.data_directory import DataDirectory
from resources.detectors import detector_spec

SHARD_COUNT = 40
SIZE_PX = (160, 128)

SMALL_SHARDS = {"OCR_ASSETS_SHARD_TARGET_MEGAPIXELS": "0.1"}
"""Below the cost of one clip (3 frames x (0.02 + 0.02) megapixels), so each gets its own shard."""

DEFINITIONS = ("-m", "ocr_assets.definitions")

QUICK_SECONDS = 0.02
"""Per frame, once the detectors were let go."""

LINGER_SECONDS = 2.0
"""How long the full card stays full: time for one worker too many to come in."""

_LAUNCH_BACKFILL = """
mutation Backfill($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


@dataclass(frozen=True)
class Place:
    """A corpus, and a data directory in which its frames are ready to be scored.

    Attributes:
        source: Folder of the clips.
        out: The data directory, with its Dagster instance in it.
        sampler: As in the settings.
        settings: Further environment variables of the product.
    """

    source: Path
    out: Path
    sampler: str = "uniform(3)"
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def home(self) -> Path:
        """Of the Dagster instance."""
        return self.out / "dagster"

    @property
    def data(self) -> DataDirectory:
        """What the pipeline wrote."""
        return DataDirectory(self.out)

    @property
    def environ(self) -> dict[str, str]:
        """What `ocr-assets` needs to work here."""
        return {
            **self.settings,
            "OCR_ASSETS_SAMPLER": self.sampler,
            "OCR_ASSETS_DATA_DIR": str(self.out),
            "OCR_ASSETS_SOURCE": str(self.source),
        }

    @property
    def dagster_environ(self) -> dict[str, str]:
        """What Dagster's own commands need to work here."""
        return {**self.environ, "DAGSTER_HOME": str(self.home)}

    def copy(self, out: Path, **settings: str) -> "Place":
        """The same, in another data directory with an instance of its own.

        Args:
            out: The data directory.
            settings: Environment variables that are to be others.
        """
        shutil.copytree(self.out, out)
        return replace(self, out=out, settings={**self.settings, **settings})

    def instance(self) -> dg.DagsterInstance:
        """The instance, to be used as a context manager."""
        return dg.DagsterInstance.from_config(str(self.home))

    @property
    def scorer_id(self) -> str:
        """What the scores are filed under."""
        return Scorer(self.sampler, detector_spec("craft")).scorer_id

    def scored_shards(self) -> list[str]:
        """Shards that lack nothing."""
        files = self.data.score_files
        return [
            path.stem for path in files.all_paths() if files.has_scores(path.stem, self.scorer_id)
        ]


@dataclass(frozen=True)
class Measured:
    """What was seen of one launch.

    Attributes:
        mode: The way of launching.
        planned: Workers that the card carries.
        limits: The limit of each instance's OCR pool in the end.
        overlap: Most workers on the device at once, by their own diaries.
        observed: Most slots held at once, as the kernel told the observer.
        slot_overlap: Most workers in one slot at once.
        scored_count: Shards that have all their scores.
        left_count: Slots still held, and claims and waiters left in the pool, in the end.
        seconds: From the launch to its end.
    """

    mode: str
    planned: int
    limits: tuple[int | None, ...]
    overlap: int
    observed: int
    slot_overlap: int
    scored_count: int
    left_count: int
    seconds: float


@dataclass(frozen=True)
class MeasuredBursts:
    """What was seen of processes that were released at once.

    Attributes:
        limit: Of the pool, and what the card carries.
        claimed: By burst, slots of the bare pool that were claimed at once.
        leased: By burst, workers that ran at once.
        overlap: Most workers on the device at once, by their own diaries.
        observed: Most slots held at once, as the kernel told the observer.
        left_count: Slots still held and claims left in the pool, in the end.
        seconds: All bursts together.
    """

    limit: int
    claimed: tuple[int, ...]
    leased: tuple[int, ...]
    overlap: int
    observed: int
    left_count: int
    seconds: float

    @property
    def overcommitted_count(self) -> int:
        """Bursts in which the bare pool let in more than its limit."""
        return sum(count > self.limit for count in self.claimed)


def write_clips(folder: Path, count: int = SHARD_COUNT) -> Path:
    """Clips of ten frames and different content, which is how many videos and shards there are."""
    folder.mkdir(parents=True)
    width_px, height_px = SIZE_PX
    for number in range(count):
        image = np.full((height_px, width_px, 3), 20 + 5 * number, np.uint8)
        encode_video(folder / f"clip{number:02}.mp4", size_px=SIZE_PX, images=[image] * 10)
    return folder


def prepare(card: SimulatedCard, place: Place) -> Place:
    """Discovers the clips and makes their frames, as a person does with Dagster's own commands."""
    with open_instance(load_settings(data_dir=place.out)):
        pass
    materialize = (DAGSTER, "asset", "materialize", *DEFINITIONS, "--select")
    card.run(*materialize, "videos", **place.dagster_environ)
    shards = shard_names(place)
    range_of_all = f"{shards[0]}...{shards[-1]}"
    card.run(*materialize, "frames", "--partition-range", range_of_all, **place.dagster_environ)
    return place


def shard_names(place: Place) -> list[str]:
    """Every shard that discovery made."""
    segments = place.data.catalog.segments().to_pylist()
    return sorted({segment["shard"] for segment in segments})


def by_one_command(card: SimulatedCard, place: Place) -> Measured:
    """`ocr-assets run`."""
    return _by_commands(card, "ocr-assets run", [place])


def by_two_instances(card: SimulatedCard, places: tuple[Place, Place]) -> Measured:
    """Two of `ocr-assets run`, each with a data directory and an instance of its own."""
    return _by_commands(card, "two instances", list(places))


def by_many_commands(card: SimulatedCard, place: Place, count: int = 12) -> Measured:
    """That many of `dagster asset materialize` at once, which share the shards."""
    shards = shard_names(place)
    materialize = (DAGSTER, "asset", "materialize", *DEFINITIONS, "--select", "ocr_scores")
    started = _hold(card)
    with card.observing() as observer:
        processes = [
            card.start(
                *materialize,
                "--partition-range",
                f"{part[0]}...{part[-1]}",
                **place.dagster_environ,
            )
            for part in (list(part) for part in np.array_split(np.array(shards), count))
        ]
        _let_go_when_full(card, observer, [place], step_count=count)
        for process in processes:
            card.finish(process)
    mode = f"{count} x dagster asset materialize"
    return _measured(mode, card, [place], observer, started)


def by_backfill(card: SimulatedCard, place: Place, shards_per_run: int = 4) -> Measured:
    """A backfill of all shards, launched by the UI's own mutation and run by the daemon."""
    shards = shard_names(place)
    environ = {**place.dagster_environ, "OCR_ASSETS_SHARDS_PER_RUN": str(shards_per_run)}
    parameters = {
        "assetSelection": [{"path": ["ocr_scores"]}],
        "partitionNames": shards,
    }
    started = _hold(card)
    with (
        card.observing() as observer,
        place.instance() as instance,
        tempfile.TemporaryDirectory(prefix="code-") as short,
    ):
        # A code server of its own, as `dagster dev` has it: the daemon replaces one that it started
        # itself every minute, and on a slow machine launching some runs takes longer than that.
        socket, workspace = Path(short) / "socket", Path(short) / "workspace.yaml"
        server = {"socket": str(socket), "location_name": "ocr_assets"}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
        card.start(DAGSTER, "api", "grpc", "--socket", socket, *DEFINITIONS, **environ)
        card.wait_for(socket.exists, "the code server listens")
        daemon = card.start(DAGSTER_DAEMON, "run", "-w", workspace, **environ)
        before = instance.get_runs_count()
        variables = json.dumps({"parameters": parameters})
        card.run(
            DAGSTER_GRAPHQL, "-w", workspace, "-t", _LAUNCH_BACKFILL, "-v", variables, **environ
        )
        run_count = -(-len(shards) // shards_per_run)
        card.wait_for(
            lambda: instance.get_runs_count() == before + run_count, "the backfill made its runs"
        )
        # The others' runs wait in the daemon's queue, which looks at the pool before it launches,
        # and at a limit of its own.
        queue = instance.get_concurrency_config().run_queue_config
        most = queue.max_concurrent_runs if queue else -1
        count = card.planned if most < 0 else min(card.planned, most)
        _let_go_when_full(card, observer, [place], step_count=count, full_count=count)
        card.wait_for(
            lambda: all(run.is_finished for run in instance.get_runs()), "every run ended"
        )
        card.wait_for(lambda: _left_in_pool(instance) == 0, "the pool is empty")
        daemon.terminate()
        daemon.wait(WAIT_SECONDS)
    return _measured("daemon, backfill", card, [place], observer, started)


def by_bursts(card: SimulatedCard, folder: Path, *, burst_count: int) -> MeasuredBursts:
    """Eight warm processes, released from a barrier again and again."""
    home, result = folder / "home", folder / "bursts.json"
    with open_instance(load_settings(data_dir=folder / "data")):
        shutil.copytree(folder / "data" / "dagster", home)
    process_count = 8
    with card.observing() as observer:
        card.run(
            sys.executable,
            HERE / "bursts.py",
            home,
            process_count,
            burst_count,
            card.planned,
            result,
        )
    told = json.loads(result.read_text())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        left = len(instance.event_log_storage.get_concurrency_run_ids())
    return MeasuredBursts(
        limit=card.planned,
        claimed=tuple(told["claimed"]),
        leased=tuple(told["leased"]),
        overlap=overlap(card.events()),
        observed=observer.most(),
        left_count=left + len(card.holders()),
        seconds=told["seconds"],
    )


def _by_commands(card: SimulatedCard, mode: str, places: list[Place]) -> Measured:
    started = _hold(card)
    with card.observing() as observer:
        processes = [card.start(OCR_ASSETS, "run", **place.environ) for place in places]
        _let_go_when_full(card, observer, places)
        for process in processes:
            card.finish(process)
    return _measured(mode, card, places, observer, started)


def _hold(card: SimulatedCard) -> float:
    card.script(seconds_per_frame=FOREVER)
    return time.monotonic()


def _let_go_when_full(
    card: SimulatedCard,
    observer: LeaseObserver,
    places: list[Place],
    *,
    step_count: int = 0,
    full_count: int | None = None,
) -> None:
    """Lets the detectors work once the card is full and so many steps are at the pool.

    Args:
        card: Whose detectors they are.
        observer: Of its slots.
        places: Whose pools count, each on its own.
        step_count: Claims and waiters together.
        full_count: Workers that can come; by default as many as are planned.
    """
    full_count = full_count or card.planned
    card.wait_for(lambda: observer.held() >= full_count, f"{full_count} slots are taken")
    for place in places:
        with place.instance() as instance:
            card.wait_for(
                lambda instance=instance: _left_in_pool(instance) >= step_count,
                f"{step_count} steps are at the pool",
            )
    time.sleep(LINGER_SECONDS)
    card.script(seconds_per_frame=QUICK_SECONDS)


def _left_in_pool(instance: dg.DagsterInstance) -> int:
    state = read_ocr_limit(instance)
    return len(state.claims) + len(state.waiting)


def _measured(
    mode: str,
    card: SimulatedCard,
    places: list[Place],
    observer: LeaseObserver,
    started: float,
) -> Measured:
    seconds = time.monotonic() - started
    limits: list[int | None] = []
    left_count = len(card.holders())
    for place in places:
        with place.instance() as instance:
            limits.append(read_ocr_limit(instance).limit)
            left_count += _left_in_pool(instance)
    return Measured(
        mode=mode,
        planned=card.planned,
        limits=tuple(limits),
        overlap=overlap(card.events()),
        observed=observer.most(),
        slot_overlap=overlap_of_a_slot(card.events()),
        scored_count=sum(len(place.scored_shards()) for place in places),
        left_count=left_count,
        seconds=seconds,
    )
