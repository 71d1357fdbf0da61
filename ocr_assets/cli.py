"""The command line: `ocr-assets`. Each command here reads its arguments and calls one function."""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ocr_assets.assembling import CatalogMissingError
from ocr_assets.console import bar, console, stage_bars, table, tell_error
from ocr_assets.curation.manifest import ManifestError
from ocr_assets.curation.sampling import SamplerError
from ocr_assets.curation.selection import (
    Metric,
    RuleError,
    SeveralVideos,
    UnscoredPolicy,
    UnscoredSamplesError,
)
from ocr_assets.curation.sources import SourceError
from ocr_assets.doctor import diagnose, show
from ocr_assets.doctor_checks import Severity, problems
from ocr_assets.instance import DagsterHomeError, open_instance
from ocr_assets.pools import PausedError
from ocr_assets.pruning import PrunePlan, PruneRefusedError, carry_out, plan_prune
from ocr_assets.results import (
    NoResultsError,
    SampleRow,
    histogram,
    sample_rows,
    top_videos,
    yield_curve,
)
from ocr_assets.runner import InterruptedRunError, RunReport, run_pipeline
from ocr_assets.scoring import Scorer
from ocr_assets.settings import Settings, SettingsError, load_settings
from resources.data_directory import DataDirectory, DataDirectoryError
from resources.detectors import detector_spec
from resources.detectors.base import WeightsError
from resources.gpu import NoDeviceError
from resources.memory_records import MemoryRecordsError
from resources.score_store import SchemaVersionError, StoreBusyError

USER_ERRORS = (
    CatalogMissingError,
    DagsterHomeError,
    DataDirectoryError,
    ManifestError,
    MemoryRecordsError,
    NoDeviceError,
    NoResultsError,
    PausedError,
    PruneRefusedError,
    RuleError,
    SamplerError,
    SchemaVersionError,
    SettingsError,
    SourceError,
    StoreBusyError,
    UnscoredSamplesError,
    WeightsError,
)
"""What a person can mend: told on one line, without a traceback."""

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Finds the videos with too much text on screen, and writes the dataset without them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Data directory. \\[default: data, or OCR_ASSETS_DATA_DIR]",
    ),
]


Sampler = Annotated[
    str | None,
    typer.Option(help="uniform(n), every(seconds) or keyframes. \\[default: uniform(3)]"),
]
Detector = Annotated[
    str | None, typer.Option(help="craft (EasyOCR) or ppocr (PP-OCR). \\[default: craft]")
]


@app.command()
def run(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Folder, glob (quoted), video file, .txt list of paths, or manifest (.jsonl or"
            " .parquet as Data-Juicer's, .csv). Several may be given.",
        ),
    ] = None,
    out: Out = None,
    max_ratio: Annotated[
        float | None, typer.Option(help="Keep videos up to this ratio. \\[default: 0.07]")
    ] = None,
    min_ratio: Annotated[
        float | None, typer.Option(help="Keep videos from this ratio on. \\[default: 0]")
    ] = None,
    metric: Annotated[
        Metric | None, typer.Option(help="What is compared. \\[default: text_area_ratio_mean]")
    ] = None,
    unscored: Annotated[
        UnscoredPolicy | None,
        typer.Option(help="What happens to samples that cannot be judged. \\[default: drop]"),
    ] = None,
    several_videos: Annotated[
        SeveralVideos | None,
        typer.Option(help="Keep samples when any, or all, of their videos pass. \\[default: any]"),
    ] = None,
    sampler: Sampler = None,
    detector: Detector = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu. \\[default: auto]")] = None,
    max_slots: Annotated[
        int | None, typer.Option(help="At most so many OCR processes. \\[default: what fits]")
    ] = None,
) -> None:
    """Scores the videos of SOURCE and writes the filtered dataset. Needs no daemon and no server.

    Run it again to go on where it stopped: what is scored is not scored again, a changed threshold
    costs seconds, and Ctrl-C loses at most the shards at work.

    Settings that are not given come from the environment (OCR_ASSETS_…), .env or ocr_assets.toml.

    Exit code: 0 done (unscored videos are in the table, with their reasons); 1 some shards failed;
    2 wrong input or settings; 130 stopped by Ctrl-C.
    """
    with _errors_on_one_line():
        settings = load_settings(
            source=tuple(source) if source else None,
            data_dir=out,
            max_ratio=max_ratio,
            min_ratio=min_ratio,
            metric=metric,
            unscored=unscored,
            several_videos=several_videos,
            sampler=sampler,
            detector=detector,
            device=device,
            max_slots=max_slots,
        )
        report = _run(settings)
        _show_summary(settings, report)
    raise typer.Exit(EXIT_FAILED if report.failures else 0)


