"""What a terminal shows: progress bars, tables, the summary, errors on one line."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ocr_assets.progress import ProgressEvent
from ocr_assets.runner import RunPlan

# A pipe has no width of its own; rich would fold its lines at 80 characters.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False)


def tell_error(message: str) -> None:
    """Prints one error, on one line however long, so that logs and scripts can read it."""
    errors.print(Text(f"error: {message}", style="red"), soft_wrap=True)


class _SpeedColumn(ProgressColumn):
    """Units per second, from the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        return Text("" if speed is None else f"{speed:.2f} {unit}/s", style="cyan")


class StageBars:
    """One bar per stage, fed with progress events."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._segments: Mapping[str, int] = {}
        self._done: dict[tuple[str, str], float] = {}

    def on_plan(self, plan: RunPlan) -> None:
        """Shows the bars for what is to be done."""
        for line in plan.devices.explanation.splitlines():
            self._progress.console.print(Text(line, style="dim"))
        if plan.limit.by_hand is not None:
            self._progress.console.print(Text(str(plan.limit), style="yellow"))
        if plan.revived:
            count = len(plan.revived)
            self._progress.console.print(f"{count} runs of killed processes marked as failed")
        self._segments = plan.segment_counts
        for stage, title, shards in (
            ("frames", "Decoding frames", plan.to_decode),
            ("ocr_scores", "Scoring text", plan.to_score),
        ):
            total = sum(plan.segment_counts[shard] for shard in shards)
            if total:
                self._tasks[stage] = self._add(title, total, "videos")

    def on_progress(self, event: ProgressEvent) -> None:
        """Moves a stage's bar."""
        if event.stage == "videos":
            if "videos" not in self._tasks:
                self._tasks["videos"] = self._add("Finding videos", event.total, "videos")
            self._progress.update(self._tasks["videos"], completed=event.done)
        elif event.stage in self._tasks:
            share = event.done / event.total if event.total else 1.0
            self._done[event.stage, event.shard] = share * self._segments[event.shard]
            done = sum(value for (stage, _), value in self._done.items() if stage == event.stage)
            self._progress.update(self._tasks[event.stage], completed=round(done, 1))

    def _add(self, title: str, total: int, unit: str) -> TaskID:
        return self._progress.add_task(title, total=total, unit=unit)


@contextmanager
def stage_bars() -> Iterator[StageBars]:
    """Shows progress bars while the body runs; plain lines where there is no terminal."""
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _SpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    ) as progress:
        yield StageBars(progress)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Makes a table; numbers are set flush right, None is a dash."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    rows = list(rows)
    for index, name in enumerate(columns):
        is_number = any(isinstance(row[index], int | float) for row in rows)
        drawn.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def facts(title: str, rows: Iterable[tuple[Any, Any]]) -> Table:
    """Makes a list of names and values."""
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        padding=(0, 1, 0, 1),
    )
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in rows:
        drawn.add_row(_cell(name), _cell(value))
    return drawn


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.4f}")
    style = {"kept": "green", "dropped": "yellow"}.get(str(value), "")
    return Text(str(value), style=style)


def bar(share: float, width: int = 40) -> str:
    """A bar of block characters for a share in [0, 1]."""
    return "█" * round(share * width)
