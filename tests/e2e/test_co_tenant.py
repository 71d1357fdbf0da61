"""A stranger that eats memory while `ocr-assets run` is at work: slower, and nothing else."""

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from simulated_card.harness import FOREVER, OCR_ASSETS, SimulatedCard, overlap, simulated_card
from simulated_card.launch_modes import (
    SHARD_COUNT,
    SIZE_PX,
    SMALL_SHARDS,
    Place,
    prepare,
    shard_names,
    write_clips,
)

from ocr_assets.pools import read_ocr_limit

FRAMES_PER_SHARD = 3
ONE_FRAME_FITS = SIZE_PX[0] * SIZE_PX[1]

STRANGERS_MIB, MORE_MIB = 15_360, 19_456
PLANNED, FEWER = 4, 2


@pytest.fixture
def card(tmp_path: Path) -> Iterator[SimulatedCard]:
    with simulated_card(tmp_path / "card", strangers_mib=STRANGERS_MIB) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stranger_in_mid_run_leaves_fewer_workers_smaller_batches_and_every_score(
    card: SimulatedCard, tmp_path: Path
):
    source = write_clips(tmp_path / "clips")
    place = prepare(card, Place(source, tmp_path / "out", settings=SMALL_SHARDS))
    assert len(shard_names(place)) == SHARD_COUNT
    assert card.planned == PLANNED
    # Slow, so that the stranger comes while there is much to do.
    card.script(seconds_per_frame=0.7)
    with card.observing() as observer, place.instance() as instance:
        process = card.start(OCR_ASSETS, "run", **place.environ)
        card.wait_for(lambda: len(place.scored_shards()) >= PLANNED, "some shards are scored")
        assert observer.most() == PLANNED
        card.stranger_takes(MORE_MIB)
        assert card.planned == FEWER
        card.script(limit_px=ONE_FRAME_FITS)
        card.wait_for(lambda: card.events("out_of_memory"), "a batch did not fit")
        card.wait_for(lambda: observer.held() <= FEWER, "workers gave way")
        assert process.poll() is None, card.output()
        assert read_ocr_limit(instance).limit == FEWER
        # From here on nothing is finished, so that there is work left for those who come back.
        card.script(seconds_per_frame=FOREVER)
        time.sleep(1)
        assert observer.held() <= FEWER
        card.script(limit_px=None)
        card.stranger_takes(STRANGERS_MIB)
        card.wait_for(lambda: observer.held() == PLANNED, "the others come back")
        assert read_ocr_limit(instance).limit == PLANNED
        card.script(seconds_per_frame=0.02)
        card.finish(process)
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert failed == []
        keys = dg.AssetRecordsFilter(dg.AssetKey("ocr_scores"))
        records = instance.fetch_materializations(keys, limit=1000).records
    metadata = [record.asset_materialization for record in records]
    assert all(entry is not None for entry in metadata)
    values = [entry.metadata["out_of_memory_batches"].value for entry in metadata if entry]
    assert sum(int(str(value)) for value in values) > 0
    assert observer.most() == PLANNED
    assert overlap(card.events()) == PLANNED
    assert len(place.scored_shards()) == SHARD_COUNT
    [scored] = place.data.score_store.query(
        "SELECT count(*) AS n FROM frame_scores WHERE text_area_ratio IS NOT NULL"
    ).to_pylist()
    assert scored["n"] == SHARD_COUNT * FRAMES_PER_SHARD
    assert card.holders() == []
