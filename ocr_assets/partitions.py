"""Partitions: one key per shard, added by discovery."""

import dagster as dg

SHARDS = dg.DynamicPartitionsDefinition(name="shards")


def add_missing_shards(instance: dg.DagsterInstance, shards: list[str]) -> None:
    """Makes every shard of the catalog a partition key; those that are one already stay."""
    known = set(instance.get_dynamic_partitions(str(SHARDS.name)))
    missing = [shard for shard in shards if shard not in known]
    if missing:
        instance.add_dynamic_partitions(str(SHARDS.name), missing)
