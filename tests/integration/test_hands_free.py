"""The sensors that see new videos through: nothing twice, no storm, one assembly at the end."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PRIORITY_TAG,
)
from making import encode_video, score_rows, segment_row

from ocr_assets.definitions import build_gpu_resource
from ocr_assets.hands_free import hands_free_sensors
from ocr_assets.instance import COMMAND_TAG, open_instance
from ocr_assets.pools import set_ocr_limit
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings, load_settings
from resources.catalog_store import FILES_SCHEMA, SEGMENTS_SCHEMA, VIDEOS_SCHEMA
from resources.data_directory import DataDirectory


class Corpus:
    """A data directory whose catalog holds shards, and an instance that watches it."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.data = DataDirectory(settings.data_dir)
        self.scorer_id = Scorer(settings.sampler, build_gpu_resource(settings).spec()).scorer_id
        self.cursor: str | None = None

    def discover(self, costs: Sequence[float]) -> list[str]:
        """Writes a catalog of so many shards, as a discovery does."""
        keys = [f"s{number:06}" for number in range(1, len(costs) + 1)]
        segments = [
            {
                "shard": key,
                "video_id": key,
                "segment_index": 0,
                "start_seconds": 0.0,
                "end_seconds": 1.0,
                "cost_megapixels": cost,
            }
            for key, cost in zip(keys, costs, strict=True)
        ]
        self.data.catalog.write(
            files=FILES_SCHEMA.empty_table(),
            videos=VIDEOS_SCHEMA.empty_table(),
            segments=pa.Table.from_pylist(segments, schema=SEGMENTS_SCHEMA),
            samples=[],
        )
        self.instance.add_dynamic_partitions("shards", keys)
        return keys

    def score(self, *keys: str) -> None:
        """Writes the score files of shards, as their runs do."""
        for key in keys:
            row = segment_row(key, shard=key, scorer_id=self.scorer_id)
            self.data.score_files.write(key, self.scorer_id, score_rows(row))

    def at_work(self, requests: Sequence[dg.RunRequest]) -> None:
        """Has requested runs start."""
        for request in requests:
            self.instance.add_run(
                dg.DagsterRun(
                    job_name=str(request.job_name),
                    status=dg.DagsterRunStatus.STARTING,
                    tags=dict(request.tags),
                )
            )

    def end_all(self) -> None:
        """Ends all runs; whether shards were scored is another matter."""
        for run in self.instance.get_runs():
            if not run.is_finished:
                self.instance.report_run_failed(run)

    def tick(self, name: str = "new_shards") -> dg.SensorResult | dg.SkipReason:
        """Evaluates a sensor as the daemon does."""
        gpu = build_gpu_resource(self.settings)
        [sensor] = [s for s in hands_free_sensors(self.settings, gpu) if s.name == name]
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        if isinstance(result, dg.SensorResult) and result.cursor is not None:
            self.cursor = result.cursor
        return result

    def requests(self, name: str = "new_shards") -> list[dg.RunRequest]:
        """What a tick requests."""
        result = self.tick(name)
        return list(result.run_requests or []) if isinstance(result, dg.SensorResult) else []


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Corpus]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    source = tmp_path / "videos"
    source.mkdir()
    settings = load_settings(data_dir=tmp_path / "data", source=(str(source),), device="cpu")
    with open_instance(settings) as instance:
        set_ocr_limit(instance, 2)
        yield Corpus(settings, instance)


def ranges(requests: Sequence[dg.RunRequest]) -> list[tuple[str, str]]:
    return [
        (
            request.tags[ASSET_PARTITION_RANGE_START_TAG],
            request.tags[ASSET_PARTITION_RANGE_END_TAG],
        )
        for request in requests
    ]


def test_before_any_discovery_nothing_is_requested(corpus: Corpus):
    assert isinstance(corpus.tick(), dg.SkipReason)


def test_a_thousand_new_shards_make_two_runs_per_slot_costliest_first(corpus: Corpus):
    corpus.discover([float(number % 100) for number in range(1000)])
    requests = corpus.requests()
    assert len(requests) == 2 * 2
    assert ranges(requests)[0] == ("s000100", "s000100")
    assert [request.tags[PRIORITY_TAG] for request in requests] == ["99"] * 4
    corpus.at_work(requests)
    assert corpus.requests() == []


