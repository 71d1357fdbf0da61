"""Pools: how many steps of each kind Dagster lets run at once on this instance."""

import dagster as dg

OCR_POOL = "ocr_gpu"
DECODE_POOL = "decode"


def set_pool_limits(instance: dg.DagsterInstance, ocr_slot_count: int) -> None:
    """Sets how many steps of each pool may run at once.

    One step decodes at a time, with as many processes as there are cores.
    """
    for pool, limit in ((OCR_POOL, ocr_slot_count), (DECODE_POOL, 1)):
        instance.event_log_storage.set_concurrency_slots(pool, limit)
