"""Pools: how many steps of each kind Dagster lets run at once on this instance.

Belongs here: writing and reading the limits that Dagster enforces, and telling ours from a
person's. Does not belong here: what memory carries (`resources.vram`), who waits and how
(`executor`).
"""

import json
from dataclasses import asdict, dataclass

import dagster as dg
from dagster._core.storage.event_log.base import PoolLimit
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from filelock import FileLock

from ocr_assets.instance import is_over
from resources.gpu import GpuResource, NoDeviceError
from resources.leases import default_lock_directory

OCR_POOL = "ocr_gpu"
DECODE_POOL = "decode"

MAX_LIMIT = 1000
"""Dagster takes no higher limit (`dagster/_utils/concurrency.py`)."""

_MEMORY_KEY = f"ocr_assets/pool_limit/{OCR_POOL}"
"""Where the instance keeps what we wrote last, so that a person's limit can be told from ours."""

_LOCK_SECONDS = 30.0
"""Setting a limit takes milliseconds; whoever holds the lock for so long was stopped."""


class PausedError(Exception):
    """A person paused OCR. The message says how to lift that."""


@dataclass(frozen=True)
class OcrLimit:
    """How many OCR steps Dagster lets run at once, and why.

    Attributes:
        limit: What Dagster enforces.
        planned: Slots that memory carries.
        by_hand: What a person set in the UI; None: nothing.
    """

    limit: int
    planned: int
    by_hand: int | None

    def __str__(self) -> str:
        reason = f"plan: {self.planned}"
        if self.by_hand is not None and self.by_hand < self.planned:
            reason += f"; limited to {self.by_hand} by hand, delete the limit in the UI to lift it"
        elif self.by_hand is not None:
            reason += f"; {self.by_hand} set by hand, which caps what the plan may grow to"
        return f"pool {OCR_POOL}: {self.limit} ({reason})"


@dataclass(frozen=True)
class PoolClaim:
    """A step that holds a slot of a pool or waits for one.

    Attributes:
        run_id: Its run.
        step_key: Its step.
        is_over: Whether its run has ended or its process is gone, so that the claim is a leak.
    """

    run_id: str
    step_key: str
    is_over: bool


@dataclass(frozen=True)
class PoolState:
    """The OCR pool as it is.

    Attributes:
        limit: What Dagster enforces; None: the pool was not set yet.
        is_default: Whether that is the instance's default for pools that nobody set.
        by_hand: What a person set in the UI; None: nothing.
        claims: Who holds a slot.
        waiting: Who waits for one.
    """

    limit: int | None
    is_default: bool
    by_hand: int | None
    claims: tuple[PoolClaim, ...]
    waiting: tuple[PoolClaim, ...]


def follow_plan(instance: dg.DagsterInstance, gpu: GpuResource) -> str:
    """Plans the slots of this machine as it is now and has Dagster enforce them.

    Returns:
        Limit and plan in words.
    """
    try:
        plan = gpu.plan()
    except NoDeviceError as error:
        # One, not none: a step that waited for ever would never tell why; one that runs fails
        # with this very error.
        return f"{set_ocr_limit(instance, 1)}; no device: {error}"
    # One at the least, for the same reason.
    return f"{set_ocr_limit(instance, max(1, plan.slot_count))}; {plan.explanation}"


def set_ocr_limit(instance: dg.DagsterInstance, planned: int) -> OcrLimit:
    """Has Dagster enforce the planned number of OCR steps, or fewer where a person said so.

    A limit that is neither the instance's default nor what was written here last is a person's. It
    stays an upper bound until that person deletes it in the UI, even when the plan falls below it
    and rises again.

    Args:
        instance: Whose pool it is.
        planned: Slots that memory carries.

    Raises:
        filelock.Timeout: If another process has kept the pool's lock for 30 s.
    """
    with _lock(instance):
        pool = _pool_limit(instance, OCR_POOL)
        memory = _read_memory(instance)
        by_hand = _by_hand(pool, memory)
        limit = min(planned, MAX_LIMIT if by_hand is None else by_hand, MAX_LIMIT)
        if pool is None or pool.from_default or pool.limit != limit:
            # First that it will be ours: if this process dies in between, neither the old figure
            # nor the new one is taken for a person's.
            old = () if pool is None else (pool.limit,)
            _write_memory(instance, _Memory(ours=(*old, limit), by_hand=by_hand))
            instance.event_log_storage.set_concurrency_slots(OCR_POOL, limit)
        if memory != (settled := _Memory(ours=(limit,), by_hand=by_hand)):
            _write_memory(instance, settled)
    return OcrLimit(limit=limit, planned=planned, by_hand=by_hand)


