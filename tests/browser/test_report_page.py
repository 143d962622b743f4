"""The report in a browser: nothing is fetched, nothing is blocked, the viewer shows the numbers that were stored."""

import dataclasses
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from attnlens.show.report import report
from tests.show.synthetic import make_comparison

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = '</script><script>document.title="owned"</script> "quotes" & \'more\' $x$ שלום עולם 🙂 <img src=x>'
TUNED = ('<b onclick="x">&', "lora")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        # A machine without a browser; in CI the skip is an error (ATTNLENS_REQUIRE_ALL).
        pytest.skip("chromium is missing: run make test as root or install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def comparison():
    made = make_comparison(tuned=TUNED)
    hostile = dataclasses.replace(make_comparison(tuned=TUNED, texts=(HOSTILE,)).passages[0], label="<i>label</i>")
    return dataclasses.replace(made, passages=(made.passages[0], hostile, *made.passages[2:]))


@pytest.fixture(scope="module")
def address(comparison, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(comparison, tmp_path_factory.mktemp("page")).as_uri()


@pytest.fixture
def opened(browser: Browser, address: str):
    """The page at 1280 pixels, and what it asked for or complained about."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(5000)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(address)
    yield page
    assert heard == [address], "one file, no console message, no request"
    page.close()


def choose(page: Page, passage: int, place: int, model: int = 0) -> None:
    for name, value in (("passage", passage), ("map", place), ("model", model)):
        page.select_option(f"#{name}", str(value))


def test_every_figure_is_drawn(opened: Page):
    sizes = opened.eval_on_selector_all("img", "images => images.map((image) => image.naturalWidth)")
    assert len(sizes) == 13 and min(sizes) > 300


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


def test_the_viewer_shows_the_stored_numbers(opened: Page, comparison):
    passage = comparison.passages[2]
    word = passage.is_word.index(True)
    for place, model in ((0, 0), (7, 1)):
        choose(opened, 2, place, model)
        base, tuned = passage.received[0, place, word], passage.received[1 + model, place, word]
        opened.hover("#base-text .w >> nth=0")
        shown = opened.inner_text("#readout")
        assert f"“{passage.words[word]}”: base {base:.1f} %, tuned {tuned:.1f} %" in shown
        marked = passage.received[:, place, [i for i, flag in enumerate(passage.marked) if flag]].sum(-1)
        assert f"{marked[0]:.1f} % of the attention on words in base" in opened.inner_text("#sums")
    assert opened.inner_text("#tuned-name") == "lora"


def test_colours_follow_the_attention(opened: Page, comparison):
    choose(opened, 2, 5)
    received = comparison.passages[2].received[0, 5]
    words = [i for i, flag in enumerate(comparison.passages[2].is_word) if flag]
    steps = opened.eval_on_selector_all(
        "#base-text .w", "words => words.map((word) => Number(word.className.match(/a(\\d)/)[1]))"
    )
    order = sorted(range(len(words)), key=lambda index: received[words[index]])
    ranked = [steps[index] for index in order]
    assert ranked == sorted(ranked) and max(steps) > 4
    background = "node => getComputedStyle(node).backgroundColor"
    strongest = opened.locator("#base-text .w").nth(order[-1])
    assert strongest.evaluate(background) != opened.locator("#base-text .w").nth(order[0]).evaluate(background)


def test_hostile_text_is_shown_as_text(opened: Page):
    choose(opened, 1, 0)
    assert opened.inner_text("#base-text") == HOSTILE == opened.inner_text("#tuned-text")
    assert opened.inner_text("#passage option >> nth=1").endswith("<i>label</i>")
    assert "owned" not in opened.title() and opened.locator("#words img, #words i, #words b").count() == 0


def test_arrow_keys_move_through_the_words(opened: Page, comparison):
    choose(opened, 0, 0)
    opened.focus("#base-text")
    words = [
        word for word, flag in zip(comparison.passages[0].words, comparison.passages[0].is_word, strict=True) if flag
    ]
    for key, word in (("ArrowRight", words[0]), ("ArrowRight", words[1]), ("ArrowLeft", words[0])):
        opened.keyboard.press(key)
        assert f"“{word}”" in opened.inner_text("#readout")
        assert opened.locator(".here").count() == 2, "the same word in both panes"


def test_the_map_is_kept_from_text_to_text(opened: Page):
    choose(opened, 0, 8)
    opened.select_option("#passage", "3")
    assert opened.input_value("#map") == "8"


def test_tables_sort_by_number(opened: Page):
    column = "#tables table.sortable >> nth=0"
    values = f"{column} >> tbody tr td:nth-child(3)"
    opened.click(f"{column} >> button >> nth=2")
    down = [float(node.get_attribute("data-value") or "nan") for node in opened.locator(values).all()]
    opened.click(f"{column} >> button >> nth=2")
    up = [float(node.get_attribute("data-value") or "nan") for node in opened.locator(values).all()]
    assert len(down) == 12 and down == sorted(down, reverse=True) and up == sorted(up)
    assert opened.locator("th[aria-sort=ascending]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_never_scrolls_sideways(browser: Browser, address: str, scheme):
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.goto(address)
    page.eval_on_selector_all("details", "parts => parts.forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.eval_on_selector("img", "image => image.currentSrc === image.parentElement.children[0].srcset")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert dark == (scheme == "dark")
    page.close()


def test_no_serious_violation_of_accessibility(opened: Page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(opened).response["violations"]
    serious = [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")]
    assert serious == []
