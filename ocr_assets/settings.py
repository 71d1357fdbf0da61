"""Settings: one typed object for everything a person may decide, from environment, .env or TOML.

Values come, first match wins, from: arguments of the command line, environment variables
(`OCR_ASSETS_…`), `.env`, `ocr_assets.toml` in the working directory, the defaults below.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ocr_assets.curation.sampling import parse_sampler
from ocr_assets.curation.selection import Metric, SelectionRule, SeveralVideos, UnscoredPolicy

ENV_PREFIX = "OCR_ASSETS_"
TOML_FILE = "ocr_assets.toml"


class SettingsError(Exception):
    """A setting that cannot be. The message names the key, the value and what is allowed."""


class Settings(BaseSettings):
    """Everything a person may decide. Unknown keys are refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        toml_file=TOML_FILE,
        extra="forbid",
        frozen=True,
    )

    source: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Where the videos are: folders, globs, video files, .txt lists of paths, or"
        " manifests (.jsonl, .parquet, .csv). In the environment: one path, or a JSON list.",
    )
    data_dir: Path = Field(
        default=Path("data"),
        description="Where everything the pipeline writes lies, the Dagster instance included.",
    )
    sampler: str = Field(
        default="uniform(3)",
        description="Which frames stand for a video: uniform(n) as Data-Juicer takes them,"
        " every(seconds), or keyframes.",
    )
    segment_seconds: float = Field(
        default=1800.0,
        ge=1.0,
        le=86_400.0,
        description="Longer videos are cut into segments of this length, scored on their own.",
    )
    shard_target_megapixels: float = Field(
        default=128.0,
        gt=0.0,
        le=1e6,
        description="Cost of one shard (one Dagster partition): sampled frames x megapixels.",
    )
    detector: Literal["craft", "ppocr"] = Field(
        default="craft",
        description="Text detector: craft (EasyOCR's, the reference) or ppocr (RapidOCR's"
        " bundled PP-OCR model, many times faster on a CPU).",
    )
    weights: Path | None = Field(
        default=None,
        description="The detector's weights: the file, or the folder that holds it. Unset: for"
        " craft the weights package, then EasyOCR's own folder; for ppocr RapidOCR's package.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="Where the detector runs. auto: CUDA where a usable card is, else the CPU.",
    )
    max_slots: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="At most so many OCR processes. Unset: as many as memory carries.",
    )
    reserve_mib: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="Memory per device that OCR never plans with, in MiB.",
    )
    reserve_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="The same as a share of the device's memory; the larger of the two counts.",
    )
    retry_wait_seconds: float = Field(
        default=30.0,
        ge=0.0,
        le=86_400.0,
        description="Before scoring is tried again where a device had no memory left; doubles with"
        " each of three retries.",
    )
    shards_per_run: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="A backfill's runs take so many shards each, and run side by side. Unset: one"
        " run takes them all, which `dagster asset materialize --partition-range` insists on.",
    )
    automation: bool = Field(
        default=False,
        description="Whether the schedule and the sensors of a running daemon are on from the"
        " start; else each is started with one click in the UI.",
    )
    schedule_cron: str = Field(
        default="0 * * * *",
        description="When the schedule looks for new videos, as a cron expression.",
    )
    batch_megapixels: float = Field(
        default=1.0,
        gt=0.0,
        le=1000.0,
        description="Pixels of network input that one forward pass takes, in units of 10^6; at"
        " least one frame, and fewer where a slot's memory carries fewer.",
    )
    decode_processes: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Processes that decode frames. Unset: the number of cores, at most 16.",
    )
    decode_timeout_seconds: float = Field(
        default=60.0,
        ge=1.0,
        le=86_400.0,
        description="Time that opening a video may take; a tenth of its length comes on top.",
    )
    metric: Metric = Field(
        default=Metric.TEXT_AREA_RATIO_MEAN,
        description="What the rule looks at, per video over its sampled frames.",
    )
    min_ratio: float = Field(
        default=0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="A video passes at or above this value of the metric.",
    )
    max_ratio: float = Field(
        default=0.07,
        ge=0.0,
        allow_inf_nan=False,
        description="A video passes at or below this value of the metric. Public pipelines state"
        " 0.02 to 0.07.",
    )
    several_videos: SeveralVideos = Field(
        default=SeveralVideos.ANY,
        description="A sample with several videos is kept when any, or when all of them pass.",
    )
    unscored: UnscoredPolicy = Field(
        default=UnscoredPolicy.DROP,
        description="What happens to samples that cannot be judged: drop, keep, or fail.",
    )
    max_missing_share: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="A check fails when more of the files that were there are missing.",
    )
    max_unscored_share: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="A check fails when more of the dataset's videos have no score.",
    )
    max_distribution_shift: float = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        description="A check fails when the metric of newly scored videos is farther from that of"
        " the earlier ones, as Kolmogorov-Smirnov distance, and by more than chance.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the TOML file behind the environment; .env may hold other programs' keys too."""
        if isinstance(dotenv_settings, DotEnvSettingsSource):
            dotenv_settings.env_vars = {
                key: value
                for key, value in dotenv_settings.env_vars.items()
                if key.upper().startswith(ENV_PREFIX)
            }
        return (
            init_settings,
            env_settings,
            dotenv_settings,
            TomlConfigSettingsSource(settings_cls),
        )

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(json.loads(value)) if value.lstrip().startswith("[") else (value,)
        return value

    @field_validator("schedule_cron")
    @classmethod
    def _valid_cron(cls, value: str) -> str:
        from dagster._utils.schedules import is_valid_cron_string

        if not is_valid_cron_string(value):
            raise ValueError("is no cron expression of five fields, such as '0 2 * * *'")
        return value

    @field_validator("sampler")
    @classmethod
    def _canonical_sampler(cls, value: str) -> str:
        return str(parse_sampler(value))

    @model_validator(mode="after")
    def _min_at_most_max(self) -> Self:
        _ = self.rule
        return self

    @property
    def rule(self) -> SelectionRule:
        """The selection rule that these settings spell out."""
        return SelectionRule(
            metric=self.metric,
            min_ratio=self.min_ratio,
            max_ratio=self.max_ratio,
            several_videos=self.several_videos,
            unscored=self.unscored,
        )

    @property
    def decode_process_count(self) -> int:
        """Processes that decode frames."""
        return self.decode_processes or min(os.cpu_count() or 1, 16)

    @property
    def dagster_home(self) -> Path:
        """Where the Dagster instance lies unless the user's DAGSTER_HOME says otherwise."""
        return self.data_dir / "dagster"


def load_settings(**overrides: Any) -> Settings:
    """Reads the settings; an override that is None counts as not given.

    Raises:
        SettingsError: If a value is not allowed or a key is unknown; one line that names it.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name.removeprefix(ENV_PREFIX).lower() not in Settings.model_fields
    )
    if unknown:
        raise SettingsError(f"environment variable {unknown[0]} is not known; {_known()}")
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_in_words(item) for item in error.errors())) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{TOML_FILE} is not TOML: {error}") from None


def _known() -> str:
    return f"the settings are: {', '.join(sorted(Settings.model_fields))}"


def _in_words(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return message
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"setting {key} is not known; {_known()}"
    return (
        f"setting {key} (environment variable {ENV_PREFIX}{key.upper()}): {message},"
        f" got {item['input']!r}"
    )
