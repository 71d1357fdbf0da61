"""The UI in a real browser: Chromium, headless, against a real `dagster dev` and real clips.

With SCREENSHOTS=<folder> the pictures that the README shows are written there (`make screenshots`).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil
import pytest
import yaml
from making import encode_video
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocr_assets.demo_drawing import Background, Blobs, Clouds, Hills

if TYPE_CHECKING:
    # Installed by `make test-e2e` only.
    from playwright.sync_api import (  # pyright: ignore[reportMissingImports]
        Browser,
        Locator,
        Page,
    )

Answer = TypeVar("Answer")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

SIZE_PX = (640, 360)
SCREEN = {"width": 1280, "height": 800}
SHARDS_PER_RUN = 4

TITLES = (
    "",
    "a",
    "Day 3",
    "Spring sale",
    "Breaking news",
    "SUBSCRIBE NOW",
    "HALF PRICE",
    "THE END",
)
"""One clip each, the later the larger its text."""

CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

WITHOUT_FOLDER = """folder => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (text.data.includes(folder)) text.data = text.data.replaceAll(folder, "");
  }
}"""

START_SECONDS = 180
RUN_SECONDS = 300
UI_SECONDS = 60
"""A code location answers late while its first runs start on a machine with few cores."""


def frame(title: str, index: int) -> NDArray[np.uint8]:
    """A background without text, and the title in the lower third."""
    backgrounds: tuple[Background, ...] = (
        Hills((120, 170, 215), (215, 225, 230), (35, 75, 60), seed=index),
        Clouds((40, 80, 130), (190, 205, 220), seed=index),
        Blobs((30, 26, 48), (70, 40, 80), (220, 150, 90), seed=index),
    )
    picture = Image.fromarray(backgrounds[index % 3].paint(*SIZE_PX, 0.0))
    ImageDraw.Draw(picture).text(
        (SIZE_PX[0] // 2, 250),
        title,
        fill="white",
        font=ImageFont.load_default(20 + 10 * index),
        anchor="mm",
        stroke_width=2,
        stroke_fill="black",
    )
    return np.asarray(picture)


def write_clips(folder: Path) -> None:
    folder.mkdir()
    for index, title in enumerate(TITLES):
        images = [frame(title, index)] * 3
        encode_video(folder / f"clip_{index}.mp4", size_px=SIZE_PX, images=images)


def write_dagster_home(folder: Path) -> None:
    """The product's own dagster.yaml, with its storage in this folder."""
    folder.mkdir()
    config = yaml.safe_load(files("ocr_assets").joinpath("dagster.yaml").read_text())
    for key in ("storage", "local_artifact_storage", "compute_logs"):
        del config[key]
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))


def free_port() -> int:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        return unbound.getsockname()[1]


def wait_for(ask: Callable[[], Answer | None], what: str, seconds: float) -> Answer:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (answer := ask()) is not None:
            return answer
        time.sleep(1)
    raise AssertionError(f"waited {seconds:g} s for {what}")


@dataclass(frozen=True)
class DagsterDev:
    """A running `dagster dev` on a data directory of its own."""

    folder: Path
    url: str

    def ask(self, query: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=UI_SECONDS) as response:
            return json.load(response)["data"]

    @property
    def has_assets(self) -> bool:
        try:
            return len(self.ask("{assetNodes{id}}")["assetNodes"]) > 0
        except OSError:
            return False

    def run_statuses(self, asset: str) -> list[str]:
        answer = self.ask("{runsOrError{...on Runs{results{status assetSelection{path}}}}}")
        return [
            run["status"]
            for run in answer["runsOrError"]["results"]
            if {"path": [asset]} in (run["assetSelection"] or ())
        ]

    def backfill_statuses(self, asset: str) -> list[str]:
        answer = self.ask(
            "{partitionBackfillsOrError{...on PartitionBackfills"
            "{results{status assetSelection{path}}}}}"
        )
        return [
            backfill["status"]
            for backfill in answer["partitionBackfillsOrError"]["results"]
            if {"path": [asset]} in (backfill["assetSelection"] or ())
        ]

    def shards(self, asset: str) -> "Shards":
        answer = self.ask(
            f'{{assetNodeOrError(assetKey:{{path:["{asset}"]}})'
            "{...on AssetNode{partitionStats{numMaterialized numPartitions}}}}"
        )
        counts = answer["assetNodeOrError"]["partitionStats"]
        return Shards(counts["numMaterialized"], counts["numPartitions"])


