"""Which shards a daemon is to launch next: as many runs as the pool can use soon, costliest first.

Pure: no Dagster, no disk. A run takes neighbouring shards, since Dagster names several partitions
of one run by the first and the last of them.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

TARGET_RUN_SECONDS = 600.0
"""How long one run should take: starting one and loading a model costs about 10 s, so that is
under 2 % of it; and what a killed run loses stays bounded."""

FIRST_RUN_SHARDS = 1
"""Shards per run as long as nobody knows how long one takes."""

MAX_RUN_SHARDS = 50

RUNS_PER_SLOT = 2
"""One at work and one in the queue: a free slot never idles, and a thousand new shards make no
thousand runs."""


@dataclass(frozen=True)
class ShardRun:
    """A run to launch.

    Attributes:
        first: The first shard's key.
        last: The last shard's key.
        cost_megapixels: Of all its shards; its priority.
    """

    first: str
    last: str
    cost_megapixels: float


@dataclass(frozen=True)
class Asked:
    """What was requested before, so that nothing is requested twice.

    Attributes:
        stamp: Of the discovery and the scorer that it was requested for.
        shards: Requested and not scored yet: at work, or failed.
    """

    stamp: str = ""
    shards: frozenset[str] = field(default_factory=frozenset[str])

    @classmethod
    def from_json(cls, text: str | None) -> "Asked":
        """Reads what `to_json` wrote; nothing of None."""
        if not text:
            return cls()
        stored = json.loads(text)
        return cls(stored["stamp"], frozenset(stored["shards"]))

    def to_json(self) -> str:
        """As a sensor keeps it."""
        return json.dumps({"stamp": self.stamp, "shards": sorted(self.shards)})

    def of(self, stamp: str, pending: Collection[str]) -> "Asked":
        """What of it still counts: a new discovery or scorer asks for everything once more."""
        return Asked(stamp, self.shards & set(pending) if stamp == self.stamp else frozenset())


def shards_per_run(
    seconds_per_shard: Sequence[float], *, wanted_count: int, slot_count: int
) -> int:
    """How many shards a run should take, by the median of what they took lately.

    Args:
        seconds_per_shard: Of the last shards scored; none is fine.
        wanted_count: Shards that wait; fewer per run where slots would else go idle.
        slot_count: Runs that may be at work at once, at least 1.
    """
    if not seconds_per_shard:
        return FIRST_RUN_SHARDS
    median = sorted(seconds_per_shard)[len(seconds_per_shard) // 2]
    fair_count = math.ceil(wanted_count / slot_count)
    in_time_count = int(TARGET_RUN_SECONDS // max(median, 1e-3))
    return max(1, min(MAX_RUN_SHARDS, in_time_count, fair_count))


def next_runs(
    costs_megapixels: Mapping[str, float],
    *,
    wanted: Collection[str],
    run_count: int,
    shard_count_per_run: int,
) -> list[ShardRun]:
    """Cuts what is wanted into runs of neighbours and takes the costliest.

    Args:
        costs_megapixels: Of every shard there is, by key; keys sort in the order of partitions.
        wanted: Shards to launch; the others must not be touched.
        run_count: How many runs there is room for.
        shard_count_per_run: How many shards a run takes at most.
    """
    runs: list[list[str]] = []
    is_neighbour = False
    for key in sorted(costs_megapixels):
        if key not in wanted:
            is_neighbour = False
            continue
        if is_neighbour and len(runs[-1]) < shard_count_per_run:
            runs[-1].append(key)
        else:
            runs.append([key])
        is_neighbour = True
    cut = [ShardRun(keys[0], keys[-1], sum(costs_megapixels[key] for key in keys)) for keys in runs]
    return sorted(cut, key=lambda run: (-run.cost_megapixels, run.first))[: max(0, run_count)]
