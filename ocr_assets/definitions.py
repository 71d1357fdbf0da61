"""The code location: assets with their resources. Loading it touches no disk, GPU or model."""

import dagster as dg

from ocr_assets.assets import ALL_ASSETS
from ocr_assets.settings import Settings, load_settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource


def build_definitions(settings: Settings, *, keep_warm: bool = False) -> dg.Definitions:
    """Builds the code location for some settings.

    Args:
        settings: Everything a person may decide.
        keep_warm: Keep slot and detector between runs of this process.
    """
    policy = _backfill_policy(settings.shards_per_run)
    return dg.Definitions(
        assets=[asset.with_attributes(backfill_policy=policy) for asset in ALL_ASSETS],
        resources={
            "settings": settings,
            "data": DataDirectory(settings.data_dir),
            "gpu": build_gpu_resource(settings, keep_warm=keep_warm),
        },
    )


def _backfill_policy(shards_per_run: int | None) -> dg.BackfillPolicy:
    if shards_per_run is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=shards_per_run)


def build_gpu_resource(settings: Settings, *, keep_warm: bool = False) -> GpuResource:
    """Builds the GPU resource for some settings."""
    return GpuResource(
        detector=settings.detector,
        weights=str(settings.weights) if settings.weights else None,
        device=settings.device,
        max_slots=settings.max_slots,
        reserve_mib=settings.reserve_mib,
        keep_warm=keep_warm,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The code location for the settings of this environment."""
    return build_definitions(load_settings())
