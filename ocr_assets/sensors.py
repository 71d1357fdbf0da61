"""Sensors: what a running daemon keeps an eye on."""

import dagster as dg

from ocr_assets.instance import free_claims_of_dead_runs
from ocr_assets.pools import follow_plan
from resources.gpu import GpuResource

INTERVAL_SECONDS = 30
"""How long a new card, or memory that a stranger took, stays unnoticed while no run starts."""


def ocr_pool_limit_sensor(gpu: GpuResource) -> dg.SensorDefinition:
    """Builds the sensor that keeps the OCR pool's limit at what memory carries now.

    Args:
        gpu: Plans the slots of the OCR pool.
    """

    @dg.sensor(
        name="ocr_pool_limit",
        description="Keeps the limit of the OCR pool at what memory carries now, and frees what"
        " dead runs claim. Starts no run.",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def ocr_pool_limit(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        freed = free_claims_of_dead_runs(context.instance)
        words = follow_plan(context.instance, gpu)
        return dg.SkipReason(f"{words}\nfreed claims of {len(freed)} dead runs" if freed else words)

    return ocr_pool_limit
