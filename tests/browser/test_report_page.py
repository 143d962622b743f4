"""The report in a browser: nothing is fetched, nothing is blocked, figures and tables are there."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from attnlens.show.report import report
from tests.browser.conftest import Opening, serious
from tests.show.synthetic import make_comparison


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_comparison(tuned=('<b onclick="x">&', "lora"))
    return report(made, tmp_path_factory.mktemp("page")).as_uri()


@pytest.fixture
def opened(opening: Opening, address: str) -> Iterator[Page]:
    with opening(address) as page:
        yield page


def test_every_figure_is_drawn(opened: Page):
    sizes = opened.eval_on_selector_all("img", "images => images.map((image) => image.naturalWidth)")
    assert len(sizes) == opened.locator("figure").count() > 12 and min(sizes) > 300


def test_the_policy_blocks_scripts_and_styles_of_others(browser: Browser, address: str):
    page = browser.new_page()
    page.goto(address)
    page.evaluate(
        """() => {
          const script = document.createElement("script"); script.textContent = "document.title = 'owned'";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<p id='styled' style='color: rgb(1, 2, 3)'>x</p>");
        }"""
    )
    assert page.title() != "owned"
    assert page.eval_on_selector("#styled", "node => getComputedStyle(node).color") != "rgb(1, 2, 3)"
    page.close()


def test_tables_sort_by_number(opened: Page):
    column = "#tables table.sortable >> nth=0"
    values = f"{column} >> tbody tr td:nth-child(3)"
    opened.click(f"{column} >> button >> nth=2")
    down = [float(node.get_attribute("data-value") or "nan") for node in opened.locator(values).all()]
    opened.click(f"{column} >> button >> nth=2")
    up = [float(node.get_attribute("data-value") or "nan") for node in opened.locator(values).all()]
    assert len(down) == 12 and down == sorted(down, reverse=True) and up == sorted(up)
    assert opened.locator("th[aria-sort=ascending]").count() == 1
    emptied = opened.locator(column).locator("tbody tr >> nth=3 >> td >> nth=1")
    emptied.evaluate("cell => { cell.dataset.value = ''; cell.textContent = 'none'; }")
    for _ in range(2):  # no data is neither small nor large
        opened.locator(column).locator("thead button >> nth=1").click()
        assert opened.locator(column).locator("tbody tr >> nth=-1 >> td >> nth=1").inner_text() == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_never_scrolls_sideways(opening: Opening, address: str, scheme):
    with opening(address, viewport={"width": 400, "height": 800}, color_scheme=scheme) as page:
        page.eval_on_selector_all("details", "parts => parts.forEach((part) => { part.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.eval_on_selector("img", "image => image.currentSrc === image.parentElement.children[0].srcset")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert dark == (scheme == "dark")


def test_no_serious_violation_of_accessibility(opened: Page):
    assert serious(opened) == []
