"""The default study as its user runs it: its figures, and its page in a real browser."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("default")]
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"
)


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
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the default study from the command line, in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "default"
    command = [sys.executable, "run_simulation.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test %" in done.stdout
    return out


def test_seven_quantizers_end_in_a_table_and_pictures(default_run):
    results = pd.read_csv(default_run / "results.csv")
    assert results["quantizer"].tolist() == [
        "none",
        "uniform:bits=8",
        "uniform:bits=4",
        "uniform:bits=2",
        "stochastic:bits=4",
        "sign",
        "topk:keep=0.1",
    ]
    for name in ("curve.png", "gallery.png", "report.html", "scores.csv", "history.csv"):
        assert (default_run / name).stat().st_size > 10_000
    assert (default_run / "report.html").stat().st_size < 8_000_000


def test_the_unquantized_study_trains_and_leaks_at_every_stage(default_run):
    results = pd.read_csv(default_run / "results.csv").set_index("quantizer")
    assert results.loc["none", "test_accuracy_mean"] >= 0.9
    scores = pd.read_csv(default_run / "scores.csv")
    dlg = scores[(scores["quantizer"] == "none") & (scores["attack"] == "dlg")]
    recovered = (dlg["mse"] < 1e-3).groupby(dlg["round"]).mean()
    assert recovered.index.tolist() == [1, 100, 200]
    assert recovered.min() >= 0.9


def test_one_bit_protects_from_the_naive_attack_only(default_run):
    scores = pd.read_csv(default_run / "scores.csv")
    sign = scores[scores["quantizer"] == "sign"].groupby("attack")["mse"].median()
    assert sign["dlg"] > 0.1 > 10 * sign["cell"]


@pytest.fixture
def browser(default_run: Path, tmp_path: Path) -> Iterator[Any]:
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
    driver.get((default_run / "report.html").resolve().as_uri())
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


@needs_browser
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
    Select(browser.find_element(By.ID, "victim-round")).select_by_visible_text("100")
    of_round = victims(browser)
    assert of_round
    assert all("round 100," in card for card in of_round)
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
    assert column()[::6] == ["sign", "none"]
    size.send_keys("\n")
    assert column()[::6] == ["none", "sign"]

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


@needs_browser
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
