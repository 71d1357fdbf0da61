"""The executor of every run that Dagster launches: Dagster's own, with pools that can be relied on.

Belongs here: what has to happen before a run's first step claims a slot, and how it waits for one.
Does not belong here: what the limits are (`pools`) and which runs are dead (`instance`).
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import dagster as dg
from dagster._core.errors import raise_execution_interrupts
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor import in_process, multiprocess

from ocr_assets.instance import free_claims_of_dead_runs, process_tags
from ocr_assets.pools import DECODE_POOL, OCR_POOL, ensure_decode_limit, follow_plan
from resources.gpu import GpuResource

PAUSE_SECONDS = 0.1
"""How long a run that waits for a slot sleeps at a time: what Ctrl-C may take, at the least."""

CLAIM_SECONDS = 2.0
"""How long a slot that came free may stay unnoticed. Dagster's own waits grow to 15 s."""

LOOK_AFTER_SECONDS = 10.0
"""How often a run that waits makes sure that there still is something to wait for."""


def ocr_executor(gpu: GpuResource) -> dg.ExecutorDefinition:
    """Builds the executor for some devices, with the choices that Dagster's default one offers.

    Args:
        gpu: Plans the slots of the OCR pool.
    """
    default = dg.multi_or_in_process_executor

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        create_default = default.executor_creation_fn
        assert create_default is not None
        return OcrExecutor(create_default(context), gpu)

    return dg.ExecutorDefinition(
        name=default.name,
        description="Dagster's default executor, with the OCR pool limited to what memory carries.",
        config_schema=default.config_schema,  # pyright: ignore[reportArgumentType] (is taken as it is)
        requirements=default.get_requirements,
        executor_creation_fn=create,
    )


class OcrExecutor(dg.Executor):
    """Sets the limits before the first step claims a slot, and waits for one politely.

    Args:
        executor: Dagster's, which does all the rest.
        gpu: Plans the slots of the OCR pool.
    """

    def __init__(self, executor: dg.Executor, gpu: GpuResource) -> None:
        self._executor = executor
        self._gpu = gpu

    @property
    def retries(self) -> RetryMode:
        """As the configuration of the run says."""
        return self._executor.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        """As the configuration of the run says."""
        return self._executor.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """Executes the steps of a run.

        Yields:
            The run's events.
        """
        instance = plan_context.instance
        # Of this process and of no other: whoever waits for this run's slot must be able to tell
        # whether it died.
        instance.add_run_tags(plan_context.run_id, process_tags())
        pools = {step.pool for step in execution_plan.get_steps_to_execute_in_topo_order()}

        def look_after() -> str | None:
            free_claims_of_dead_runs(instance)
            return follow_plan(instance, self._gpu) if OCR_POOL in pools else None

        words = look_after()
        if words is not None:
            yield dg.DagsterEvent.engine_event(plan_context, words, EngineEventData())
        if DECODE_POOL in pools:
            ensure_decode_limit(instance)
        with polite_waiting(look_after):
            yield from self._executor.execute(plan_context, execution_plan)


class PoliteConcurrencyContext(InstanceConcurrencyContext):
    """Claims slots for a run's steps; sleeps, looks around and keeps awake where it must wait.

    Dagster 1.13.27 asks again without a pause, which takes a core; asks every 15 s in the end; and
    in one of about 600 contended claims on SQLite a waiter registers just after the slot was freed,
    so that nobody ever wakes it.

    Args:
        look_after: Is called now and then while a step waits.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        dagster_run: dg.DagsterRun,
        *,
        look_after: Callable[[], object],
    ) -> None:
        super().__init__(instance, dagster_run)
        self._look_after = look_after
        self._next_look = time.monotonic() + LOOK_AFTER_SECONDS

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Tries to claim a slot for a step; where there is none, returns after a moment."""
        if super().claim(concurrency_key, step_key, step_priority):
            return True
        self._pending_timeouts[step_key] = min(
            self._pending_timeouts[step_key], time.time() + CLAIM_SECONDS
        )
        if time.monotonic() > self._next_look:
            self._look_after()
            self._register_again_if_forgotten(concurrency_key, step_key)
            self._next_look = time.monotonic() + LOOK_AFTER_SECONDS
        self._pause()
        return False

    def _register_again_if_forgotten(self, pool: str, step_key: str) -> None:
        """Gives up a place in the queue that nobody will call, so that the next claim gets one."""
        info = self._instance.event_log_storage.get_concurrency_info(pool)
        is_waiting = any(
            step.run_id == self._run_id and step.step_key == step_key
            for step in info.pending_steps
            if step.assigned_timestamp is None
        )
        if is_waiting and info.slot_count > info.assigned_step_count:
            self._instance.event_log_storage.free_concurrency_slot_for_step(self._run_id, step_key)
            self._pending_timeouts[step_key] = 0.0

    def _pause(self) -> None:
        # While other steps of the run work, polling each of them takes 0.02 s already, and their
        # events must not wait. Interrupts are looked for by the multiprocess executor's loop.
        if not multiprocessing.active_children():
            time.sleep(PAUSE_SECONDS)


class InterruptibleConcurrencyContext(PoliteConcurrencyContext):
    """For the in-process executor, whose loop never looks for interrupts."""

    def _pause(self) -> None:
        with raise_execution_interrupts():
            time.sleep(PAUSE_SECONDS)


CONTEXTS: dict[ModuleType, type[PoliteConcurrencyContext]] = {
    multiprocess: PoliteConcurrencyContext,
    in_process: InterruptibleConcurrencyContext,
}
"""Which class stands in for Dagster's in which executor's module."""

CONTEXT_NAME = "InstanceConcurrencyContext"


@contextmanager
def polite_waiting(look_after: Callable[[], object]) -> Iterator[None]:
    """Has Dagster's executors wait for slots with our classes while the body runs.

    Both executors make their context by this name of their module, and neither takes one as an
    argument, yields an event or calls anything of ours while it waits. The other way in would be to
    wrap the event log storage, whose claims are gated by the very context that does not sleep.

    Args:
        look_after: Is called every 10 s while a step waits.
    """
    originals = {module: getattr(module, CONTEXT_NAME) for module in CONTEXTS}
    for module, context in CONTEXTS.items():
        setattr(module, CONTEXT_NAME, partial(context, look_after=look_after))
    try:
        yield
    finally:
        for module, original in originals.items():
            setattr(module, CONTEXT_NAME, original)
