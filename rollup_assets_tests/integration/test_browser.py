"""What a person sees: the real Dagster UI in a real browser, from the graph to a batch that failed.

``make screenshots`` runs this to renew the pictures in ``docs/images``.
"""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.integration.browser import PATIENCE, browser, chromium, screenshot_folder
from rollup_assets_tests.integration.servers import dagster

pytestmark = pytest.mark.daemon

GRAPH = "/locations/rollup_assets/asset-groups/metric_rollups/lineage"
LAUNCHPAD = "/locations/rollup_assets/jobs/batches/playground"
# The daemon looks after a backfill every 30 seconds, and this one needs three looks: stage, roll up and publish, end.
BACKFILL = 300_000
CLICKS = 6
RED_BAR = """() => [...document.querySelectorAll(".chart-element.box")].some(bar => {
  const [red, green, blue] = getComputedStyle(bar).backgroundColor.match(/\\d+/g).map(Number);
  return red > 2 * green && red > 2 * blue;
})"""
GOOD, EXISTING = 5, 8
"""Hours with good raw files, and hours that exist. The hour after the good ones has a file that is cut off."""

expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True)
class Landed:
    """A table whose landing zone is full and whose stage is empty."""

    settings: Settings
    environment: dict[str, str]
    good: list[Batch]
    bad: Batch


@dataclass(frozen=True)
class Screen:
    """A page of the UI."""

    page: Page
    url: str
    folder: Path

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def save(self, name: str) -> None:
        """Keep what the page shows as a picture, small enough for a README."""
        file = self.folder / f"{name}.png"
        # Away from whatever shows a tooltip, which takes its time to go.
        self.page.mouse.move(0, 0)
        expect(self.page.get_by_text("Copy tag")).to_have_count(0)
        self.page.screenshot(path=file, animations="disabled")
        assert file.stat().st_size < 200_000, file

    def text(self, text: str | re.Pattern[str], *, exact: bool = False) -> Locator:
        """Where a text is shown, but for the hidden copies that Dagster measures widths with."""
        return self.page.get_by_text(text, exact=exact).locator("visible=true").first

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name).first

    def partition(self, batch: Batch) -> Locator:
        """A partition in the list on the left of a page."""
        return self.page.locator(f'[data-tooltip="{batch.key}"]')

    def select(self, batch: Batch, shown: Locator) -> None:
        """Click on a partition and wait for its details; Dagster forgets a click that comes while it is loading others."""
        for _ in range(CLICKS):
            self.partition(batch).click()
            with suppress(AssertionError):
                expect(shown).to_be_visible(timeout=PATIENCE / CLICKS)
                return
        expect(shown).to_be_visible()

    def colour(self, batch: Batch) -> str:
        """The colour of the dot beside a partition."""
        dot = self.partition(batch).locator("xpath=following-sibling::div").first
        expect(dot).to_be_visible()
        colour = dot.evaluate("dot => getComputedStyle(dot).backgroundColor")
        red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
        strongest = max(red, green, blue)
        return "grey" if strongest - min(red, green, blue) < strongest / 2 else {red: "red", green: "green", blue: "blue"}[strongest]

    def metadata(self, key: str) -> Locator:
        """The value in the row of a metadata table."""
        return self.page.get_by_role("row").filter(has=self.page.get_by_text(key, exact=True)).locator("td").nth(1)


@pytest.fixture
def landed() -> Iterator[Landed]:
    """The last hours, so that pictures show a table at work: partitions of long ago would be a speck in the UI's bars and charts."""
    # Pictures show where it lies, so it has a short name.
    with TemporaryDirectory(prefix="rollups-", ignore_cleanup_errors=True) as folder:
        yield land(Path(folder))


def land(home: Path) -> Landed:
    """Good hours, and one with a file that is cut off."""
    from rollup_assets.generator.landing import GeneratorOptions, generate

    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    start = f"{now - dt.timedelta(hours=EXISTING):%Y-%m-%d-%H:%M}"
    settings = load_settings(home=str(home), start=start, shards=4, threads=2, memory="256MiB")
    environment = {
        "ROLLUP_HOME": str(home),
        "ROLLUP_START": start,
        "ROLLUP_SHARDS": "4",
        "ROLLUP_THREADS": "2",
        "ROLLUP_MEMORY": "256MiB",
    }
    first = settings.calendar.first
    batches = [batch for ahead in range(GOOD + 1) if (batch := settings.calendar.shifted(first, ahead)) is not None]
    generate(settings, batches[:GOOD], GeneratorOptions(series=300, interval=30_000, files=3))
    generate(settings, batches[GOOD:], GeneratorOptions(series=300, interval=30_000, files=3, bad_files=1))
    return Landed(settings, environment, batches[:GOOD], batches[GOOD])


