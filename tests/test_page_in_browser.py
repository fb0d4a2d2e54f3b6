"""The HTML page in a real browser: Chromium without a network, from the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from regcheck.report.page.page import html_chunks
from regcheck.report.record import Record, record_of_error
from tests.records import longer, named, question, renamed, run
from tests.test_page import BREAKOUT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]

DESKTOP, PHONE = 1280, 375


class Browser:
    """A browser that has no network, and that shows what it complained about."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, *records: Record, width: int = DESKTOP, dark: bool = False) -> None:
        """Open the page of some runs, and see that it loads itself alone, without an error."""
        path = self.folder / "report.html"
        path.write_text("".join(html_chunks(records)), encoding="utf-8")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        for command, values in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", {"features": [scheme]}),
        ):
            self.driver.execute_cdp_cmd(command, values)
        self.driver.get(path.as_uri())
        assert self.driver.get_log("browser") == []
        assert self.js("performance.getEntriesByType('resource').length") == 0

    def js(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({selector!r}).textContent"))

    def rows(self) -> list[list[str]]:
        """Return the cells of those rows of the table of steps that are in view."""
        found: list[list[str]] = self.js("""(() => {
            const view = document.querySelector('.steps').getBoundingClientRect();
            return [...document.querySelectorAll('.steps tbody tr:not([aria-hidden])')]
                .filter((row) => row.getBoundingClientRect().top >= view.top
                    && row.getBoundingClientRect().bottom <= view.bottom + 1)
                .map((row) => [...row.cells].map((cell) => cell.textContent));
        })()""")
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield Browser(driver, tmp_path_factory.mktemp("page"))
    driver.quit()


@pytest.mark.parametrize(
    ("width", "dark"), [(DESKTOP, False), (PHONE, True)], ids=["desktop, light", "phone, dark"]
)
@pytest.mark.whole
def test_page_is_drawn_within_the_width(browser: Browser, width: int, dark: bool) -> None:
    browser.open(question(), width=width, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    for plot in ("losses", "differences"):
        drawn = browser.js(f"document.querySelector('.{plot} .main-svg').getBoundingClientRect()")
        assert drawn["width"] > 300
        assert drawn["height"] > 250
        assert len(browser.driver.find_elements(By.CSS_SELECTOR, f".{plot} .js-line")) >= 2
        assert browser.text(f".{plot} .annotation-text") == "first divergence: step 2"
    paper, ink = (
        sum(browser.js(f"getComputedStyle({of}).{name}.match(/\\d+/g).slice(0, 3).map(Number)"))
        for of, name in (
            ("document.body", "backgroundColor"),
            ("document.querySelector('.xtick text')", "fill"),
        )
    )
    assert (paper < 100 and ink > 600) if dark else (paper > 700 and ink < 150)
    first = next(row for row in browser.rows() if row[0] == "2")
    assert first[3:5] == ["0.689311271", "≠ 0.689311262"]
    assert first[8] == "4.5e+11 !"


def test_every_step_of_a_long_run_is_reached(browser: Browser) -> None:
    browser.open(longer(run(convention="doubled"), 10_000))
    assert browser.rows()[0][0] == "1"
    assert browser.js("document.querySelectorAll('.steps tr').length") < 60
    box = browser.find(".steps")
    box.send_keys(Keys.END)
    wait(browser, lambda: browser.rows()[-1][0] == "10000")
    field = browser.find("input.step")
    field.clear()
    field.send_keys("5000", Keys.ENTER)
    wait(browser, lambda: "5000" in [row[0] for row in browser.rows()])
    assert browser.text(".readout").startswith("step 5000 (epoch 5000, batch 1)")


def test_plots_answer_to_pointer_and_keys(browser: Browser) -> None:
    browser.open(question())
    area = browser.find(".differences .nsewdrag")
    ActionChains(browser.driver).move_to_element(area).perform()
    wait(browser, lambda: "one-step" in browser.text(".differences .hoverlayer"))
    browser.find(".losses").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.text(".readout").startswith("step 4 ")
    wait(browser, lambda: "scratch : 0.681909683" in browser.text(".losses .hoverlayer"))
    browser.find(".losses").send_keys(Keys.END)
    assert browser.text(".readout").startswith("step 1000 ")
    browser.find("select.tensor").send_keys("bias")
    assert "bias: accumulated" in browser.text(".readout")
    browser.find(".to-first").click()
    assert browser.js("document.querySelector('.losses').layout.xaxis.range") == [-8.5, 22.5]
    assert browser.text(".readout").startswith("step 2 ")


def test_several_specs_are_drawn_when_they_are_opened_and_no_name_runs(browser: Browser) -> None:
    hostile = renamed(named(run(convention="doubled"), BREAKOUT), "weight", BREAKOUT)
    browser.open(run(), hostile, record_of_error("bad.yaml", BREAKOUT))
    assert browser.js("document.querySelectorAll('.main-svg').length") == 0
    browser.find('a[href="#run-1"]').click()
    wait(browser, lambda: bool(browser.js("document.querySelectorAll('#run-1 .js-line').length")))
    assert browser.js("typeof hacked") == "undefined"
    assert browser.text("#run-1 .name") == BREAKOUT


def wait(browser: Browser, come: Callable[[], bool]) -> None:
    """Wait until something has come."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 10, poll_frequency=0.05).until(lambda _driver: come())