def test_as_runs_end_others_follow_and_no_shard_is_asked_for_twice(corpus: Corpus):
    keys = corpus.discover([1.0] * 7)
    asked: list[str] = []
    while len(asked) < len(keys):
        requests = corpus.requests()
        assert requests
        first = [start for start, _ in ranges(requests)]
        asked += first
        corpus.at_work(requests)
        corpus.score(*first)
        corpus.end_all()
    assert sorted(asked) == keys


def test_shards_that_others_work_on_are_left_to_them(corpus: Corpus):
    corpus.discover([1.0, 2.0])
    by_hand = dg.RunRequest(job_name="__ASSET_JOB", tags={"dagster/partition": "s000002"})
    corpus.at_work([by_hand])
    assert ranges(corpus.requests()) == [("s000001", "s000001")]


def test_shards_that_are_no_partitions_yet_are_waited_for(corpus: Corpus):
    corpus.discover([1.0, 2.0])
    corpus.instance.delete_dynamic_partition("shards", "s000002")
    assert corpus.requests() == []
    corpus.instance.add_dynamic_partitions("shards", ["s000002"])
    assert len(corpus.requests()) == 2


def test_while_a_command_sees_to_all_shards_nothing_is_requested(corpus: Corpus):
    corpus.discover([1.0, 2.0])
    corpus.at_work([dg.RunRequest(job_name="__ASSET_JOB", tags={COMMAND_TAG: "run"})])
    assert corpus.requests() == []
    corpus.end_all()
    corpus.at_work([dg.RunRequest(job_name="curate", tags={})])
    assert corpus.requests() == []
    corpus.end_all()
    assert len(corpus.requests()) == 2


def test_the_dataset_is_assembled_once_when_all_shards_are_done(corpus: Corpus):
    keys = corpus.discover([1.0, 2.0])
    corpus.at_work(corpus.requests())
    corpus.score(keys[0])
    assert corpus.requests() == []
    corpus.score(keys[1])
    corpus.end_all()
    [first], [second] = corpus.requests(), corpus.requests()
    assert first.job_name == "assemble"
    # Dagster launches one run per key.
    assert first.run_key == second.run_key


def test_a_failed_shard_holds_nothing_up_and_is_tried_at_the_next_discovery(corpus: Corpus):
    keys = corpus.discover([1.0, 2.0])
    corpus.at_work(corpus.requests())
    corpus.score(keys[0])
    corpus.end_all()
    [request] = corpus.requests()
    assert request.job_name == "assemble"
    os.utime(corpus.data.catalog.files_path)
    assert ranges(corpus.requests()) == [(keys[1], keys[1])]


def test_new_scores_and_another_rule_ask_for_another_assembly(corpus: Corpus):
    keys = corpus.discover([1.0])
    corpus.score(*keys)
    [first] = corpus.requests()
    changed = corpus.settings.model_copy(update={"max_ratio": 0.5})
    [second] = Corpus(changed, corpus.instance).requests()
    assert first.run_key != second.run_key


def test_a_changed_source_is_discovered_once_it_stays_as_it_is(corpus: Corpus):
    source = Path(corpus.settings.source[0])
    encode_video(source / "a.mp4", frame_count=4)
    assert corpus.requests("changed_sources") == []
    assert len(corpus.requests("changed_sources")) == 1
    assert corpus.requests("changed_sources") == []
    encode_video(source / "b.mp4", frame_count=5)
    assert corpus.requests("changed_sources") == []
    assert len(corpus.requests("changed_sources")) == 1


def test_a_source_that_is_as_it_once_was_is_discovered_again(corpus: Corpus):
    source = Path(corpus.settings.source[0])
    encode_video(source / "a.mp4", frame_count=4)
    requests = [corpus.requests("changed_sources") for _ in range(2)]
    encode_video(source / "b.mp4", frame_count=5)
    requests += [corpus.requests("changed_sources") for _ in range(2)]
    (source / "b.mp4").unlink()
    requests += [corpus.requests("changed_sources") for _ in range(2)]
    assert [len(requested) for requested in requests] == [0, 1] * 3
    # Dagster launches a run key once and never again.
    assert all(request.run_key is None for requested in requests for request in requested)


def test_a_source_that_is_not_there_is_told_and_asked_for_again(corpus: Corpus):
    result = corpus.tick("changed_sources")
    assert isinstance(result, dg.SkipReason)
    assert "holds no video" in str(result.skip_message)
