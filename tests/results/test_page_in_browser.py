"""The page in a real browser: what a user does with it, without errors and without a network."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from results.report import write_report
from results.run_reader import RunReader

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
]


POSITION = """
document.getElementById("curve").scrollIntoView({ block: "center" });
const holds = (group) => (group.__data__[0].trace.customdata ?? []).flat();
const group = [...document.querySelectorAll("#curve .scatterlayer .trace")]
  .find((one) => holds(one).includes(arguments[0]));
const point = group.querySelectorAll(".point")[holds(group).indexOf(arguments[0])];
const { x, y, width, height } = point.getBoundingClientRect();
return [x + width / 2, y + height / 2];
"""
"""Where on the screen the point of a quantizer is."""


@pytest.fixture(scope="module")
def page(graded_run: Path) -> Path:
    path = graded_run / "report.html"
    write_report(RunReader(graded_run), path)
    return path


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(tmp_path), "download.prompt_for_download": False},
    )
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(page.resolve().as_uri())
    yield driver
    driver.quit()


def until(browser: Any, condition: Callable[[Any], object]) -> Any:
    return WebDriverWait(browser, 20).until(condition)


def victims(browser: Any) -> list[str]:
    return [
        figure.get_attribute("textContent") or ""
        for figure in browser.find_elements(By.CSS_SELECTOR, "#victims figure")
    ]


def points(browser: Any, attribute: str) -> list[Any]:
    found = browser.execute_script(
        "return document.getElementById('curve').data.map(trace => trace[arguments[0]]);", attribute
    )
    return list(found)


def test_a_reader_explores_the_page(browser, tmp_path):
    # The metric is switched: points move and the axis says what it shows.
    before = points(browser, "x")
    Select(browser.find_element(By.ID, "switch-metric")).select_by_visible_text(
        "PSNR (dB), median victim"
    )
    until(browser, lambda b: points(b, "x") != before)
    curve = browser.find_element(By.ID, "curve")
    until(browser, lambda _: "PSNR" in curve.text)
    Select(browser.find_element(By.ID, "switch-upright")).select_by_visible_text("bytes")
    until(browser, lambda _: "bytes per update" in curve.text)

    # A point is clicked: the victims of that quantizer appear.
    shown = victims(browser)
    assert len(shown) >= 4
    chosen = Select(browser.find_element(By.ID, "victim-quantizer"))
    assert chosen.first_selected_option.text == "none"
    x, y = browser.execute_script(POSITION, "sign")
    actions = webdriver.ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y)).click()
    actions.perform()
    until(browser, lambda b: victims(b) != shown)
    assert chosen.first_selected_option.text == "sign"

    # Order and round change what is shown.
    Select(browser.find_element(By.ID, "victim-round")).select_by_visible_text("5")
    of_round = victims(browser)
    assert of_round
    assert all("round 5," in card for card in of_round)
    Select(browser.find_element(By.ID, "victim-order")).select_by_value("hidden")
    hidden = victims(browser)
    Select(browser.find_element(By.ID, "victim-order")).select_by_value("exposed")
    assert victims(browser) == hidden[::-1]
    images = browser.find_elements(By.CSS_SELECTOR, "#victims img")
    assert all(image.get_attribute("alt") for image in images)
    assert all(int(image.get_property("naturalWidth")) == 8 for image in images)

    # The table is sorted, by keyboard, both ways.
    def column() -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, "#results tbody td:first-child")
        return [cell.text for cell in cells]

    buttons = browser.find_elements(By.CSS_SELECTOR, "#results th button")
    size = next(b for b in buttons if b.get_attribute("textContent") == "uplink bytes per update")
    size.send_keys("\n")
    assert column() == ["sign", "uniform:bits=4", "none"]
    size.send_keys("\n")
    assert column() == ["none", "uniform:bits=4", "sign"]

    # The CSV is downloaded.
    browser.find_element(By.ID, "download").click()
    until(browser, lambda _: (tmp_path / "results.csv").exists())
    assert (tmp_path / "results.csv").read_text().startswith("quantizer,trials,")

    # No error, and nothing asked of any network.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert all(url.startswith(("file:", "data:", "blob:")) for url in urls)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_colour_scheme(browser, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.refresh()
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width == 390
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor];"
    )
    brightness = [sum(int(v) for v in c[4:-1].split(",")) for c in (ink, paper)]
    assert (brightness[0] > brightness[1]) is (scheme == "dark")
    text = until(browser, lambda b: b.find_element(By.CSS_SELECTOR, "#curve .xtitle"))
    assert sum(
        int(v) for v in text.value_of_css_property("fill")[4:-1].split(",")
    ) == pytest.approx(brightness[0], abs=3)