@dataclass(frozen=True)
class Shards:
    """How many shards an asset has, and how many of them are materialized."""

    materialized: int
    total: int


@contextmanager
def dagster_dev(folder: Path) -> Iterator[DagsterDev]:
    write_clips(folder / "videos")
    write_dagster_home(folder / "dagster_home")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if "OCR_ASSETS" not in name},
        "DAGSTER_HOME": str(folder / "dagster_home"),
        # Relative, as in the repository: the report names these paths.
        "OCR_ASSETS_DATA_DIR": "data",
        "OCR_ASSETS_SOURCE": "videos",
        "OCR_ASSETS_DETECTOR": "ppocr",
        "OCR_ASSETS_DEVICE": "cpu",
        "OCR_ASSETS_SAMPLER": "uniform(1)",
        "OCR_ASSETS_SHARDS_PER_RUN": str(SHARDS_PER_RUN),
        "OCR_ASSETS_SHARD_TARGET_MEGAPIXELS": "0.45",
        "OCR_ASSETS_DECODE_PROCESSES": "1",
    }
    command = Path(sys.executable).with_name("dagster")
    with (folder / "dagster_dev.log").open("wb") as log:
        process = subprocess.Popen(
            [command, "dev", "-m", "ocr_assets.definitions", "-p", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            dev = DagsterDev(folder, f"http://127.0.0.1:{port}")
            wait_for(lambda: dev.has_assets or None, "dagster dev", START_SECONDS)
            yield dev
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, its session, and children that made sessions of their own."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(descendants, timeout=20)
    for left in alive:
        left.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, browser: "Browser") -> Iterator[DagsterDev]:
    del browser  # Asked for so that nothing is started where there is none.
    with dagster_dev(tmp_path_factory.mktemp("browser")) as running:
        yield running


def without_browser(reason: str) -> None:
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import (  # pyright: ignore[reportMissingImports]
            sync_playwright,
        )
    except ImportError:
        without_browser("Playwright is not installed; `make test-e2e` installs it")
        raise
    names = ("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(found).exists():
            without_browser(
                f"none of {', '.join(names)} is on the PATH; install one, or run"
                " `python -m playwright install chromium`"
            )
        chromium = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_OPTIONS))
        yield chromium
        chromium.close()


@contextmanager
def page_of(browser: "Browser", scheme: Any = "light", **options: Any) -> Iterator["Page"]:
    with browser.new_context(viewport=SCREEN, color_scheme=scheme, **options) as context:  # pyright: ignore[reportArgumentType]
        context.set_default_timeout(1000 * UI_SECONDS)
        yield context.new_page()


