"""The page in a real browser: it sorts, filters, opens runs, is as good by keyboard as by pointer, fits."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_page import HOSTILE

from stmbench.pictures import pareto
from stmbench.reading import leaderboard
from stmbench.reading.front import front
from stmbench.report import files, page
from stmbench.store import Store

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (_BROWSER and _DRIVER), reason="needs chromium and chromedriver")

Browser = Any
_PATIENCE = 10  # seconds, at most: the browser tells of a new address when it has time


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    os.environ["SE_OFFLINE"] = "true"  # selenium would look for drivers elsewhere
    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--force-prefers-reduced-motion",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(word)
    options.binary_location = _BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(_DRIVER)) as driver:
        driver.implicitly_wait(_PATIENCE)
        yield driver


@pytest.fixture(scope="module")
def path(results: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page") / "report.html"
    files.write(found, page.make(results))
    return found


@pytest.fixture
def opened(browser: Browser, path: Path) -> Iterator[Browser]:
    """The page in a tab of its own, on a wide screen; afterwards nothing may have gone wrong in it."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    resize(browser, 1400)
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    browser.get(path.as_uri())
    yield browser
    problems = browser.get_log("browser")
    browser.close()
    browser.switch_to.window(first)
    assert problems == []


def resize(browser: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def column(browser: Browser, head: str, table: str = "board-0") -> list[str]:
    """The texts of a column's cells that are shown."""
    return browser.execute_script(
        """const table = document.getElementById(arguments[0]);
        const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[1]);
        const shown = [...table.tBodies[0].rows].filter((row) => row.offsetParent);
        return shown.map((row) => row.cells[place].innerText);""",
        table,
        head,
    )


def click_head(browser: Browser, head: str) -> None:
    find(browser, f"//table[@id='board-0']//button[.='{head}']").click()


def find(browser: Browser, xpath: str) -> Any:
    return browser.find_element("xpath", xpath)


def press(browser: Browser, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def focused(browser: Browser) -> str:
    return browser.execute_script(
        "const at = document.activeElement; return at.getAttribute('aria-label') || at.name || at.textContent"
    )


def test_a_column_sorts_and_back(opened: Browser) -> None:
    start = column(opened, "mixer")
    heads = (
        "return [...document.querySelectorAll('#board-0 th[aria-sort$=cending]')].map((th) => th.textContent)"
    )
    assert opened.execute_script(heads) == ["#"]
    click_head(opened, "MACs")
    assert column(opened, "MACs") == ["14.0 M", "21.0 M", "28.0 M", "0.11 G"]
    assert opened.execute_script(heads) == ["MACs"]
    head = find(opened, "//table[@id='board-0']//th[.='MACs']")
    assert head.get_attribute("aria-sort") == "ascending"
    click_head(opened, "MACs")
    assert column(opened, "MACs")[0] == "0.11 G"
    assert head.get_attribute("aria-sort") == "descending"
    click_head(opened, "top-1 %")
    assert column(opened, "top-1 %") == sorted(column(opened, "top-1 %"), reverse=True)
    click_head(opened, "#")
    assert column(opened, "mixer") == start


def test_filters_hide_what_does_not_pass_and_count(opened: Browser) -> None:
    count = find(opened, "//output[@id='count']")
    assert count.text == "6 networks, 8 runs"
    assert count.get_attribute("aria-live") == "polite"
    field = find(opened, "//input[@name='text']")
    field.send_keys("halo quick")
    assert column(opened, "mixer") == ["halo", "halo"]
    assert count.text == "2 of 6 networks, 3 of 8 runs"
    find(opened, "//select[@name='scale']/option[.='tiny']").click()
    assert column(opened, "scale") == ["tiny"]
    marks = opened.find_elements("css selector", "#costs figure a")
    assert sum(mark.is_displayed() for mark in marks) == 1
    find(opened, "//select[@name='recipe']/option[.='longer']").click()
    assert count.text == "nothing passes"
    assert find(opened, "//section[@id='leaderboard']/p[@class='none']").is_displayed()
    find(opened, "//button[.='reset']").click()
    WebDriverWait(opened, _PATIENCE).until(lambda _: count.text == "6 networks, 8 runs")


def test_filters_and_sorting_stay_over_a_reload(opened: Browser) -> None:
    find(opened, "//select[@name='mixer']/option[.='halo']").click()
    click_head(opened, "latency")
    opened.execute_script("scrollTo({ top: 900, behavior: 'instant' })")
    opened.refresh()
    assert set(column(opened, "mixer")) == {"halo"}
    assert find(opened, "//table[@id='board-0']//th[.='latency']").get_attribute("aria-sort") == "ascending"
    assert opened.execute_script("return scrollY") == pytest.approx(900, abs=2)


def test_a_runs_page_by_link_and_back_by_key(opened: Browser) -> None:
    link = find(opened, "//table[@id='listing']//th[.//a[starts-with(., 'dwconv')]]//a")
    run = link.text
    link.click()
    title = find(opened, "//div[@id='run']//h2")
    assert title.text == run
    assert opened.switch_to.active_element == title
    assert not find(opened, "//table[@id='board-0']").is_displayed()
    assert f"stmbench reproduce {run}" in find(opened, "//div[@id='run']").text
    parts = [head.text for head in opened.find_elements("css selector", "#run h3")]
    assert parts == ["Repeat it", "What", "Environment", "Stages", "Numbers", "Training", "Recipe", "Files"]
    webdriver.ActionChains(opened).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert focused(opened) == "← all results"
    press(opened, Keys.ENTER)
    WebDriverWait(opened, _PATIENCE).until(lambda _: find(opened, "//table[@id='board-0']").is_displayed())


def test_a_link_to_a_run_opens_its_page(browser: Browser, path: Path, results: Store) -> None:
    failed = results.runs(state="failed")[0]
    browser.get("about:blank")
    browser.get(f"{path.as_uri()}#run={failed.id}")
    assert find(browser, "//div[@id='run']//h2").text == failed.id
    assert HOSTILE in find(browser, "//div[@id='run']").text
    assert browser.execute_script("return window.stolen") is None
    assert browser.get_log("browser") == []


def test_the_keyboard_reaches_every_control_in_order(opened: Browser) -> None:
    opened.execute_script("document.body.focus()")
    reached = []
    for _ in range(24):
        press(opened, Keys.TAB)
        reached.append(focused(opened))
    assert reached[:2] == ["Skip to the results", "Leaderboard"]
    controls = ["text", "mixer", "scale", "recipe", "reset"]
    start = reached.index("text")
    assert reached[start : start + 5] == controls
    assert [each for each in reached if each in ("#", "mixer", "top-1 %", "seeds")][-2:] == [
        "top-1 %",
        "seeds",
    ]


def test_what_the_pointer_is_told_the_keyboard_is_told(opened: Browser) -> None:
    tip = find(opened, "//div[@id='tip']")
    mark = find(opened, "//section[@id='costs']//*[name()='a'][@data-name='swin micro']")
    opened.execute_script("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", mark)
    opened.execute_script("arguments[0].focus()", mark)
    by_key = tip.text
    assert by_key.startswith("swin micro")
    assert "28 M" in by_key
    press(opened, Keys.ESCAPE)
    assert not tip.is_displayed()
    webdriver.ActionChains(opened).move_to_element(mark.find_element("css selector", "circle")).perform()
    assert tip.text == by_key
    plot = find(opened, "//section[@id='training']//*[name()='svg'][@role='img']")
    opened.execute_script("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", plot)
    opened.execute_script("arguments[0].focus()", plot)
    press(opened, Keys.ARROW_LEFT)
    assert tip.text.startswith("training loss, at ")
    assert find(opened, "//div[@id='said']").get_attribute("textContent").startswith("training loss at ")


def test_the_front_is_that_of_the_picture(opened: Browser, results: Store) -> None:
    select = find(opened, "//section[@id='costs']//label[contains(., 'cost')]/select")
    board = pareto.read(results, leaderboard.rank(results))[0]
    for cost in board.costs:
        select.find_element("css selector", f"option[value='{cost}']").click()
        spots = [(point.costs[cost], point.row.top1 or 0.0) for point in board.points]
        filled = opened.execute_script(
            """return [...document.querySelectorAll("#costs figure[data-number='0'] a")]
            .filter((link) => !link.querySelector('.hollow')).map((link) => link.dataset.name)"""
        )
        assert set(filled) == {board.points[i].name for i in front(spots)}


def test_a_network_can_be_made_to_stand_out(opened: Browser) -> None:
    button = find(opened, "//section[@id='training']//ul[@class='legend']//button[contains(., 'swin')]")
    button.click()
    pressed = opened.switch_to.active_element
    assert (pressed.text, pressed.get_attribute("aria-pressed")) == ("swin", "true")
    dim = "return document.querySelectorAll('#training article:not([hidden]) .dim').length"
    assert opened.execute_script(dim) > 0


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("view", ["", "#run="])
def test_nothing_is_wider_than_the_screen(
    opened: Browser, path: Path, results: Store, width: int, view: str
) -> None:
    resize(opened, width)
    opened.get("about:blank")
    opened.get(path.as_uri() + (view + results.runs(state="done")[0].id if view else ""))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    cut = opened.execute_script(
        """return [...document.querySelectorAll(".plot text")].filter((text) => text.getClientRects().length)
        .filter((text) => text.getBoundingClientRect().right > innerWidth).map((text) => text.textContent)"""
    )
    assert cut == []


def test_nothing_is_asked_of_a_network(opened: Browser) -> None:
    asked = opened.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


def test_what_a_screen_reader_needs(opened: Browser) -> None:
    problems = opened.execute_script("""
        const problems = [];
        const named = (at) => at.labels?.length || at.getAttribute("aria-label") || at.textContent.trim();
        for (const at of document.querySelectorAll("input, select, button, a"))
          if (!named(at)) problems.push(at.outerHTML);
        for (const at of document.querySelectorAll("table")) if (!at.caption) problems.push(at.outerHTML);
        for (const at of document.querySelectorAll("th")) if (!at.scope) problems.push(at.outerHTML);
        for (const at of document.querySelectorAll("img")) if (!at.alt) problems.push(at.outerHTML);
        for (const at of document.querySelectorAll("svg.plot"))
          if (!document.getElementById(at.getAttribute("aria-labelledby"))) problems.push(at.outerHTML);
        const ids = [...document.querySelectorAll("[id]")].map((at) => at.id);
        if (new Set(ids).size !== ids.length) problems.push("an id is there twice");
        let level = 0;
        for (const at of document.querySelectorAll("h1, h2, h3, h4")) {
          if (Number(at.tagName[1]) > level + 1) problems.push(at.outerHTML);
          level = Number(at.tagName[1]);
        }
        return problems;""")
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened: Browser, scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.1, level AA), of everything that is written in HTML."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    faint = opened.execute_script("""
        const light = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (at) => {
          for (; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
          }
        };
        const all = [...document.querySelectorAll("body *:not(svg, svg *, script, noscript)")];
        const has = (at) => [...at.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const written = all.filter((at) => at.checkVisibility() && has(at));
        return written.map((at) => {
          const [one, two] = [light(getComputedStyle(at).color), light(ground(at))];
          return [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), at.outerHTML];
        }).filter(([contrast]) => contrast < 4.5).map(([contrast, text]) => `${contrast}: ${text}`);""")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert faint == []


def test_a_watched_page_loads_itself_again(browser: Browser, results: Store, tmp_path: Path) -> None:
    resize(browser, 1400)
    path = tmp_path / "watched.html"
    files.write(path, page.make(results, every=0.2))
    browser.get(path.as_uri())
    browser.execute_script("window.old = true")
    wait = WebDriverWait(browser, _PATIENCE)
    wait.until(lambda _: browser.execute_script("return window.old") is None)
    browser.get("about:blank")