@pytest.fixture
def context(tmp_path: Path) -> Iterator[BrowserContext]:
    with browser(tmp_path / "profile") as context:
        yield context


@pytest.mark.usefixtures("_has_chromium")
def test_a_person_materializes_partitions_and_sees_counts_checks_and_why_a_batch_failed(
    landed: Landed, context: BrowserContext, tmp_path: Path
) -> None:
    """One path through the UI, since what it takes is the daemon's pace: select, launch, watch, look at what came out."""
    with dagster(landed.settings, landed.environment) as server:
        screen = Screen(context.pages[0], server.url, screenshot_folder(tmp_path / "screenshots"))
        try:
            launch(screen, landed)
            look_at_launchpad(Screen(context.new_page(), server.url, screen.folder), landed)
            wait_for_backfill(screen)
            look_at_partitions(screen, landed)
            look_at_checks(screen, landed)
            look_at_plots(screen)
            look_at_failed_batch(screen, landed)
            look_at_graph(screen)
        except BaseException:
            screen.page.screenshot(path=tmp_path / "failed.png")
            shutil.copy(server.logs, tmp_path)
            raise


@pytest.fixture
def _has_chromium() -> None:
    """Before anything is generated or started."""
    chromium()


def launch(screen: Screen, landed: Landed) -> None:
    """Select all assets and the hours that have raw files, and click."""
    screen.open(GRAPH)
    # There is more room for the graph without the menu, and the browser remembers it.
    screen.button("Hide navigation").click()
    for asset in ("raw_datapoints", "partial_points", QUARANTINED, REPARTITIONED, ROLLUPS, ROLLUP_TABLE):
        expect(screen.text(asset, exact=True)).to_be_visible()
    screen.page.get_by_role("button", name="Materialize all (5)").click()
    dialog = screen.page.get_by_role("dialog")
    partitions = dialog.get_by_placeholder("No matching partitions")
    partitions.fill(f"[{landed.good[0]}...{landed.bad}]")
    partitions.press("Enter")
    expect(dialog.get_by_text(f"{GOOD + 1} partitions", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Launch backfill").click()
    created = screen.text("Created backfill")
    expect(created).to_be_visible()
    created.locator("xpath=ancestor::*[contains(., 'View')][1]").get_by_text("View", exact=True).click()
    screen.page.wait_for_url("**/runs/b/*")


def look_at_launchpad(screen: Screen, landed: Landed) -> None:
    """``force`` is there to be set, for both steps; nothing has to be filled in but the partition."""
    screen.open(LAUNCHPAD)
    editor = screen.page.locator(".CodeMirror-code")
    expect(editor).to_contain_text("stage_datapoints:")
    expect(editor.get_by_text("force", exact=True)).to_have_count(2)
    expect(screen.text("No errors")).to_be_visible()
    screen.page.get_by_placeholder("Partition").fill(landed.good[1].key)
    # Without the mouse: the tag would come to lie below it, and its tooltip once stayed for a minute after the mouse had gone.
    offered = screen.page.get_by_role("menuitem").or_(screen.page.get_by_role("option"))
    offered.filter(has_text=landed.good[1].key).first.dispatch_event("click")
    expect(screen.button("Launch Run")).to_be_enabled()
    screen.save("launchpad")
    screen.page.close()


def wait_for_backfill(screen: Screen) -> None:
    """It ends red, since one of its batches did."""
    expect(screen.text("Failed", exact=True)).to_be_visible()
    status = screen.page.get_by_text("Status", exact=True).locator("xpath=../..")
    expect(status.get_by_text("Failed", exact=True)).to_be_visible(timeout=BACKFILL)


def look_at_partitions(screen: Screen, landed: Landed) -> None:
    """Finished hours are green and show how many rows the table has of each; the failing one took none of them with it."""
    screen.open(f"/assets/{ROLLUP_TABLE}?view=partitions")
    expect(screen.text(f"Materialized ({GOOD})")).to_be_visible()
    published = rows_by_batch(landed.settings)
    for batch in landed.good:
        assert screen.colour(batch) == "green", batch
        screen.select(batch, screen.metadata("dagster/partition_row_count").get_by_text(str(published[batch]), exact=True))
        expect(screen.text("Materialized", exact=True)).to_be_visible()
    assert screen.colour(landed.bad) == "grey"
    screen.save("partitions")


def look_at_checks(screen: Screen, landed: Landed) -> None:
    """Every check of every published hour passed, and says with which numbers."""
    for asset, checks in ((ROLLUP_TABLE, ["inputs_ready", "published_equals_staged"]), (ROLLUPS, ["deltas_reconcile", "counts_reconcile"])):
        for check in checks:
            screen.open(f"/assets/{asset}?view=checks&checkDetail={check}")
            # The first tab of that name is the asset's own.
            screen.page.get_by_role("tab", name="Partitions").nth(1).click()
            expect(screen.text(re.compile(rf"Passed\s*\({GOOD}\)"))).to_be_visible()
            for batch in landed.good:
                assert screen.colour(batch) == "green", (check, batch)
    points = accepted_points(landed, landed.good[-1])
    screen.select(landed.good[-1], screen.text(f"{points:,} accepted points reconcile at 1m, 5m, 1h"))
    screen.save("checks")


def look_at_plots(screen: Screen) -> None:
    """Numbers in metadata become charts over partitions."""
    screen.open(f"/assets/{REPARTITIONED}")
    screen.button("Plots").click()
    expect(screen.text("dagster/partition_row_count", exact=True)).to_be_visible()
    expect(screen.page.locator("canvas").first).to_be_visible()
    screen.button("Plots").evaluate("plots => plots.scrollIntoView({block: 'start'})")
    screen.save("plots")


def look_at_failed_batch(screen: Screen, landed: Landed) -> None:
    """The failed hour is red. Its run says which file is wrong, and what to run when it is mended; what was quarantined can be read."""
    screen.open(f"/assets/{QUARANTINED}?view=checks&checkDetail=quarantine_below_limit")
    expect(screen.text(re.compile(r"1 whole file \(0 allowed\) quarantined"))).to_be_visible()
    screen.open(f"/assets/{REPARTITIONED}?view=partitions")
    expect(screen.text(f"Materialized ({GOOD})")).to_be_visible()
    expect(screen.text("Failed (1)")).to_be_visible()
    assert screen.colour(landed.bad) == "red"
    assert [screen.colour(batch) for batch in landed.good] == ["green"] * GOOD
    screen.select(landed.bad, screen.text("failed, and did not materialize this asset"))
    screen.page.locator('a[href*="/runs/"]').filter(has_text=re.compile("^[0-9a-f]{8}$")).first.click()
    screen.page.wait_for_url("**/runs/*")
    reason = screen.text(re.compile(r"part-\d+-truncated\.parquet: unreadable_file"))
    expect(reason).to_be_visible()
    expect(reason).to_contain_text(f"rollups backfill {landed.bad} {landed.bad}")
    # The chart of steps is drawn anew as the run's events come in, at last with a red bar.
    screen.page.wait_for_function(RED_BAR)
    # In the picture without the traceback that Dagster adds.
    screen.page.get_by_placeholder("Filter…").last.fill("bad file")
    expect(screen.text("RUN_FAILURE")).to_have_count(0)
    expect(reason).to_contain_text(f"{landed.bad}: 1 bad file, more than ROLLUP_QUARANTINE_FILES=0 allows")
    screen.save("failed-batch")


def look_at_graph(screen: Screen) -> None:
    """The whole of it: which assets there are, how far they are, and where it is red."""
    screen.open(GRAPH)
    expect(screen.text("4 / 4 Passed")).to_be_visible()
    expect(screen.text("2 / 2 Passed")).to_be_visible()
    expect(screen.page.get_by_text(re.compile(r"% filled \(1 failed\)")).locator("visible=true")).to_have_count(2)
    expect(screen.page.get_by_text("Loading")).to_have_count(0)
    screen.save("graph")


def rows_by_batch(settings: Settings) -> dict[Batch, int]:
    """Rows of the published table, by the batch that has published them."""
    from rollup_assets.query import query

    answer = query(settings, f"SELECT epoch_ms(logical_timestamp) // {settings.batch} AS batch, count(*) AS n FROM rollups GROUP BY 1")
    return {settings.calendar.containing(row["batch"] * settings.batch): row["n"] for row in answer.to_pylist()}


def accepted_points(landed: Landed, batch: Batch) -> int:
    """Points of a batch that were staged, counted in the staged files."""
    import pyarrow.dataset as ds

    from rollup_assets.pipeline import Pipeline

    pipeline = Pipeline.from_settings(landed.settings)
    manifest = pipeline.stage.read(REPARTITIONED, batch)
    assert manifest is not None
    return int(ds.dataset([pipeline.stage.place(manifest, file, batch).path for file in manifest.files]).count_rows())