@dataclass
class Flow:
    """What a person clicks, once: each step is done by the first test that needs it."""

    dev: DagsterDev
    browser: "Browser"

    @cached_property
    def videos(self) -> None:
        """`videos`, materialized from its page."""
        self._materialize("videos")

    @cached_property
    def scores(self) -> None:
        """`frames`, then `ocr_scores`, each by a backfill over all shards."""
        _ = self.videos
        self._backfill("frames")
        self._backfill("ocr_scores")

    @cached_property
    def dataset(self) -> None:
        """`filtered_dataset`, materialized from its page."""
        _ = self.scores
        self._materialize("filtered_dataset")

    def _materialize(self, asset: str) -> None:
        with page_of(self.browser) as page:
            page.goto(f"{self.dev.url}/assets/{asset}?view=events")
            page.get_by_role("button", name="Materialize").first.click()
            self._wait(lambda: self.dev.run_statuses(asset), asset, {"SUCCESS"}, {"FAILURE"})

    def _backfill(self, asset: str) -> None:
        with page_of(self.browser) as page:
            page.goto(f"{self.dev.url}/assets/{asset}?view=partitions")
            page.get_by_role("button", name="Materialize").first.click()
            page.get_by_text("All", exact=True).first.click()
            page.get_by_text("Launch backfill").click()
            page.get_by_text("Created backfill").wait_for()
            self._wait(
                lambda: self.dev.backfill_statuses(asset),
                f"the backfill of {asset}",
                {"COMPLETED_SUCCESS"},
                {"FAILED", "COMPLETED_FAILED", "CANCELED"},
            )
            page.get_by_text(f"Materialized ({self.dev.shards(asset).total})").wait_for()

    def _wait(
        self, statuses: Callable[[], list[str]], what: str, good: set[str], bad: set[str]
    ) -> None:
        def ask() -> list[str] | None:
            found = set(statuses())
            return sorted(found) if found & (good | bad) else None

        assert wait_for(ask, what, RUN_SECONDS) == sorted(good)


@pytest.fixture(scope="module")
def flow(dev: DagsterDev, browser: "Browser") -> Flow:
    return Flow(dev, browser)


@contextmanager
def shown_picture(
    flow: Flow, asset: str, key: str, scheme: str = "light"
) -> Iterator[tuple["Page", "Locator"]]:
    """The dialog's picture of one metadata entry, on the asset's page."""
    with page_of(flow.browser, scheme) as page:
        page.goto(f"{flow.dev.url}/assets/{asset}?view=events")
        row = page.get_by_role("row").filter(has=page.get_by_text(key, exact=True))
        row.get_by_text("[Show Markdown]").click()
        picture = page.get_by_role("dialog").locator("img")
        picture.wait_for()
        yield page, picture


def save_screenshot(page: "Page", name: str, folder: Path, height_px: int) -> None:
    """Where SCREENSHOTS is set: writes what the page shows, paths without the test's folder."""
    if target := os.environ.get("SCREENSHOTS"):
        page.set_viewport_size({"width": SCREEN["width"], "height": height_px})
        page.evaluate(WITHOUT_FOLDER, f"{folder}/")
        Path(target).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(target) / name, animations="disabled")


def test_an_asset_is_materialized_from_its_page(flow: Flow):
    _ = flow.videos
    assert flow.dev.run_statuses("videos") == ["SUCCESS"]


def test_a_backfill_over_all_shards_finishes(flow: Flow):
    _ = flow.scores
    for asset in ("frames", "ocr_scores"):
        shards = flow.dev.shards(asset)
        assert shards.materialized == shards.total > SHARDS_PER_RUN


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("asset", "key"),
    [
        ("ocr_scores", "usage"),
        ("filtered_dataset", "histogram"),
        ("filtered_dataset", "yield_curve"),
        ("filtered_dataset", "clips"),
    ],
)
def test_the_pictures_render_in_both_themes(flow: Flow, asset: str, key: str, scheme: str):
    _ = flow.dataset
    with shown_picture(flow, asset, key, scheme) as (page, picture):
        wait_for(lambda: picture.evaluate("img => img.naturalWidth") or None, key, UI_SECONDS)
        if (key, scheme) == ("clips", "light"):
            save_screenshot(page, "asset.png", flow.dev.folder, 800)


def test_the_reports_slider_moves_the_counts_and_asks_nothing_of_the_network(flow: Flow):
    _ = flow.dataset
    report = flow.dev.folder / "data/dataset/report.html"
    with page_of(flow.browser, offline=True) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        save_screenshot(page, "report.png", flow.dev.folder, 1180)
        kept = page.locator("#kept")
        at_first = kept.inner_text()
        page.locator("#slider").focus()
        page.keyboard.press("Home")
        at_zero = kept.inner_text()
        page.keyboard.press("End")
        at_most = kept.inner_text()
        assert int(at_zero) < int(at_first) < int(at_most) == len(TITLES)
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