@app.command()
def scores(
    out: Out = None,
    top: Annotated[int, typer.Option(min=1, help="How many videos to list.")] = 20,
    sampler: Sampler = None,
    detector: Detector = None,
) -> None:
    """Shows the videos with most text, the histogram of ratios, and the yield at each threshold."""
    with _errors_on_one_line():
        settings = load_settings(data_dir=out, sampler=sampler, detector=detector)
        data = DataDirectory(settings.data_dir)
        scorer_id = Scorer(settings.sampler, detector_spec(settings.detector)).scorer_id
        counts = histogram(data, scorer_id)
        most = max(count for _, count in counts)
        console.print(
            table(
                "Most text",
                ("video", "mean", "max", "frames with text", "sum of boxes", "frames"),
                (tuple(row.values()) for row in top_videos(data, scorer_id, top)),
            ),
            table(
                "Mean text-area ratio",
                ("interval", "videos", ""),
                ((name, count, bar(count / most)) for name, count in counts),
            ),
            table(
                "Yield: what each max_ratio would keep",
                ("max_ratio", "videos kept", "share", ""),
                (
                    (f"{edge:g}", kept, f"{share:.1%}", bar(share))
                    for edge, kept, share in yield_curve(data, scorer_id)
                ),
            ),
        )


@app.command()
def doctor(out: Out = None, detector: Detector = None) -> None:
    """Shows what the machine has, the plan, who holds which slot, the pool, and what looks wrong.

    Changes nothing. Exit code: 0 no error (there may be warnings); 1 something keeps OCR from
    running as set, or is broken; 2 wrong settings.
    """
    with _errors_on_one_line():
        diagnosis = diagnose(load_settings(data_dir=out, detector=detector))
    found = problems(diagnosis)
    show(diagnosis, found)
    has_error = any(problem.severity is Severity.ERROR for problem in found)
    raise typer.Exit(EXIT_FAILED if has_error else 0)


@app.command()
def prune(
    out: Out = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it. Without this, only show what would go.")
    ] = False,
    frames: Annotated[bool, typer.Option(help="Frames of shards that are scored.")] = True,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Also shards whose videos are all gone, with their scores."),
    ] = False,
    sampler: Sampler = None,
    detector: Detector = None,
) -> None:
    """Shows what is needed no more and how large it is; with --yes, removes it.

    Frames of scored shards are decoded again when another sampler or detector wants them. Scores of
    stale shards can be had again only if their videos come back, so they go only with --stale.

    Exit code: 0 done; 2 wrong input or settings, or a run is at work here.
    """
    with _errors_on_one_line():
        settings = load_settings(data_dir=out, sampler=sampler, detector=detector)
        data = DataDirectory(settings.data_dir)
        scorer_id = Scorer(settings.sampler, detector_spec(settings.detector)).scorer_id
        plan = plan_prune(data, scorer_id, with_frames=frames, with_stale=stale)
        _show_prune_plan(data, plan)
        if plan.is_empty:
            console.print("Nothing to remove.")
        elif yes:
            with open_instance(settings) as instance:
                carry_out(data, plan, instance)
            console.print("Removed.")
        else:
            console.print("Nothing was removed. The same command with --yes removes it.")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where the demo lies.")
    ] = Path("demo"),
) -> None:
    """Makes a small corpus of videos with known text, runs the pipeline on it, compares."""
    from ocr_assets.demo import demo_settings, prepare_corpus, show_comparison

    with _errors_on_one_line():
        settings = demo_settings(out)
        clips = prepare_corpus(out)
        report = _run(settings)
        is_as_intended = show_comparison(settings, clips)
        _show_places(settings)
        for work, why in report.failures.items():
            tell_error(f"{work}: {why}")
    raise typer.Exit(0 if is_as_intended and not report.failures else EXIT_FAILED)


