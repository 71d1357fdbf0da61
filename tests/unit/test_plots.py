"""The picture of a partition's usage: a PNG of known size that says so much in few bytes."""

import base64
import io
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from making import NOW
from numpy.typing import NDArray
from PIL import Image

from ocr_assets.plots import HEIGHT_PX, WIDTH_PX, png_markdown, usage_plot
from resources.usage_sampler import UsageSample

MAX_PNG_BYTES = 60_000

LEGEND_HEIGHT_PX = 28

BLUE, ORANGE = (0x3D, 0x7F, 0xB5), (0xD1, 0x59, 0x0D)


def samples(
    count: int,
    *,
    interval_seconds: float = 0.5,
    total_mib: int = 24_564,
    process_mib: int | None = 3000,
    has_utilization: bool = True,
) -> list[UsageSample]:
    """A worker that fills up and then swings, on a device that is busy at random."""
    percents = np.random.default_rng(0).integers(0, 101, count)

    def every() -> Iterator[UsageSample]:
        for i in range(count):
            swing = int(200 * math.sin(i / 9))
            yield UsageSample(
                sampled_at=NOW + timedelta(seconds=i * interval_seconds),
                elapsed_seconds=i * interval_seconds,
                device_used_mib=4000 + swing,
                device_total_mib=total_mib,
                process_mib=None if process_mib is None else process_mib + swing,
                utilization_percent=int(percents[i]) if has_utilization else None,
            )

    return list(every())


def picture(png: bytes) -> Image.Image:
    assert len(png) < MAX_PNG_BYTES
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (WIDTH_PX, HEIGHT_PX))
    return image.convert("RGB")


def is_like(image: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Which pixels (H, W) are of a colour. The palette may shift it a little, of 256 levels."""
    apart = np.asarray(image).astype(np.int16) - np.array(colour, np.int16)
    return np.abs(apart).max(axis=2) < 24


@pytest.mark.parametrize("count", [1, 2, 600])
def test_any_number_of_samples_is_drawn(count: int):
    image = picture(usage_plot(samples(count)))
    assert is_like(image, BLUE).sum() > 10
    assert is_like(image, ORANGE).sum() > 10


def test_memory_that_jumps_from_sample_to_sample_takes_few_bytes_too():
    figures = np.random.default_rng(1).integers(0, 24_564, (600, 2))
    jumping = [
        replace(sample, device_used_mib=int(device_mib), process_mib=int(process_mib))
        for sample, (device_mib, process_mib) in zip(samples(600), figures, strict=True)
    ]
    picture(usage_plot(jumping))


def test_a_process_that_is_not_told_is_not_drawn():
    image = picture(usage_plot(samples(60, process_mib=None)))
    assert is_like(image, BLUE).sum() > 100
    assert is_like(image, ORANGE).sum() == 0


def test_a_device_that_tells_no_utilization_is_drawn():
    image = picture(usage_plot(samples(60, has_utilization=False)))
    assert is_like(image, BLUE).sum() > 100


@pytest.mark.parametrize("interval_seconds", [1e-5, 0.5, 60, 7200])
def test_partitions_of_any_length_are_drawn(interval_seconds: float):
    picture(usage_plot(samples(100, interval_seconds=interval_seconds)))


@pytest.mark.parametrize("total_mib", [4300, 143_771])
def test_full_and_empty_devices_are_drawn(total_mib: int):
    image = picture(usage_plot(samples(100, total_mib=total_mib)))
    rows = np.nonzero(is_like(image, BLUE)[LEGEND_HEIGHT_PX:].any(axis=1))[0]
    # The total of a large device does not press what is used to the bottom.
    assert rows.min() < HEIGHT_PX / 4


def test_rejects_a_picture_of_nothing():
    with pytest.raises(ValueError, match="at least one sample"):
        usage_plot([])


def test_markdown_carries_the_picture():
    png = usage_plot(samples(2))
    match = re.fullmatch(
        r"!\[memory of \\\[s000001\\\] now\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)",
        png_markdown(png, "memory of [s000001]\nnow"),
    )
    assert match
    assert base64.b64decode(match[1]) == png


def test_importing_the_module_loads_no_matplotlib():
    check = "import sys, ocr_assets.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_home_that_cannot_be_written_does_not_matter():
    script = """
from datetime import UTC, datetime
from ocr_assets.plots import usage_plot
from resources.usage_sampler import UsageSample
usage_plot([UsageSample(datetime.now(UTC), 0.0, 1, 2, None, None)])
"""
    # Nobody can make a directory there, not even root.
    home = {"HOME": "/proc/nowhere", "PATH": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=home, check=True)
