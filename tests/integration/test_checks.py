"""The asset checks on a real instance and real DuckDB: sound states pass, wrong ones are named."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from making import frame_row, missing_file_row, score_rows, segment_row, write_catalog
from scipy.stats import ks_2samp

from ocr_assets.assets import ALL_ASSETS
from ocr_assets.checks import ALL_CHECKS, CULPRIT_COUNT, distribution_distance
from ocr_assets.curation.manifest import samples_table
from ocr_assets.definitions import build_definitions
from ocr_assets.instance import open_instance
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings, load_settings
from resources.atomic_files import write_table
from resources.data_directory import DataDirectory
from resources.detectors import detector_spec

NAMES = [key.name for check in ALL_CHECKS for key in check.check_keys]

Ratio = float | None
"""Of a video's one frame; None: the frame has no score."""


class Corpus:
    """A data directory as a pipeline leaves it, made without a video or a detector."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.data = DataDirectory(settings.data_dir)
        self.shard_by_video: dict[str, str] = {}

    @property
    def scorer_id(self) -> str:
        spec = detector_spec(self.settings.detector)
        return Scorer(self.settings.sampler, spec).scorer_id

    def discover(
        self, shard: str, video_ids: Sequence[str], *, missing: Sequence[str] = ()
    ) -> None:
        """Adds videos to the catalog; `missing` are paths that a manifest names for nothing."""
        self.shard_by_video |= dict.fromkeys(video_ids, shard)
        catalog = self.data.catalog
        write_catalog(
            catalog,
            dict.fromkeys(self.shard_by_video, 1),
            file_rows=[missing_file_row(path) for path in missing],
        )
        segments = catalog.segments()
        shards = pa.array([self.shard_by_video[row["video_id"]] for row in segments.to_pylist()])
        paths = [[row["path"]] for row in catalog.files().to_pylist()]
        self.rewrite_catalog(
            segments=segments.set_column(0, segments.schema.field("shard"), shards),
            samples=[samples_table([{"videos": of_sample} for of_sample in paths], paths)],
        )

    def rewrite_catalog(self, **tables: Any) -> None:
        catalog = self.data.catalog
        kept = {
            "files": catalog.files(),
            "videos": catalog.videos(),
            "segments": catalog.segments(),
            "samples": list(catalog.samples()),
        }
        catalog.write(**{**kept, **tables})

    def score(self, shard: str, ratio_by_video: dict[str, Ratio]) -> None:
        rows = [
            segment_row(video_id, frames=[frame(ratio)], shard=shard, scorer_id=self.scorer_id)
            for video_id, ratio in ratio_by_video.items()
        ]
        self.data.score_files.write(shard, self.scorer_id, score_rows(*rows))

    def add(self, shard: str, ratios: Sequence[Ratio]) -> None:
        """A shard of videos with these ratios, from discovery to scores."""
        ratio_by_video = {f"{shard}v{index}": ratio for index, ratio in enumerate(ratios)}
        self.discover(shard, list(ratio_by_video))
        self.score(shard, ratio_by_video)

    def assemble(self) -> None:
        selection = dg.AssetSelection.assets("filtered_dataset").without_checks()
        assert self.materialize(selection).success

    def check_all(self) -> dict[str, dg.AssetCheckEvaluation]:
        """Runs every check, none of which may raise."""
        return self._check(dg.AssetSelection.all_asset_checks())

    def check(self, name: str) -> dg.AssetCheckEvaluation:
        """Runs one check, which may not raise."""
        asset = "videos" if name == "sources_are_there" else "filtered_dataset"
        key = dg.AssetCheckKey(dg.AssetKey(asset), name)
        return self._check(dg.AssetSelection.checks(key))[name]

    def failure(self, name: str) -> dg.AssetCheckEvaluation:
        """Runs one check, which must fail."""
        evaluation = self.check(name)
        assert not evaluation.passed
        return evaluation

    def _check(self, selection: dg.AssetSelection) -> dict[str, dg.AssetCheckEvaluation]:
        result = self.materialize(selection)
        assert result.success
        return {e.check_name: e for e in result.get_asset_check_evaluations()}

    def materialize(self, selection: dg.AssetSelection) -> dg.ExecuteInProcessResult:
        resources = build_definitions(self.settings).resources or {}
        return dg.materialize(
            [*ALL_ASSETS, *ALL_CHECKS],
            selection=selection,
            instance=self.instance,
            resources={**resources, "data": self.data},
        )


def frame(ratio: Ratio) -> dict[str, Any]:
    reason = "detection_failed" if ratio is None else None
    return frame_row(text_area_ratio=ratio, reason=reason)


def words(evaluation: dg.AssetCheckEvaluation) -> str:
    assert evaluation.description
    return evaluation.description


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Corpus]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = load_settings(data_dir=tmp_path / "data")
    with open_instance(settings) as instance:
        yield Corpus(settings, instance)


@pytest.fixture
def scored(corpus: Corpus) -> Corpus:
    """Two shards of 20 videos."""
    corpus.add("s000001", [0.01] * 20)
    corpus.add("s000002", [0.0] * 10 + [0.5] * 10)
    return corpus


@pytest.fixture
def sound(scored: Corpus) -> Corpus:
    """The same with its dataset."""
    scored.assemble()
    return scored


def change(change_rows: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    """Rewrites a Parquet file with its rows changed in place."""

    def rewrite(path: Path) -> None:
        table = pq.read_table(path)
        rows = table.to_pylist()
        change_rows(rows)
        write_table(path, pa.Table.from_pylist(rows, schema=table.schema))

    return rewrite


def test_a_sound_corpus_passes_every_check(sound: Corpus):
    found = sound.check_all()
    assert {name: evaluation.passed for name, evaluation in found.items()} == dict.fromkeys(
        NAMES, True
    )
    assert "40 videos discovered = 40 scored + 0 unscored" in words(
        found["every_video_is_accounted_for"]
    )


def test_checks_run_with_the_asset_that_they_are_about(sound: Corpus):
    result = sound.materialize(dg.AssetSelection.assets("filtered_dataset"))
    names = {evaluation.check_name for evaluation in result.get_asset_check_evaluations()}
    assert names == set(NAMES) - {"sources_are_there"}


def test_before_anything_has_run_every_check_says_what_to_materialize(corpus: Corpus):
    found = corpus.check_all()
    assert sorted(found) == sorted(NAMES)
    for evaluation in found.values():
        assert not evaluation.passed
        assert re.search(r"^not checked: .*; materialize `\w+` first$", words(evaluation))


def test_after_discovery_alone_everything_is_still_to_be_scored(corpus: Corpus):
    corpus.discover("s000001", ["a", "b"])
    found = corpus.check_all()
    assert found["sources_are_there"].passed
    assert found["every_video_is_accounted_for"].passed
    assert "2 unscored (of these, 2 not yet)" in words(found["every_video_is_accounted_for"])
    assert "materialize `ocr_scores` first" in words(found["ratios_are_possible"])
    assert "materialize `filtered_dataset` first" in words(found["dataset_follows_the_rule"])


def test_a_database_in_use_leaves_checks_undone_not_passed(sound: Corpus):
    sound.data.score_store.wait_seconds = 0.2
    with FileLock(sound.data.score_store.path.with_suffix(".lock")):
        found = sound.check_all()
    for name in ("every_video_is_accounted_for", "ratios_are_possible", "dataset_follows_the_rule"):
        assert not found[name].passed
        assert found[name].severity is dg.AssetCheckSeverity.WARN
        assert words(found[name]).startswith(f"not checked: {sound.data.score_store.path}")
    assert found["sources_are_there"].passed


def lose(corpus: Corpus, count: int, *, video_id: bool) -> None:
    """Marks the first files as missing, as discovery does for a folder, or for a manifest."""
    rows = corpus.data.catalog.files().to_pylist()
    for row in rows[:count]:
        row["state"] = "missing"
        if not video_id:
            row |= {"video_id": None, "reason": "file_missing"}
    schema = corpus.data.catalog.files().schema
    corpus.rewrite_catalog(files=pa.Table.from_pylist(rows, schema=schema))


@pytest.mark.parametrize("video_id", [True, False], ids=["of a folder", "of a manifest"])
def test_files_that_disappear_are_told_beyond_the_allowed_share(scored: Corpus, *, video_id: bool):
    lose(scored, 2, video_id=video_id)
    assert scored.check("sources_are_there").passed
    lose(scored, 3, video_id=video_id)
    failure = scored.failure("sources_are_there")
    assert "3 of 40 files that were there are missing (7.5%; max_missing_share is 5.0%)" in words(
        failure
    )
    assert "/videos/s000001v0.mp4" in words(failure)
    assert "bring them back" in words(failure)


def test_a_path_that_never_was_is_not_a_disappearance(scored: Corpus):
    scored.discover("s000002", [], missing=[f"/videos/never{index}.mp4" for index in range(20)])
    assert scored.check("sources_are_there").passed


def test_a_catalog_without_a_present_file_is_told(scored: Corpus):
    lose(scored, 40, video_id=True)
    failure = scored.failure("sources_are_there")
    assert failure.severity is dg.AssetCheckSeverity.ERROR
    assert "none of the 40 files" in words(failure)
    assert "mount or restore" in words(failure)


def test_a_video_without_its_segment_is_unaccounted_for(scored: Corpus):
    segments = scored.data.catalog.segments()
    lost = pc.field("video_id") == "s000001v7"
    scored.rewrite_catalog(segments=segments.filter(~lost))
    change(lambda rows: rows.pop(7))(scored.data.score_files.path("s000001"))
    failure = scored.failure("every_video_is_accounted_for")
    assert "1 of 40 discovered videos" in words(failure)
    assert "/videos/s000001v7.mp4" in words(failure)
    assert "restore both from one backup" in words(failure)


def test_a_segment_that_two_shards_scored_is_unaccounted_for(scored: Corpus):
    scored.score("s000003", {"s000001v7": 0.01})
    failure = scored.failure("every_video_is_accounted_for")
    assert "/videos/s000001v7.mp4" in words(failure)


def test_a_row_that_a_score_file_lost_is_to_be_scored_and_not_lost(sound: Corpus):
    change(lambda rows: rows.pop(7))(sound.data.score_files.path("s000001"))
    found = sound.check("every_video_is_accounted_for")
    assert found.passed
    assert "39 scored + 1 unscored (of these, 1 not yet)" in words(found)
    sound.failure("dataset_follows_the_rule")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text_area_ratio", 1.5),
        ("text_area_ratio", -0.1),
        ("text_area_ratio", float("nan")),
        ("text_area_ratio", None),
        ("box_area_ratio", -0.1),
        ("box_area_ratio", float("nan")),
        ("box_area_ratio", float("inf")),
    ],
)
def test_rejects_a_ratio_that_cannot_be(scored: Corpus, column: str, value: Ratio):
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[7]["frames"][0][column] = value

    change(spoil)(scored.data.score_files.path("s000001"))
    failure = scored.failure("ratios_are_possible")
    assert "1 of 40 scored frames" in words(failure)
    assert f"/videos/s000001v7.mp4 frame 0 (text_area_ratio {value}" in words(failure) or (
        column == "box_area_ratio" and f"box_area_ratio {value})" in words(failure)
    )
    assert "materialize `ocr_scores` of shard s000001" in words(failure)


def test_a_sum_of_boxes_above_1_is_possible(scored: Corpus):
    def overlap(rows: list[dict[str, Any]]) -> None:
        rows[7]["frames"][0]["box_area_ratio"] = 1.5

    change(overlap)(scored.data.score_files.path("s000001"))
    assert scored.check("ratios_are_possible").passed


def test_too_many_unscored_videos_are_told_by_reason(sound: Corpus):
    sound.add("s000003", [None, None])
    sound.assemble()
    assert sound.check("few_videos_are_unscored").passed
    sound.discover("s000003", [], missing=["/videos/never.mp4"])
    sound.assemble()
    failure = sound.failure("few_videos_are_unscored")
    assert failure.severity is dg.AssetCheckSeverity.WARN
    assert "3 of the dataset's 43 videos have no score (7.0%; max_unscored_share is 5.0%)" in words(
        failure
    )
    assert "2 detection_failed, 1 file_missing" in words(failure)
    assert "/videos/never.mp4 (file_missing)" in words(failure)


def test_a_few_new_videos_are_compared_with_nothing(corpus: Corpus):
    corpus.add("s000001", [0.01] * 40)
    corpus.assemble()
    corpus.add("s000002", [0.5] * 20)
    corpus.assemble()
    found = corpus.check("scores_have_not_shifted")
    assert found.passed
    assert words(found).startswith("nothing to compare: 40 videos were scored before")
    assert "20 since" in words(found)


def two_batches(corpus: Corpus, since: Sequence[Ratio]) -> None:
    generator = np.random.default_rng(0)
    corpus.add("s000001", generator.uniform(0, 0.1, 400).tolist())
    corpus.assemble()
    corpus.add("s000002", since)
    corpus.assemble()


def test_new_videos_like_the_old_ones_have_not_shifted(corpus: Corpus):
    two_batches(corpus, np.random.default_rng(1).uniform(0, 0.1, 400).tolist())
    found = corpus.check("scores_have_not_shifted")
    assert found.passed
    assert found.metadata["videos_before"].value == found.metadata["videos_since"].value == 400


def test_new_videos_unlike_the_old_ones_have_shifted_however_often_one_looks(corpus: Corpus):
    two_batches(corpus, np.random.default_rng(1).uniform(0.05, 0.15, 400).tolist())
    failure = corpus.failure("scores_have_not_shifted")
    assert failure.severity is dg.AssetCheckSeverity.WARN
    # Half of one interval lies outside the other; chance moves two samples of 400 by 0.1 at most.
    assert failure.metadata["distance"].value == pytest.approx(0.5, abs=0.1)
    assert "shard s000002" in words(failure)
    corpus.settings = load_settings(**{**dict(corpus.settings), "max_ratio": 0.2})
    corpus.assemble()
    assert words(corpus.failure("scores_have_not_shifted")) == words(failure)


def test_the_allowed_shift_is_a_setting(corpus: Corpus):
    two_batches(corpus, np.random.default_rng(1).uniform(0.05, 0.15, 400).tolist())
    corpus.settings = load_settings(**{**dict(corpus.settings), "max_distribution_shift": 0.7})
    assert corpus.check("scores_have_not_shifted").passed


def test_chance_between_few_videos_is_no_shift(corpus: Corpus):
    corpus.settings = load_settings(**{**dict(corpus.settings), "max_distribution_shift": 0.0})
    two_batches(corpus, np.random.default_rng(1).uniform(0, 0.1, 30).tolist())
    found = corpus.check("scores_have_not_shifted")
    assert found.passed
    # 1.63 times the square root of 1/400 + 1/30.
    assert found.metadata["allowed_distance"].value == pytest.approx(0.3086, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_that_of_kolmogorov_and_smirnov(seed: int):
    generator = np.random.default_rng(seed)
    # Rounded, so that there are ties within each and between both.
    first, second = generator.random(50).round(1), (generator.random(80) ** 2).round(1)
    statistic, _probability = ks_2samp(first, second)
    assert distribution_distance(first, second) == pytest.approx(statistic, abs=1e-12)


def test_a_dataset_that_was_edited_is_told_sample_by_sample(sound: Corpus):
    kept = sound.data.dataset / "kept.parquet"

    def edit(rows: list[dict[str, Any]]) -> None:
        del rows[3]
        rows.append(rows[0])
        rows[1]["metric_values"] = [0.02]
        rows[2]["reason"] = "unscored"

    change(edit)(kept)
    failure = sound.failure("dataset_follows_the_rule")
    assert failure.severity is dg.AssetCheckSeverity.ERROR
    assert words(failure).startswith("4 differences")
    for culprit in (
        "/videos/s000001v1.mp4 is kept with 0.02, not kept with 0.01",
        "/videos/s000001v2.mp4 is kept with 0.01 (unscored), not kept with 0.01",
        "/videos/s000001v3.mp4 is there 0 times, not 1",
        "/videos/s000001v0.mp4 is there 2 times, not 1",
    ):
        assert culprit in words(failure)
    assert words(failure).endswith("materialize `filtered_dataset`")


def test_a_line_lost_from_the_jsonl_is_told(sound: Corpus):
    path = sound.data.dataset / "rejected.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "rejected.jsonl has 9 lines, not 10" in words(sound.failure("dataset_follows_the_rule"))


def test_a_dataset_of_another_rule_is_stale(sound: Corpus):
    sound.settings = load_settings(**{**dict(sound.settings), "max_ratio": 0.005})
    failure = sound.failure("dataset_follows_the_rule")
    assert "20 differences" in words(failure)
    assert "was made by the rule «0 <= text_area_ratio_mean <= 0.07" in words(failure)
    assert "the settings say «0 <= text_area_ratio_mean <= 0.005" in words(failure)
    assert len(re.findall(r"\.mp4 is ", words(failure))) == CULPRIT_COUNT
    sound.assemble()
    assert sound.check("dataset_follows_the_rule").passed


def test_a_dataset_older_than_its_scores_is_stale(sound: Corpus):
    sound.score("s000001", {f"s000001v{index}": 0.3 for index in range(20)})
    failure = sound.failure("dataset_follows_the_rule")
    assert "20 differences" in words(failure)
    assert "have changed since it was made" in words(failure)


def test_a_rule_that_gives_no_dataset_any_more_is_told(sound: Corpus):
    sound.settings = load_settings(**{**dict(sound.settings), "unscored": "fail"})
    assert sound.check("dataset_follows_the_rule").passed
    sound.discover("s000003", ["new"])
    failure = sound.failure("dataset_follows_the_rule")
    assert "unscored: fail" in words(failure)


@pytest.mark.parametrize("name", NAMES)
def test_every_check_stands_in_the_reference(name: str):
    reference = Path(__file__).parents[2] / "docs/reference.md"
    assert f"| `{name}` |" in reference.read_text(encoding="utf-8")