def require_limit(instance: dg.DagsterInstance, planned: int) -> OcrLimit:
    """As `set_ocr_limit`, for work that does not queue at the pool and so must not be paused there.

    Raises:
        PausedError: If a person set the limit to 0.
    """
    limit = set_ocr_limit(instance, planned)
    if limit.limit == 0:
        raise PausedError(
            f"pool {OCR_POOL} was set to 0 by hand, so no OCR may run; raise or delete its limit in"
            " Dagster's UI (Deployment, Concurrency)"
        )
    return limit


def ensure_decode_limit(instance: dg.DagsterInstance) -> None:
    """Has one step decode at a time, with as many processes as there are cores.

    Raises:
        filelock.Timeout: As `set_ocr_limit`.
    """
    with _lock(instance):
        pool = _pool_limit(instance, DECODE_POOL)
        if pool is None or pool.from_default:
            instance.event_log_storage.set_concurrency_slots(DECODE_POOL, 1)


def read_ocr_limit(instance: dg.DagsterInstance) -> PoolState:
    """Reads the OCR pool and changes nothing."""
    pool = _pool_limit(instance, OCR_POOL)
    info = instance.event_log_storage.get_concurrency_info(OCR_POOL)
    holders = {(slot.run_id, slot.step_key) for slot in info.claimed_slots}
    queue = sorted(info.pending_steps, key=lambda step: step.enqueued_timestamp)
    return PoolState(
        limit=None if pool is None else pool.limit,
        is_default=pool is not None and pool.from_default,
        by_hand=_by_hand(pool, _read_memory(instance)),
        claims=tuple(
            PoolClaim(slot.run_id, slot.step_key, is_over(instance, slot.run_id))
            for slot in info.claimed_slots
        ),
        waiting=tuple(
            PoolClaim(step.run_id, step.step_key, is_over(instance, step.run_id))
            for step in queue
            if (step.run_id, step.step_key) not in holders
        ),
    )


@dataclass(frozen=True)
class _Memory:
    """What we know of the OCR pool's past.

    Attributes:
        ours: The limits that we wrote or were about to write.
        by_hand: The limit that a person had set by then.
    """

    ours: tuple[int, ...] = ()
    by_hand: int | None = None


def _by_hand(pool: PoolLimit | None, memory: _Memory) -> int | None:
    if pool is None or pool.from_default:
        # Never set, or deleted by a person, who thereby lifts what was set before.
        return None
    return memory.by_hand if pool.limit in memory.ours else pool.limit


def _pool_limit(instance: dg.DagsterInstance, name: str) -> PoolLimit | None:
    pools = instance.event_log_storage.get_pool_limits()
    return next((pool for pool in pools if pool.name == name), None)


def _read_memory(instance: dg.DagsterInstance) -> _Memory:
    values = instance.daemon_cursor_storage.get_cursor_values({_MEMORY_KEY})
    stored = json.loads(values.get(_MEMORY_KEY, "{}"))
    return _Memory(ours=tuple(stored.get("ours", ())), by_hand=stored.get("by_hand"))


def _write_memory(instance: dg.DagsterInstance, memory: _Memory) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_MEMORY_KEY: json.dumps(asdict(memory))})


def _lock(instance: dg.DagsterInstance) -> FileLock:
    """One writer at a time among the processes of this machine.

    Dagster's first write of a limit fails when two come at once, and one writer's half-done write
    could be taken for a person's by another.
    """
    # In the directory that is every user's, beside the slots.
    path = default_lock_directory().parent / f"ocr_assets-pools-{_storage_id(instance)}.lock"
    return FileLock(path, timeout=_LOCK_SECONDS, mode=0o666)


def _storage_id(instance: dg.DagsterInstance) -> str:
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        return type(storage).__name__
    # Asked twice: the first answer in an instance's life is made up, and two processes that ask at
    # once make up two. The second is what the database says, to both.
    storage.get_run_storage_id()
    return storage.get_run_storage_id()
