"""The code location: assets with their resources. Loading it touches no disk, GPU or model."""

import dagster as dg

from ocr_assets.assets import ALL_ASSETS
from ocr_assets.checks import ALL_CHECKS
from ocr_assets.executor import ocr_executor
from ocr_assets.hands_free import hands_free_sensors
from ocr_assets.jobs import ALL_JOBS, discovery_schedule
from ocr_assets.sensors import ocr_pool_limit_sensor
from ocr_assets.settings import Settings, load_settings
from resources.data_directory import DataDirectory
from resources.gpu import GpuResource


def build_definitions(settings: Settings, *, keep_warm: bool = False) -> dg.Definitions:
    """Builds the code location for some settings.

    Args:
        settings: Everything a person may decide.
        keep_warm: Keep slot and detector between runs of this process, and claim no slot of a pool:
            such a process executes its runs itself, where Dagster's wait for a slot takes a core
            and cannot be interrupted. Its lease queues it.
    """
    gpu = build_gpu_resource(settings, keep_warm=keep_warm)
    policy = _backfill_policy(settings.shards_per_run)
    return dg.Definitions(
        assets=[
            (_without_pool(asset) if keep_warm else asset).with_attributes(backfill_policy=policy)
            for asset in ALL_ASSETS
        ],
        asset_checks=ALL_CHECKS,
        resources={
            "settings": settings,
            "data": DataDirectory(settings.data_dir),
            "gpu": gpu,
        },
        executor=ocr_executor(gpu),
        jobs=ALL_JOBS,
        schedules=[discovery_schedule(settings)],
        sensors=[ocr_pool_limit_sensor(gpu), *hands_free_sensors(settings, gpu)],
    )


def _without_pool(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    # A pool can be set only where an asset is defined, and these are defined when they are
    # imported; so a copy of its op is made, and the one field of the copy is emptied.
    op = asset.op.with_replaced_properties(name=asset.op.name)
    op._pool = None  # noqa: SLF001
    attributes = {**asset.get_attributes_dict(), "node_def": op}
    # Given, it warns of being in beta; not given, it is what it was.
    del attributes["execution_type"]
    return dg.AssetsDefinition(**attributes)


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
        reserve_share=settings.reserve_share,
        batch_megapixels=settings.batch_megapixels,
        data_dir=str(settings.data_dir.absolute()),
        keep_warm=keep_warm,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The code location for the settings of this environment."""
    return build_definitions(load_settings())