def main() -> None:
    """Entry point: quiet about what other libraries say of themselves."""
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    app()


def _run(settings: Settings) -> RunReport:
    started = time.monotonic()
    with stage_bars() as bars:
        report = run_pipeline(settings, on_progress=bars.on_progress, on_plan=bars.on_plan)
    if not report.scored_shards:
        console.print("Nothing to compute: every shard has its scores.")
    console.print(f"Done in {time.monotonic() - started:.1f} s.", style="dim")
    return report


def _show_prune_plan(data: DataDirectory, plan: PrunePlan) -> None:
    for file in plan.files:
        size = f"{_mib(file.size_bytes):.2f} MiB"
        console.print(f"{file.path.relative_to(data.path)}  {size}", soft_wrap=True)
    for shard in plan.stale.shards:
        console.print(f"shard {shard} in catalog, partitions and DuckDB", soft_wrap=True)
    console.print(
        table(
            f"Needed no more in {data.path}",
            ("what", "files", "MiB", "to have it back"),
            (
                (group.title, len(group.files), f"{_mib(group.size_bytes):.2f}", group.way_back)
                for group in plan.groups
            ),
        )
    )


def _mib(size_bytes: int) -> float:
    return size_bytes / 2**20


LISTED_SAMPLES = 50
"""Longer tables are left to `ocr-assets scores` and to DuckDB."""


def _show_summary(settings: Settings, report: RunReport) -> None:
    rows = sample_rows(DataDirectory(settings.data_dir))
    if len(rows) <= LISTED_SAMPLES:
        console.print(
            table("Samples", ("video", settings.metric.value, "", "why"), map(_sample_cells, rows))
        )
    reasons: dict[str, int] = {}
    for row in rows:
        if not row.is_kept:
            reasons[str(row.reason)] = reasons.get(str(row.reason), 0) + 1
    kept = sum(row.is_kept for row in rows)
    console.print(Text(f"{kept} of {len(rows)} samples kept", style="bold"))
    for reason, count in sorted(reasons.items()):
        console.print(f"  {count} dropped: {reason}")
    for work, why in report.failures.items():
        tell_error(f"{work}: {why}")
    _show_places(settings)


def _sample_cells(row: SampleRow) -> tuple[str, str, str, str | None]:
    values = ", ".join("-" if value is None else f"{value:.4f}" for value in row.metric_values)
    names = ", ".join(Path(path).name for path in row.video_paths)
    return names, values, "kept" if row.is_kept else "dropped", row.reason


def _show_places(settings: Settings) -> None:
    data = DataDirectory(settings.data_dir)
    console.print(f"Dataset   {data.dataset}", soft_wrap=True)
    console.print(f"Report    {data.dataset / 'report.html'}", soft_wrap=True)
    console.print(f"Scores    {data.score_store.path}", soft_wrap=True)
    home = os.environ.get("DAGSTER_HOME") or settings.dagster_home.absolute()
    console.print(
        f"In the UI DAGSTER_HOME={home} OCR_ASSETS_DATA_DIR={data.path} dagster dev",
        soft_wrap=True,
    )


@contextmanager
def _errors_on_one_line() -> Iterator[None]:
    try:
        yield
    except USER_ERRORS as error:
        tell_error(" ".join(str(error).split()))
        raise typer.Exit(EXIT_WRONG_INPUT) from None
    except InterruptedRunError:
        tell_error("stopped; run the same command again to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
