"""How many OCR workers run at once, by the way of launching, on a simulated card of 24 GiB.

Run by `python -m benchmarks.launch_modes`. The card is the tests' (`tests/simulated_card`): its
driver is scripted and its detectors compute nothing, so no GPU is needed; planner, leases, Dagster
and the commands are the product's. Shown beside what is planned is the most that was ever at work
at once, by the workers' own diaries and by the kernel's locks, and how many of the shards that were
asked for were scored.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

# The tests' factories, as pytest finds them.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from simulated_card.harness import (
    SimulatedCard,
    simulated_card,
)
from simulated_card.launch_modes import (
    SHARD_COUNT,
    SMALL_SHARDS,
    Measured,
    MeasuredBursts,
    Place,
    by_backfill,
    by_bursts,
    by_many_commands,
    by_one_command,
    by_two_instances,
    prepare,
    write_clips,
)

WAYS = ("run", "commands", "backfill", "instances", "bursts")

BURST_COUNT = 200

PLANNED_FOR_BURSTS = 2
"""Fewer than the eight processes, so that the limit binds."""


def main() -> None:
    """Measures every way of launching and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--strangers-mib", type=int, default=0, help="memory that another process uses, in MiB"
    )
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=WAYS, help="ways of launching to measure"
    )
    options = parser.parse_args()
    table = Table(title=f"{SHARD_COUNT} shards on a simulated card of 24 GiB")
    for column in (
        "launched by",
        "planned",
        "at once, by workers",
        "by locks",
        "shards scored",
        "seconds",
    ):
        table.add_column(column)
    with tempfile.TemporaryDirectory(prefix="launch-modes-") as folder:
        for row in _measure(Path(folder), options.strangers_mib, options.only):
            table.add_row(*row)
            print(*row, sep=" | ", flush=True)
    Console(width=110).print(table)


def _measure(folder: Path, strangers_mib: int, ways: Sequence[str]) -> Iterator[tuple[str, ...]]:
    with simulated_card(folder / "card-first") as card:
        source = write_clips(folder / "clips")
        prepared = prepare(card, Place(source, folder / "out", settings=SMALL_SHARDS))
    numbers = itertools.count()

    def copy() -> Place:
        return prepared.copy(folder / f"out-{next(numbers)}")

    launches: Mapping[str, Callable[[SimulatedCard], Measured]] = {
        "run": lambda card: by_one_command(card, copy()),
        "commands": lambda card: by_many_commands(card, copy()),
        # Twenty runs, which is more than the card carries.
        "backfill": lambda card: by_backfill(card, copy(), shards_per_run=2),
        "instances": lambda card: by_two_instances(card, (copy(), copy())),
    }
    for way, launch in launches.items():
        if way in ways:
            with simulated_card(folder / f"card-{way}", strangers_mib=strangers_mib) as card:
                yield _row(launch(card))
    if "bursts" in ways:
        left_mib = 1024 + 2048 * PLANNED_FOR_BURSTS
        with simulated_card(folder / "card-bursts", strangers_mib=24_576 - left_mib) as card:
            measured = by_bursts(card, folder / "bursts", burst_count=BURST_COUNT)
            yield from _burst_rows(measured)


def _row(measured: Measured) -> tuple[str, ...]:
    cells = (
        measured.planned,
        measured.overlap,
        measured.observed,
        measured.scored_count,
        f"{measured.seconds:.0f}",
    )
    return (measured.mode, *map(str, cells))


def _burst_rows(measured: MeasuredBursts) -> list[tuple[str, ...]]:
    count = len(measured.leased)
    return [
        (
            f"8 warm processes, {count} bursts",
            str(measured.limit),
            str(max(*measured.leased, measured.overlap)),
            str(measured.observed),
            "",
            f"{measured.seconds:.0f}",
        ),
        (
            f"bare pool, too many in {measured.overcommitted_count} of {count}",
            str(measured.limit),
            str(max(measured.claimed)),
            "",
            "",
            "",
        ),
    ]


if __name__ == "__main__":
    main()
